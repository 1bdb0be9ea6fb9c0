"""Requests to stop a training: RUN/stop_requested, a file, as workers may be on other nodes."""

from cluster.io import storage

STOPPED = "stopped by user"
"""State of a run that ended because of a request."""
POLL_S = 1.0


class StoppedByUser(SystemExit):
    """Ends a command as Ctrl-C does; the same command resumes the training."""

    def __init__(self) -> None:
        super().__init__(130)


def request_stop(run: str) -> None:
    """Ask the training in a run folder to end at its next row of metrics, with a checkpoint."""
    storage.write_bytes(_uri(run), b"stop")


def withdraw_stop(run: str) -> None:
    storage.delete_file(_uri(run))


def is_stop_requested(run: str) -> bool:
    return storage.exists(_uri(run))


def _uri(run: str) -> str:
    return storage.join(run, "stop_requested")
