"""Evaluate a run's best checkpoint on a split, each image exactly once.

    RUN/evaluation_SPLIT/confusion.png, confused_pairs.png, reliability.png
                         confusion.csv, per_class.csv, predictions.parquet
                         confusion_grouped.png    of the coarsest level, with --hierarchy
    RUN/evaluation_SPLIT.json    written last

Of another data set than the run's own SPLIT becomes SPLIT_of_NAME-FINGERPRINT, with other names of
classes SPLIT_of_...mapped, and with test-time augmentation SPLIT_tta.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cluster.config import ClusterConfig, Device
from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.json_output import print_json
from cluster.io.lease import hold_lease
from cluster.runtime import connect
from datasets.manifest import TRAIN_AND_VAL, Manifest
from trainers.config import FinetuneConfig
from trainers.evaluation.calibrate import calibrated, find_calibration, measure_calibration
from trainers.evaluation.classes import MatchedClasses, match_classes
from trainers.evaluation.config import EvaluateConfig
from trainers.evaluation.files import draw_files
from trainers.evaluation.levels import measure_levels
from trainers.evaluation.measures import (
    ConfusedPair,
    Measures,
    find_confused_pairs,
    measure,
)
from trainers.evaluation.printing import show
from trainers.evaluation.split import Describe, describe_answers, predict_split, read_views
from trainers.inference.hierarchy import open_hierarchy
from trainers.inference.inference import Network
from trainers.prepare import PrefixFeatures
from trainers.run import folder as run_folder
from trainers.run.calibration import Calibration
from trainers.run.checkpoint import TrainingProgress
from trainers.run.evaluations import (
    folder_of,
    has_trained_on,
    name_other,
    open_data,
    predictions_uri,
)
from trainers.run.predictions import Predictions
from trainers.stops import require_readable
from trainers.tracking.evaluation import track_evaluation
from trainers.tracking.where import require_settings

NUM_PAIRS = 20
"""Pairs of confused classes that are listed and drawn."""


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """A run's best checkpoint, and the data set to evaluate it on."""

    config: FinetuneConfig
    """Of the training, with the device to evaluate on."""
    network: Network
    """Its config is that of the training, with the URI of the data set to evaluate on."""
    progress: TrainingProgress
    manifest: Manifest

    def name_other(self, renamed: Sequence[str]) -> str | None:
        """Return what distinguishes the folder of the evaluation, as `evaluations.name_other`."""
        data, fingerprint = self.network.config.data, self.manifest.fingerprint
        return name_other(data, fingerprint, self.config, self.progress, renamed)


def run_evaluation(config: EvaluateConfig) -> None:
    """Evaluate and print the result."""
    require_settings(run_folder.read_config(config.run).track)
    connect(config.address, quiet=config.json)
    opened = _open(config.run, config.data, config.device)
    other = opened.name_other(config.map)
    writes = folder_of(config.run, config.split or "test", tta=config.tta, other=other)
    with hold_lease(writes, field="run"):
        result = write_evaluation(
            config.run,
            split=config.split,
            data=config.data,
            tta=config.tta,
            renamed=config.map,
            coverage=config.coverage,
            refused=config.refused,
            hierarchy=config.hierarchy,
            least_probability=config.least_probability,
            opened=opened,
        )
    split = result["split"]
    folder = folder_of(storage.absolute(config.run, "run"), split, tta=config.tta, other=other)
    sync = track_evaluation(config.run, folder, result)
    if config.json:
        print_json(result)
        return
    show(result, split, folder)
    if sync:
        print(f"W&B:      {sync}")


def evaluate(
    run: str,
    *,
    split: str | None = None,
    data: str | None = None,
    tta: bool = False,
    device: Device = EvaluateConfig.device,
) -> Predictions:
    """Predict a split of a run's data set, or of `data`, with its best checkpoint.

    Raises:
        UserError: where the run has no checkpoint, the data set has none of its classes, more
            images are unreadable than its config allows, or the network's outputs are not finite.
    """
    opened = _open(run, data, device)
    split = choose_split(opened.manifest, split, data)
    return _predict(opened, split, match_classes(opened.manifest, split, opened.network), tta=tta)


def write_evaluation(
    run: str,
    *,
    split: str | None = None,
    data: str | None = None,
    tta: bool = False,
    renamed: Sequence[str] = (),
    coverage: float = EvaluateConfig.coverage,
    refused: float = EvaluateConfig.refused,
    hierarchy: str | None = None,
    least_probability: float = EvaluateConfig.least_probability,
    device: Device = EvaluateConfig.device,
    prefix: PrefixFeatures | None = None,
    opened: OpenedRun | None = None,
    on_measured: Callable[[Measures], None] = lambda measures: None,
) -> dict[str, Any]:
    """Evaluate a run on a split of its data set, or of `data`; write what the module lists.

    A checkpoint that has no calibration is calibrated first.

    Args:
        split: by default as `choose_split`.
        renamed: classes of the data set and of the network, as DATA=NETWORK.
        coverage, refused, hierarchy, least_probability, device: as of EvaluateConfig.
        prefix: as of `predict_split`.
        opened: the run and `data`, where they were read before; it has a device.
        on_measured: called before pictures are drawn and anything is written.

    Returns:
        The content of evaluation_SPLIT.json.

    Raises:
        UserError: as `evaluate`.
    """
    opened = opened or _open(run, data, device)
    network, manifest = opened.network, opened.manifest
    split = choose_split(manifest, split, data)
    matched = match_classes(manifest, split, network, renamed)
    calibration, reason = None, "not with --tta: its probabilities are means of two"
    if not tta:
        trained = replace(network, config=opened.config)
        calibration, reason = find_calibration(run, trained, opened.progress, prefix=prefix)
    levels = None if hierarchy is None else open_hierarchy(hierarchy, network.classes)
    describe = partial(
        describe_answers,
        calibration=calibration,
        coverage=coverage,
        hierarchy=levels,
        least_probability=least_probability,
    )
    predictions = _predict(opened, split, matched, tta=tta, describe=describe, prefix=prefix)
    measures, pairs = measure(predictions), find_confused_pairs(predictions, NUM_PAIRS)
    on_measured(measures)
    scaled = measure_scaled(predictions, calibration, split, manifest.fingerprint)
    result = {
        **{f"{split}/{name}": value for name, value in measures.means().items()},
        **_calibrated_means(split, calibration, scaled),
        "calibration": calibration
        and measure_calibration(predictions, calibration, coverage=coverage, refused=refused),
        "not_calibrated": reason,
        "hierarchy": levels and measure_levels(predictions, levels),
        "split": split,
        "trained": has_trained_on(split, manifest.fingerprint, opened.config, opened.progress),
        "num_images": measures.num_images,
        "not_scored": matched.not_scored,
        "map": list(renamed),
        "lost": list(predictions.unreadable),
        "tta": tta,
        "epoch": opened.progress.epoch,
        "data": network.config.data,
        "fingerprint": manifest.fingerprint,
        "most_confused": [pair.to_dict() for pair in pairs],
        "per_class": measures.per_class(network.classes),
        "reliability": measures.reliability(),
    }
    examples = _read_examples(opened, split, pairs)
    files = draw_files(predictions, measures, scaled, pairs, examples, levels)
    folder = folder_of(network.origin, split, tta=tta, other=opened.name_other(renamed))
    storage.write_parquet(predictions_uri(folder), predictions.table)
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)
    storage.write_bytes(f"{folder}.json", json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def _open(run: str, data: str | None, device: Device) -> OpenedRun:
    """Load the best checkpoint, and the manifest of the data set to evaluate on."""
    run = storage.absolute(run, "run")
    trained, progress, model = run_folder.load_best_model(run, ensembles=True)
    trained = replace(trained, cluster=ClusterConfig(device=device))
    data = storage.absolute(data or trained.data, "data")
    config, manifest = open_data(trained, progress.fingerprint, data)
    network = Network(model=model, config=config, classes=progress.classes, origin=run)
    return OpenedRun(config=trained, network=network, progress=progress, manifest=manifest)


def choose_split(manifest: Manifest, split: str | None, data: str | None) -> str:
    """Return the split to evaluate: test, or all images of other data that has no test split."""
    if split is not None or "test" in manifest.splits or data is None:
        return split or "test"
    return TRAIN_AND_VAL if "train" in manifest.splits else next(iter(manifest.splits))


def measure_scaled(
    predictions: Predictions, calibration: Calibration | None, split: str, fingerprint: str
) -> Measures | None:
    """Measure with calibration; None without one, and where it was fitted on what this network
    predicts for these images."""
    if calibration is None:
        return None
    is_fit = split == "val" and fingerprint == calibration.fingerprint
    if is_fit and calibration.origin is None:
        return None
    return measure(calibrated(predictions))


def _calibrated_means(
    split: str, calibration: Calibration | None, scaled: Measures | None
) -> dict[str, float]:
    """Return ECE and loss with calibration; those of its fit where it was fitted on the split."""
    if calibration is None:
        return {}
    return {
        f"{split}/calibrated_ece": scaled.ece if scaled else calibration.ece_after,
        f"{split}/calibrated_loss": scaled.loss if scaled else calibration.loss_after,
    }


def _read_examples(
    opened: OpenedRun, split: str, pairs: Sequence[ConfusedPair]
) -> list[np.ndarray]:
    if not pairs:
        return []
    rows_N = [pair.row for pair in pairs]
    return [*read_views(opened.network.config, opened.manifest, split, rows_N)]


def _predict(
    opened: OpenedRun,
    split: str,
    matched: MatchedClasses,
    *,
    tta: bool,
    describe: Describe | None = None,
    prefix: PrefixFeatures | None = None,
) -> Predictions:
    network, manifest = opened.network, opened.manifest
    predictions = predict_split(
        network,
        manifest,
        split,
        tta=tta,
        index_K=matched.index_K,
        describe=describe,
        prefix=prefix,
    )
    if names := predictions.unreadable:
        num_images = manifest.split(split).num_images
        require_readable(network.config, predictions.num_unreadable, num_images, split, names[0])
    if not math.isfinite(measure(predictions).loss):
        raise UserError(
            f"run is {network.origin!r}: the outputs of its network are not finite; train it again "
            "with a lower optim.learning_rate"
        )
    return predictions
