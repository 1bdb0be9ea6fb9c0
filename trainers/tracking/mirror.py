"""Mirrors a training's run folder in W&B.

The driver does it, in a background thread: it outlives killed and pruned workers, so it knows how
the run ended. Rows that W&B does not have are in the run folder; the next session logs them.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from cluster.entry import ROOT
from cluster.io.uris import name_of
from cluster.provenance import find_commit
from datasets.shards import Manifest
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.run.folder import find_result
from trainers.run.predictions import read_predictions
from trainers.run.rows import Row, RowReader, find_mode, read_rows
from trainers.tracking.alerts import Alert, find_alerts, judge_end
from trainers.tracking.artifacts import checkpoint_artifacts, data_artifact
from trainers.tracking.media import (
    augmentation_image,
    confusion_table,
    mistakes_table,
    predictions_table,
)
from trainers.tracking.run import WandbRun
from trainers.tracking.thread import CLOSE_TIMEOUT_S, WandbThread

POLL_S = 1.0
TRIAL = "trial"
"""Job type of a sweep's trials: a trial that learns nothing is a result, not an alert."""


class RunMirror:
    """Copies a run's new rows to W&B until `finish`; then `close` it.

    Args:
        config: of the run, its paths absolute.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        manifest: Manifest,
        *,
        name: str,
        group: str | None,
        job_type: str,
    ) -> None:
        self._config, self._manifest, self._job_type = config, manifest, job_type
        self._options = {"name": name, "group": group, "job_type": job_type}
        self._state = "killed"
        self._ended = threading.Event()
        is_off = find_mode(config.track) == "off"
        self._thread = None if is_off else WandbThread(config.out, self._mirror)

    def finish(self, state: str) -> None:
        """Set how the run ended: finished, pruned, failed or killed; return at once."""
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


class RunContent:
    """The content of a run in W&B: rows, tables, artifacts and alerts.

    Rows don't wait for the server. Tables and artifacts do: once it does not answer, they are
    skipped with a warning. Run the same command again to log those of the run's end.
    """

    def __init__(
        self, run: WandbRun, config: FinetuneConfig, manifest: Manifest, *, judges_end: bool
    ) -> None:
        self._run, self._config, self._manifest = run, config, manifest
        self._judges_end = judges_end
        self._rows = RowReader(config.out)
        self._epochs: list[Row] = []
        """The last rows of the epochs so far."""
        self._logged_step = run.synced_step
        self._alerted: set[str] = set()
        splits = ("train", "val") if config.validates else ("train+val",)
        self._images_per_epoch = sum(manifest.split(split).num_images for split in splits)

    def log_start(self) -> None:
        """Log the data set, and a sheet of augmented images."""
        run, config = self._run, self._config
        run.try_to(lambda: run.use_artifact(data_artifact(config.data, self._manifest)), "data")
        if self._logged_step < 0:
            run.try_to(
                lambda: run.log({"data/augmentation": augmentation_image(config)}), "augmentation"
            )

    def copy_rows(self) -> None:
        """Log the rows that W&B does not have."""
        for row in self._rows.poll_new():
            ends_epoch = metrics.EPOCH_S in row
            if ends_epoch and (
                not self._epochs or row[metrics.EPOCH] > self._epochs[-1][metrics.EPOCH]
            ):
                self._epochs.append(row)
            if row[metrics.GLOBAL_STEP] <= self._logged_step:
                continue
            self._run.log(row)
            self._logged_step = row[metrics.GLOBAL_STEP]
            if ends_epoch:
                self._end_epoch(row)

    def _end_epoch(self, row: Row) -> None:
        self._send_alerts(
            find_alerts(self._epochs, self._config, images_per_epoch=self._images_per_epoch)
        )
        axes = {axis: row[axis] for axis in (metrics.EPOCH, metrics.GLOBAL_STEP)}
        predictions = read_predictions(self._config.out, axes[metrics.EPOCH])
        if predictions is not None:
            table = predictions_table(predictions)
            self._run.try_to(
                lambda: self._run.log({**axes, "val/predictions": table}), "predictions"
            )

    def log_end(self) -> None:
        """Log confusion and mistakes of the best weights, the checkpoints and alerts."""
        run, config = self._run, self._config
        predictions = read_predictions(config.out)
        if predictions is not None:
            run.try_to(
                lambda: run.log({"val/confusion": confusion_table(predictions)}), "confusion"
            )
            mistakes = partial(mistakes_table, config, self._manifest, predictions, split="val")
            run.try_to(lambda: run.log({"val/mistakes": mistakes()}), "mistakes")
        for artifact, aliases in checkpoint_artifacts(config):
            run.try_to(partial(run.log_artifact, artifact, aliases=aliases), "a checkpoint")
        if self._judges_end and (result := find_result(config.out)) is not None:
            counts = self._manifest.split("val").class_counts if config.validates else ()
            self._send_alerts(
                judge_end(read_rows(config.out), diverged=result["diverged"], class_counts=counts)
            )

    def _send_alerts(self, alerts: Iterable[Alert]) -> None:
        for kind, text, is_error in alerts:
            if kind not in self._alerted:
                self._alerted.add(kind)
                name = name_of(self._config.out)
                self._run.alert(f"{name}: {kind}", text, is_error=is_error)


def find_tags(config: FinetuneConfig, manifest: Manifest) -> list[str]:
    """Return a run's tags: network, initialization, data and commit."""
    commit = find_commit(ROOT)
    tags = [config.model.backbone, config.model.init, f"data:{manifest.fingerprint[:12]}"]
    return tags if commit is None else [*tags, f"commit:{commit[:12]}"]


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
    except (KeyboardInterrupt, SystemExit):
        state = "killed"
        raise
    finally:
        stop.set()
        thread.join()
        show_new()
        mirror.finish(state)
        mirror.close()
