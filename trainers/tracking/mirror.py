"""Mirrors a training's run folder in W&B.

The driver does it, in a background thread: it outlives killed and pruned workers, so it knows how
the run ended. Rows that W&B does not have are in the run folder; the next session logs them.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datasets.manifest import Manifest
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.run.rows import Row, RowReader, find_mode
from trainers.run.stop import STOPPED, StoppedByUser
from trainers.tracking.thread import CLOSE_TIMEOUT_S, WandbThread

POLL_S = 1.0
TRIAL = "trial"
"""Job type of a sweep's trials: a trial that learns nothing is a result, not an alert."""


class RunMirror:
    """Copies a run's new rows to W&B until `finish`; then `close` it.

    Args:
        config: of the run, its paths absolute.
        on_stop: called, in another thread, where the user stops the run in W&B.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        manifest: Manifest,
        *,
        name: str,
        group: str | None,
        job_type: str,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._manifest, self._job_type = config, manifest, job_type
        self._options = {"name": name, "group": group, "job_type": job_type, "on_stop": on_stop}
        self._state = "killed"
        self._ended = threading.Event()
        is_off = find_mode(config.track) == "off"
        self._thread = None if is_off else WandbThread(config.out, self._mirror)

    def finish(self, state: str) -> None:
        """Set how the run ended, one of the states of a trial; return at once."""
        self._state = state
        self._ended.set()

    def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> str | None:
        """Wait until W&B has all, at most `timeout_s`.

        Returns:
            The command that uploads what W&B does not have; None where it has all.
        """
        self._ended.set()
        return self._thread.close(timeout_s=timeout_s) if self._thread else None

    def _mirror(self) -> str | None:
        # Imports wandb, in this thread: it takes a second.
        from trainers.tracking.content import RunContent, find_tags
        from trainers.tracking.run import WandbRun

        config, manifest = self._config, self._manifest
        run = WandbRun(
            config.out,
            track=config.track,
            config=config.to_dict(),
            tags=find_tags(config, manifest),
            **self._options,
        )
        content = RunContent(run, config, manifest, judges_end=self._job_type != TRIAL)
        content.log_start()
        while not self._ended.wait(POLL_S):
            content.copy_rows()
        content.copy_rows()
        content.log_end()
        run.finish(self._state)
        return run.sync_command


@contextmanager
def follow(run: str, mirror: RunMirror, show: Callable[[Row], None]) -> Iterator[None]:
    """Show a run's new rows while the body trains it; the run's state is how the body ends."""
    stop, rows = threading.Event(), RowReader(run)
    shown = max((row[metrics.GLOBAL_STEP] for row in rows.read_new()), default=-1)

    def show_new() -> None:
        nonlocal shown
        for row in rows.poll_new():
            if row[metrics.GLOBAL_STEP] > shown:
                show(row)
                shown = row[metrics.GLOBAL_STEP]

    def poll() -> None:
        while not stop.wait(POLL_S):
            show_new()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    state = "failed"
    try:
        yield
        state = "finished"
    except StoppedByUser:
        state = STOPPED
        raise
    except (KeyboardInterrupt, SystemExit):
        state = "killed"
        raise
    finally:
        stop.set()
        thread.join()
        show_new()
        mirror.finish(state)
        mirror.close()
