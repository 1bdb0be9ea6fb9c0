"""Evaluate a run's best checkpoint on a split, each image exactly once.

    RUN/evaluation_SPLIT/confusion.png, confused_pairs.png, reliability.png
                         confusion.csv, per_class.csv, predictions.parquet
    RUN/evaluation_SPLIT.json    written last

With test-time augmentation SPLIT becomes SPLIT_tta.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.tables import to_csv
from cluster.runtime import connect
from datasets.shards import Manifest, read_manifest
from trainers.evaluation import pictures
from trainers.evaluation.config import EvaluateConfig
from trainers.evaluation.measures import confusion_matrix, find_confused_pairs, measure
from trainers.evaluation.split import predict_split, read_views
from trainers.inference.inference import Network
from trainers.run import folder as run_folder
from trainers.run.checkpoint import TrainingProgress
from trainers.run.evaluations import folder_of, predictions_uri
from trainers.run.predictions import Predictions
from trainers.stops import too_many_unreadable
from trainers.tracking.evaluation import track_evaluation

NUM_PAIRS = 20
"""Pairs of confused classes that are listed and drawn."""
NUM_SHOWN = 5
"""Classes, and pairs, that the terminal shows."""


def run_evaluation(config: EvaluateConfig) -> None:
    """Evaluate and print the result."""
    run_folder.read_config(config.run)
    connect(config.address, quiet=config.json)
    result = write_evaluation(config.run, split=config.split, data=config.data, tta=config.tta)
    sync = track_evaluation(config.run, config.split, result, tta=config.tta)
    if config.json:
        print(json.dumps(result, indent=1))
        return
    show(result, config.split, folder_of(config.run, config.split, tta=config.tta))
    if sync:
        print(f"W&B:      {sync}")


def evaluate(
    run: str, *, split: str = "test", data: str | None = None, tta: bool = False
) -> Predictions:
    """Predict a split of a run's data set, or of `data`, with its best checkpoint.

    Raises:
        UserError: where the run has no checkpoint, its classes are not those of the data set, more
            images are unreadable than its config allows, or the network's outputs are not finite.
    """
    network, _, manifest = _open(run, data)
    return _predict(network, manifest, split, tta)


def write_evaluation(
    run: str, *, split: str = "test", data: str | None = None, tta: bool = False
) -> dict[str, Any]:
    """Evaluate a run on a split of its data set, or of `data`; write what the module lists.

    Returns:
        The content of evaluation_SPLIT.json.

    Raises:
        UserError: as `evaluate`.
    """
    network, progress, manifest = _open(run, data)
    predictions = _predict(network, manifest, split, tta)
    measures, pairs = measure(predictions), find_confused_pairs(predictions, NUM_PAIRS)
    confusion_KK = confusion_matrix(predictions)
    rows_N = [pair.row for pair in pairs]
    examples = [*read_views(network.config, manifest, split, rows_N)] if pairs else []
    result = {
        **{f"{split}/{name}": value for name, value in measures.means().items()},
        "num_images": measures.num_images,
        "lost": list(predictions.unreadable),
        "tta": tta,
        "epoch": progress.epoch,
        "data": network.config.data,
        "fingerprint": manifest.fingerprint,
        "most_confused": [pair.to_dict() for pair in pairs],
        "per_class": measures.per_class(manifest.classes),
        "reliability": measures.reliability(),
    }
    files = {
        "confusion.png": pictures.draw_confusion(confusion_KK, measures, manifest.classes),
        "confused_pairs.png": pictures.draw_confused_pairs(pairs, examples),
        "reliability.png": pictures.draw_reliability(measures),
        "confusion.csv": to_csv(
            ["true \\ predicted", *manifest.classes],
            zip(manifest.classes, *confusion_KK.T.tolist(), strict=True),
        ),
        "per_class.csv": to_csv(
            result["per_class"][0], (row.values() for row in result["per_class"])
        ),
    }
    run = storage.absolute(run, "run")
    folder = folder_of(run, split, tta=tta)
    storage.write_parquet(predictions_uri(run, split, tta=tta), predictions.table)
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)
    storage.write_bytes(f"{folder}.json", json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def _open(run: str, data: str | None) -> tuple[Network, TrainingProgress, Manifest]:
    """Load the best checkpoint, and the manifest of the data set to evaluate on."""
    run = storage.absolute(run, "run")
    config, progress, model = run_folder.load_best_model(run)
    config = replace(config, data=storage.absolute(data or config.data, "data"))
    manifest = read_manifest(config.data)
    check_classes(run, progress.classes, config.data, manifest)
    network = Network(model=model, config=config, classes=progress.classes, origin=run)
    return network, progress, manifest


def _predict(network: Network, manifest: Manifest, split: str, tta: bool) -> Predictions:
    predictions = predict_split(network, manifest, split, tta=tta)
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


def check_classes(run: str, classes: Sequence[str], data: str, manifest: Manifest) -> None:
    """Refuse a data set whose classes are not those of the checkpoint."""
    if tuple(classes) != manifest.classes:
        raise UserError(
            f"run is {run!r}: its checkpoint has {len(classes)} classes ({classes[0]} ...), "
            f"the data set {data} has {len(manifest.classes)} ({manifest.classes[0]} ...); "
            "evaluate on the data it was trained for"
        )


def show(result: dict[str, Any], split: str, folder: str) -> None:
    """Print the means, the worst classes, the most confused pairs, and the files written."""
    unreadable = result["lost"]
    noted = f", {len(unreadable)} unreadable: {unreadable[0]}" if unreadable else ""
    mirrored = " and their mirror images" if result["tta"] else ""
    means = {
        name: result[f"{split}/{name}"] for name in ("top1", "top5", "macro_f1", "ece", "loss")
    }
    print(f"{result['num_images']} {split} images of {result['data']}{mirrored}{noted}")
    print(
        "top-1 {top1:.3f}  top-5 {top5:.3f}  macro F1 {macro_f1:.3f}  ECE {ece:.3f}  "
        "loss {loss:.3f}".format_map(means)
    )
    print("\nWorst classes\n    F1  precision  recall  images  class")
    seen = [row for row in result["per_class"] if row["images"]]
    for row in sorted(seen, key=lambda row: row["f1"])[:NUM_SHOWN]:
        precision = "-" if row["precision"] is None else f"{row['precision']:.3f}"
        print(
            f" {row['f1']:.3f}  {precision:>9}  {row['recall']:6.3f}  {row['images']:6}  "
            f"{row['class']}"
        )
    if result["most_confused"]:
        print("\nMost confused")
    for pair in result["most_confused"][:NUM_SHOWN]:
        print(f"{pair['count']:4} ({pair['share']:.0%})  {pair['true']} -> {pair['predicted']}")
    print(f"\nPictures: {folder}/confusion.png, confused_pairs.png, reliability.png")
    print(f"Tables:   {folder}/confusion.csv, per_class.csv, predictions.parquet; {folder}.json")
