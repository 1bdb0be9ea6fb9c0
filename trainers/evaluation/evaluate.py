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

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.lease import hold_lease
from cluster.io.tables import to_csv
from cluster.runtime import connect
from datasets.manifest import TRAIN_AND_VAL, Manifest
from datasets.manifest_file import read_manifest
from datasets.plan import IGNORE_INDEX
from datasets.prepare.classes import clean
from trainers.evaluation import pictures
from trainers.evaluation.calibrate import calibrated, find_calibration, measure_calibration
from trainers.evaluation.config import EvaluateConfig
from trainers.evaluation.levels import group_classes, measure_levels
from trainers.evaluation.measures import Measures, confusion_matrix, find_confused_pairs, measure
from trainers.evaluation.printing import show
from trainers.evaluation.split import Describe, describe_answers, predict_split, read_views
from trainers.inference.hierarchy import open_hierarchy
from trainers.inference.inference import Network
from trainers.prepare import PrefixFeatures
from trainers.run import folder as run_folder
from trainers.run.checkpoint import TrainingProgress
from trainers.run.evaluations import find_other, folder_of, predictions_uri
from trainers.run.predictions import Predictions
from trainers.stops import too_many_unreadable
from trainers.tracking.evaluation import track_evaluation

NUM_PAIRS = 20
"""Pairs of confused classes that are listed and drawn."""


def run_evaluation(config: EvaluateConfig) -> None:
    """Evaluate and print the result."""
    run_folder.read_config(config.run)
    connect(config.address, quiet=config.json)
    other = find_other(config.run, config.data, config.map)
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
        )
    split = result["split"]
    folder = folder_of(storage.absolute(config.run, "run"), split, tta=config.tta, other=other)
    sync = track_evaluation(config.run, folder, result)
    if config.json:
        print(json.dumps(result, indent=1))
        return
    show(result, split, folder)
    if sync:
        print(f"W&B:      {sync}")


def evaluate(
    run: str, *, split: str | None = None, data: str | None = None, tta: bool = False
) -> Predictions:
    """Predict a split of a run's data set, or of `data`, with its best checkpoint.

    Raises:
        UserError: where the run has no checkpoint, the data set has none of its classes, more
            images are unreadable than its config allows, or the network's outputs are not finite.
    """
    network, _, manifest = _open(run, data)
    return _predict(network, manifest, choose_split(manifest, split, data), tta, renamed=())


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
    prefix: PrefixFeatures | None = None,
    on_measured: Callable[[Measures], None] = lambda measures: None,
) -> dict[str, Any]:
    """Evaluate a run on a split of its data set, or of `data`; write what the module lists.

    A checkpoint that has no calibration is calibrated first.

    Args:
        split: by default as `choose_split`.
        renamed: classes of the data set and of the network, as DATA=NETWORK.
        coverage, refused, hierarchy, least_probability: as of EvaluateConfig.
        prefix: as of `predict_split`.
        on_measured: called before pictures are drawn and anything is written.

    Returns:
        The content of evaluation_SPLIT.json.

    Raises:
        UserError: as `evaluate`.
    """
    network, progress, manifest = _open(run, data)
    split = choose_split(manifest, split, data)
    matched = match_classes(manifest, split, network, renamed)
    calibration, reason = None, "not with --tta: its probabilities are means of two"
    if not tta:
        trained = replace(network, config=run_folder.read_config(run))
        calibration, reason = find_calibration(run, trained, progress, prefix=prefix)
    levels = None if hierarchy is None else open_hierarchy(hierarchy, network.classes)
    describe = partial(
        describe_answers,
        calibration=calibration,
        coverage=coverage,
        hierarchy=levels,
        least_probability=least_probability,
    )
    predictions = _predict(
        network, manifest, split, tta, renamed=renamed, describe=describe, prefix=prefix
    )
    measures, pairs = measure(predictions), find_confused_pairs(predictions, NUM_PAIRS)
    on_measured(measures)
    scaled: Measures | None = None
    calibrated_means: dict[str, float] = {}
    found: dict[str, Any] | None = None
    if calibration is not None:
        in_sample = split == "val" and manifest.fingerprint == calibration.fingerprint
        scaled = None if in_sample else measure(calibrated(predictions))
        calibrated_means = {
            f"{split}/calibrated_ece": scaled.ece if scaled else calibration.ece_after,
            f"{split}/calibrated_loss": scaled.loss if scaled else calibration.loss_after,
        }
        found = measure_calibration(predictions, calibration, coverage=coverage, refused=refused)
    confusion_KK = confusion_matrix(predictions)
    rows_N = [pair.row for pair in pairs]
    examples = [*read_views(network.config, manifest, split, rows_N)] if pairs else []
    result = {
        **{f"{split}/{name}": value for name, value in measures.means().items()},
        **calibrated_means,
        "calibration": found,
        "not_calibrated": reason,
        "hierarchy": levels and measure_levels(predictions, levels),
        "split": split,
        "num_images": measures.num_images,
        "not_scored": matched.not_scored,
        "map": list(renamed),
        "lost": list(predictions.unreadable),
        "tta": tta,
        "epoch": progress.epoch,
        "data": network.config.data,
        "fingerprint": manifest.fingerprint,
        "most_confused": [pair.to_dict() for pair in pairs],
        "per_class": measures.per_class(network.classes),
        "reliability": measures.reliability(),
    }
    files = {
        "confusion.png": pictures.draw_confusion(confusion_KK, measures, network.classes),
        "confused_pairs.png": pictures.draw_confused_pairs(pairs, examples),
        "reliability.png": pictures.draw_reliability(
            scaled or measures, before=scaled and measures
        ),
        "confusion.csv": to_csv(
            ["true \\ predicted", *network.classes],
            zip(network.classes, *confusion_KK.T.tolist(), strict=True),
        ),
        "per_class.csv": to_csv(
            result["per_class"][0], (row.values() for row in result["per_class"])
        ),
    }
    if levels is not None:
        grouped = group_classes(predictions, levels, 0)
        files["confusion_grouped.png"] = pictures.draw_confusion(
            confusion_matrix(grouped), measure(grouped), grouped.classes
        )
    run = storage.absolute(run, "run")
    folder = folder_of(run, split, tta=tta, other=find_other(run, data, renamed))
    storage.write_parquet(predictions_uri(folder), predictions.table)
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)
    storage.write_bytes(f"{folder}.json", json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def _open(run: str, data: str | None) -> tuple[Network, TrainingProgress, Manifest]:
    """Load the best checkpoint, and the manifest of the data set to evaluate on."""
    run = storage.absolute(run, "run")
    config, progress, model = run_folder.load_best_model(run, ensembles=True)
    data = storage.absolute(data or config.data, "data")
    if data != config.data:
        config = replace(config, data=data, fold=0)
    manifest = read_manifest(data, config.fold)
    network = Network(model=model, config=config, classes=progress.classes, origin=run)
    return network, progress, manifest


def choose_split(manifest: Manifest, split: str | None, data: str | None) -> str:
    """Return the split to evaluate: test, or all images of other data that has no test split."""
    if split is not None or "test" in manifest.splits or data is None:
        return split or "test"
    return TRAIN_AND_VAL if "train" in manifest.splits else next(iter(manifest.splits))


@dataclass(frozen=True, kw_only=True)
class MatchedClasses:
    """The classes of a data set and those of a network."""

    index_K: np.ndarray
    """Of each class of the data set, the network's; IGNORE_INDEX where it has none."""
    not_scored: dict[str, int]
    """Images of the classes that the network does not have."""


def match_classes(
    manifest: Manifest, split: str, network: Network, renamed: Sequence[str] = ()
) -> MatchedClasses:
    """Match the classes of a data set with a network's by name.

    Raises:
        UserError: where no image of the split is of a class of the network, and for names in
            `renamed` that neither has.
    """
    number_of = {clean(name): number for number, name in enumerate(network.classes)}
    given, other_name = set(map(clean, manifest.classes)), dict[str, str]()
    for pair in renamed:
        parts = pair.split("=")  # a name may have one as well
        cuts = range(1, len(parts))
        named = [(clean("=".join(parts[:at])), clean("=".join(parts[at:]))) for at in cuts]
        known = [(ours, theirs) for ours, theirs in named if ours in given and theirs in number_of]
        require(
            len(known) == 1,
            "map",
            pair,
            f"use DATA=NETWORK, a class of {', '.join(manifest.classes[:3])} ... and one of "
            f"{', '.join(network.classes[:3])} ...",
        )
        ((ours, theirs),) = known
        require(
            other_name.get(ours, theirs) == theirs,
            "map",
            pair,
            f"{ours!r} is mapped to {other_name.get(ours)!r} as well: leave one of the two out",
        )
        other_name.update(known)
    names = [other_name.get(clean(name), clean(name)) for name in manifest.classes]
    index_K = np.array([number_of.get(name, IGNORE_INDEX) for name in names], np.int64)
    counts = manifest.split(split).class_counts
    not_scored = {
        name: count
        for name, count, index in zip(manifest.classes, counts, index_K, strict=True)
        if count and index == IGNORE_INDEX
    }
    if sum(not_scored.values()) == sum(counts):
        raise UserError(
            f"run is {network.origin!r}: its checkpoint has {len(network.classes)} classes "
            f"({network.classes[0]} ...), the data set {network.config.data} has "
            f"{len(manifest.classes)} ({manifest.classes[0]} ...), none of them the same; give the "
            "pairs with --map DATA=NETWORK, or evaluate on the data it was trained for"
        )
    return MatchedClasses(index_K=index_K, not_scored=not_scored)


def _predict(
    network: Network,
    manifest: Manifest,
    split: str,
    tta: bool,
    *,
    renamed: Sequence[str],
    describe: Describe | None = None,
    prefix: PrefixFeatures | None = None,
) -> Predictions:
    matched = match_classes(manifest, split, network, renamed)
    predictions = predict_split(
        network,
        manifest,
        split,
        tta=tta,
        index_K=matched.index_K,
        describe=describe,
        prefix=prefix,
    )
    num_unreadable, ingest = predictions.num_unreadable, network.config.ingest
    if too_many_unreadable(network.config, num_unreadable, manifest.split(split).num_images):
        raise UserError(
            f"ingest.max_bad_fraction is {ingest.max_bad_fraction}: {num_unreadable} {split} "
            f"images could not be read: {predictions.unreadable[0]} ...; repair the data, or "
            "prepare it again"
        )
    if not math.isfinite(measure(predictions).loss):
        raise UserError(
            f"run is {network.origin!r}: the outputs of its network are not finite; train it again "
            "with a lower optim.learning_rate"
        )
    return predictions
