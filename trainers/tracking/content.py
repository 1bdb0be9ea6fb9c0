"""The content of a training's run in W&B."""

from collections.abc import Iterable
from functools import cache, partial

from cluster.entry import ROOT
from cluster.io.uris import name_of
from cluster.provenance import find_commit
from datasets.manifest import Manifest
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.meter import describe_waits
from trainers.networks.freezing import describe_frozen
from trainers.run.folder import find_result
from trainers.run.predictions import Predictions, read_predictions
from trainers.run.rows import Row, RowReader, read_rows
from trainers.tracking.alerts import Alert, find_alerts, judge_end
from trainers.tracking.artifacts import checkpoint_artifacts, data_artifact
from trainers.tracking.media import (
    augmentation_image,
    confusion_table,
    mistakes_table,
    predictions_table,
)
from trainers.tracking.run import WandbRun


class RunContent:
    """Logs the content of a run: rows, tables, artifacts and alerts.

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
        """Log the data set, how much is frozen, and a sheet of augmented images."""
        run, config = self._run, self._config
        if not config.schedule.phases:
            frozen = describe_frozen(config.model.backbone, config.model.freeze_depth)
            names = (metrics.FROZEN_STAGE, metrics.FROZEN_SHARE)
            run.summarize(dict(zip(names, frozen, strict=True)))
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

        def log_predictions() -> None:
            predictions = read_predictions(self._config.out, axes[metrics.EPOCH])
            if predictions is not None:
                self._run.log({**axes, "val/predictions": predictions_table(predictions)})

        self._run.try_to(log_predictions, "predictions")

    def log_end(self) -> None:
        """Log confusion and mistakes of the best weights, the checkpoints and alerts."""
        if (waits := describe_waits(self._epochs)) is not None:
            self._run.summarize({"time/no_step": waits})
        read_best = cache(partial(read_predictions, self._config.out))
        self._run.try_to(lambda: self._log_confusion(read_best()), "confusion")
        self._run.try_to(lambda: self._log_mistakes(read_best()), "mistakes")
        self._run.try_to(self._log_checkpoints, "checkpoints")
        if self._judges_end:
            self._run.try_to(self._judge_end, "alerts", needs_server=False)

    def _log_confusion(self, predictions: Predictions | None) -> None:
        if predictions is not None:
            self._run.log({"val/confusion": confusion_table(predictions)})

    def _log_mistakes(self, predictions: Predictions | None) -> None:
        if predictions is not None:
            table = mistakes_table(self._config, self._manifest, predictions, split="val")
            self._run.log({"val/mistakes": table})

    def _log_checkpoints(self) -> None:
        for artifact, aliases in checkpoint_artifacts(self._config):
            self._run.log_artifact(artifact, aliases=aliases)

    def _judge_end(self) -> None:
        config = self._config
        if (result := find_result(config.out)) is not None:
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
    tags = [config.model.backbone[:64], config.model.init, f"data:{manifest.fingerprint[:12]}"]
    return tags if commit is None else [*tags, f"commit:{commit[:12]}"]
