"""The sweep itself as a run in W&B, in the group of its trials.

The run is open while the sweep runs: stopped in W&B, it ends the sweep.
"""

import threading
from collections.abc import Callable

from datasets.manifest import Manifest
from trainers.run.rows import find_mode
from trainers.tracking.thread import WandbThread
from tuning.config import TuningConfig
from tuning.record.record import SweepRecord
from tuning.record.results import KILLED

SWEEP = "sweep"
"""Job type of the run."""


class SweepRun:
    """The sweep's run, until `close`.

    Args:
        on_stop: called, in another thread, where the user stops the run in W&B.
    """

    def __init__(
        self, config: TuningConfig, manifest: Manifest, *, on_stop: Callable[[], None]
    ) -> None:
        self._config, self._manifest, self._on_stop = config, manifest, on_stop
        self._end: tuple[SweepRecord, bytes] | None = None
        self._ended = threading.Event()
        is_off = find_mode(config.base.track) == "off"
        self._thread = None if is_off else WandbThread(config.out, self._follow)

    def log(self, record: SweepRecord) -> str | None:
        """Log the review page, the answer, the leaderboard, the importance of each axis and the
        work shared; close the run.

        Returns:
            The command that uploads the data that W&B does not have; None if it has all.
        """
        if self._thread is None:
            return None
        from tuning.review.page import render_page  # imports Plotly

        self._end = record, render_page(record)  # before the thread's time to finish begins
        return self.close()

    def close(self) -> str | None:
        """Finish the run, as killed where there was nothing to `log`; return as `log` does."""
        self._ended.set()
        return self._thread.close() if self._thread else None

    def _follow(self) -> str | None:
        # Import wandb, in this thread: it takes a second.
        from trainers.tracking.content import find_tags
        from trainers.tracking.run import WandbRun

        config = self._config
        run = WandbRun(
            config.out,
            track=config.base.track,
            name=f"sweep {config.group}",
            group=config.group,
            job_type=SWEEP,
            config=config.to_dict(),
            tags=find_tags(config.base, self._manifest),
            on_stop=self._on_stop,
        )
        self._ended.wait()
        if self._end is None:
            run.finish(KILLED)
        else:
            from tuning.wandb.sweep import log_sweep  # imports scikit-learn

            log_sweep(run, self._manifest, *self._end)
            run.finish("finished")
        return run.sync_command
