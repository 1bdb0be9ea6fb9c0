"""Why a training in workers gave up, in one sentence; a bug keeps its traceback instead.

Ray Train sends an error without the line that raised it, so a ValueError of a library is told as
one of ours; THAW_TRACEBACK=1 shows where it was raised.
"""

import faulthandler
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import environ

import ray.exceptions
import ray.train

from cluster.config import ClusterConfig

HANG_VARS = ("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "RAY_TRAIN_COLLECTIVE_TIMEOUT_S")
"""Read by Ray Train: how long a worker may not answer, and not come to a barrier of Ray's."""
STDERR = 2
LOST_PEER = "Gloo", "gloo", "NCCL", "Connection closed by peer", "Connection reset by peer"
"""What a rank says whose peer is gone: not why it is."""


@contextmanager
def noticing_hangs(timeout_s: float) -> Iterator[None]:
    """Have Ray Train give up on a worker that hangs; what the user set, wins."""
    ours = [name for name in HANG_VARS if name not in environ]
    environ.update(dict.fromkeys(ours, str(timeout_s)))
    try:
        yield
    finally:
        for name in ours:
            environ.pop(name, None)


class Watchdog:
    """Ends this process where no sign of life comes for `timeout_s`: with exit code 1 and the
    traceback of every thread on stderr. Armed from its start; None never ends anything.

    Python's own watchdog, as it needs no lock that a hang may hold.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s and min(timeout_s, threading.TIMEOUT_MAX)
        self._armed_at = -math.inf
        self.live()

    def live(self) -> None:
        """Give a sign of life."""
        now = time.monotonic()
        if self._timeout_s and now - self._armed_at > self._timeout_s / 100:  # each starts a thread
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=STDERR)
            self._armed_at = now

    def rest(self) -> None:
        """Wait for nothing until the next sign of life."""
        faulthandler.cancel_dump_traceback_later()
        self._armed_at = -math.inf

    close = rest


def explain_failure(
    error: ray.train.TrainingFailedError, cluster: ClusterConfig, run: str
) -> str | None:
    """Say why workers failed more often than they may; None where the reason is a bug."""
    if isinstance(error, ray.train.ControllerError):
        if not type(error.controller_failure).__name__.startswith("WorkerGroupStartup"):
            return None
        return (
            f"cluster.num_workers is {cluster.num_workers}: the cluster did not start so many in "
            "time; look at `ray status`, ask for fewer, or let it begin with --min-workers; "
            "the same command goes on"
        )
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    told = {rank: _tell(failure) for rank, failure in failures.items()}
    if not told or any(reason is None for reason in told.values()):
        return None
    # A peer's "connection closed" comes with the death that closed it, and tells less.
    rank, reason = min(told.items(), key=lambda item: (_tells_of_peer(failures[item[0]]), item[0]))
    return (
        f"{reason} (worker {rank} of the run in {run}; cluster.max_failures is "
        f"{cluster.max_failures}, and this was failure {cluster.max_failures + 1}); "
        "the same command goes on from the latest checkpoint"
    )


def _tell(failure: Exception) -> str | None:
    died = getattr(failure, "health_check_failure", failure)
    if isinstance(died, ray.exceptions.RayActorError):
        return (
            "a worker died: it was killed, ran out of memory, hung for cluster.hang_timeout_s, or "
            "its node is gone"
        )
    if type(failure).__name__.endswith("TimeoutError"):
        return "a worker hangs: it answers no more"
    if _tells_of_peer(failure):
        return "a worker lost its peers"
    return str(failure) if isinstance(failure, ValueError | OSError) else None


def _tells_of_peer(failure: Exception) -> bool:
    return isinstance(failure, RuntimeError) and any(word in str(failure) for word in LOST_PEER)
