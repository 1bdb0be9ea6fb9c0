"""A training in W&B: a mirror of its run folder.

The driver keeps it: it outlives killed and pruned workers, so it alone can say how a run ended. A
thread of its own talks to W&B, so that no outage delays anything; what W&B misses is in the run
folder, from which the next sitting, or `wandb sync`, brings it.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from cluster.entry import ROOT
from cluster.provenance import find_commit
from datasets.shards import Manifest, read_manifest
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.run.folder import find_result
from trainers.run.predictions import read_predictions
from trainers.run.rows import Row, RowReader, find_mode, read_rows
from trainers.tracking.alerts import Alert, find_alerts, judge_end
from trainers.tracking.artifacts import checkpoint_artifacts, data_artifact
from trainers.tracking.media import (
    augmentation_image,
    confusion,
    mistakes_table,
    predictions_table,
)
from trainers.tracking.run import WandbRun
from trainers.tracking.thread import CLOSE_TIMEOUT_S, WandbThread

POLL_S = 1.0
TRIAL = "trial"
"""Job type of a sweep's trials: that one of them learns nothing is a finding, no alarm."""


class RunMirror:
    """Copy what a run writes to W&B from now on; `finish` it once, and `close` it.

    Args:
        config: of the run, its paths absolute.
    """

    def __init__(
        self, config: FinetuneConfig, *, name: str, group: str | None, job_type: str
    ) -> None:
        self._config, self._job_type = config, job_type
        self._options = {"name": name, "group": group, "job_type": job_type}
        self._state = "killed"
        self._ended = threading.Event()
        is_off = find_mode(config.track) == "off"
        self._thread = None if is_off else WandbThread(config.out, self._mirror)

    def finish(self, state: str) -> None:
        """Say how the run ended: finished, pruned, failed or killed. Waits for nothing."""
        self._state = state
        self._ended.set()

    def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> str | None:
        """Wait until W&B has all, or for as long as an outage may take.

        Returns:
            The command that uploads what W&B does not have; None where it has all.
        """
        self._ended.set()
        return self._thread.close(timeout_s=timeout_s) if self._thread else None

    def _mirror(self) -> str | None:
        config = self._config
        manifest = read_manifest(config.data)
        run = WandbRun(
            config.out,
            track=config.track,
            config=config.to_dict(),
            tags=find_tags(config, manifest),
            **self._options,
        )
        content = RunContent(run, config, manifest, alarms=self._job_type != TRIAL)
        content.begin()
        while not self._ended.wait(POLL_S):
            content.copy_rows()
        content.copy_rows()
        content.end()
        run.finish(self._state)
        return run.sync_command


class RunContent:
    """What W&B is told of a run, and what of it has been told.

    Rows go first and wait for nothing. Tables and artifacts ask the server: once it does not
    answer, they are left out, with a warning. The same command again brings those of the end.
    """

    def __init__(
        self, run: WandbRun, config: FinetuneConfig, manifest: Manifest, *, alarms: bool
    ) -> None:
        self._run, self._config, self._manifest = run, config, manifest
        self._alarms = alarms
        self._rows = RowReader(config.out)
        self._epochs: list[Row] = []
        """The rows that end an epoch, so far."""
        self._told_step = run.synced_step
        self._heard: set[str] = set()
        splits = ("train", "val") if config.validates else ("train+val",)
        self._images_per_epoch = sum(manifest.split(split).num_images for split in splits)

    def begin(self) -> None:
        """Tell where the run starts from, and show what it will see."""
        run, config = self._run, self._config
        self._run.show(
            "the data set", lambda: run.use_artifact(data_artifact(config.data, self._manifest))
        )
        if self._told_step < 0:
            self._run.show(
                "augmentation",
                lambda: run.log({"data/augmentation": augmentation_image(config)}),
            )

    def copy_rows(self) -> None:
        """Copy the rows that W&B does not have."""
        for row in self._rows.poll_new():
            ends_epoch = metrics.EPOCH_S in row
            if ends_epoch and (
                not self._epochs or row[metrics.EPOCH] > self._epochs[-1][metrics.EPOCH]
            ):
                self._epochs.append(row)
            if row[metrics.GLOBAL_STEP] <= self._told_step:
                continue
            self._run.log(row)
            self._told_step = row[metrics.GLOBAL_STEP]
            if ends_epoch:
                self._end_epoch(row)

    def _end_epoch(self, row: Row) -> None:
        self._raise_alerts(
            find_alerts(self._epochs, self._config, images_per_epoch=self._images_per_epoch)
        )
        axes = {axis: row[axis] for axis in (metrics.EPOCH, metrics.GLOBAL_STEP)}
        predictions = read_predictions(self._config.out, axes[metrics.EPOCH])
        if predictions is not None:
            table = predictions_table(predictions)
            self._run.show("predictions", lambda: self._run.log({**axes, "val/predictions": table}))

    def end(self) -> None:
        """Show where the best weights err, and name the checkpoints."""
        run, config, classes = self._run, self._config, self._manifest.classes
        predictions = read_predictions(config.out)
        if predictions is not None:
            self._run.show(
                "confusion", lambda: run.log({"val/confusion": confusion(predictions, classes)})
            )
            self._run.show(
                "mistakes",
                lambda: run.log(
                    {
                        "val/mistakes": mistakes_table(
                            config, predictions, data=config.data, split="val"
                        )
                    }
                ),
            )
        for artifact, aliases in checkpoint_artifacts(config):
            self._run.show("a checkpoint", partial(run.log_artifact, artifact, aliases=aliases))
        if self._alarms and (result := find_result(config.out)) is not None:
            counts = self._manifest.split("val").class_counts if config.validates else ()
            self._raise_alerts(
                judge_end(read_rows(config.out), diverged=result["diverged"], class_counts=counts)
            )

    def _raise_alerts(self, alerts: Iterable[Alert]) -> None:
        for kind, text, is_error in alerts:
            if kind not in self._heard:
                self._heard.add(kind)
                name = self._config.out.rstrip("/").rsplit("/", 1)[-1]
                self._run.alert(f"{name}: {kind}", text, is_error=is_error)


def find_tags(config: FinetuneConfig, manifest: Manifest) -> list[str]:
    """Return what to find a run by: network, initialization, data and commit."""
    commit = find_commit(ROOT)
    tags = [config.model.backbone, config.model.init, f"data:{manifest.fingerprint[:12]}"]
    return tags if commit is None else [*tags, f"commit:{commit[:12]}"]


@contextmanager
def follow(run: str, mirror: RunMirror, show: Callable[[Row], None]) -> Iterator[None]:
    """Show a run's new rows while the body trains it; the way that ends is the run's state."""
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
