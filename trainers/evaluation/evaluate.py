"""Measure a run's best checkpoint on a split, each image exactly once, and show where it errs.

    RUN/evaluation_SPLIT/confusion.png, confused_pairs.png, reliability.png
                         confusion.csv, per_class.csv, predictions.parquet
    RUN/evaluation_SPLIT.json    written last

With test-time augmentation SPLIT becomes SPLIT_tta. N images of the split.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.tables import to_csv
from cluster.runtime import connect, find_resources
from cluster.scaling import in_process
from datasets.shards import Manifest, read_manifest
from trainers.config import FinetuneConfig
from trainers.evaluation import pictures
from trainers.evaluation.answers import measure, read_views
from trainers.evaluation.config import EvaluateConfig
from trainers.evaluation.scores import Measures
from trainers.launch import worker_here
from trainers.prepare import plan_limits, plan_training
from trainers.run import folder as run_folder
from trainers.run.evaluations import PREDICTIONS, folder_of
from trainers.state import place_model
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
    result = evaluate(config.run, split=config.split, data=config.data, tta=config.tta)
    sync = track_evaluation(config.run, config.split, result, tta=config.tta)
    if config.json:
        print(json.dumps(result, indent=1))
        return
    show(result, config.split, folder_of(config.run, config.split, tta=config.tta))
    if sync:
        print(f"W&B:      {sync}")


def evaluate(
    run: str, *, split: str = "test", data: str | None = None, tta: bool = False
) -> dict[str, Any]:
    """Evaluate a run on a split of its data set, or of `data`; write what the module lists.

    Returns:
        What evaluation_SPLIT.json holds; `Measures.to_dict` says what a share of nothing is.

    Raises:
        UserError: where the run has no checkpoint, its classes are not those of the data set, more
            images are lost than its config allows, or the network's answers are not finite.
    """
    run = storage.absolute(run, "run")
    config, progress, model = run_folder.load_best_model(run)
    config = replace(
        config,
        data=storage.absolute(data or config.data, "data"),
        ingest=replace(config.ingest, ingest="stream"),  # each image is read once
    )
    manifest = read_manifest(config.data)
    check_classes(run, progress.classes, config.data, manifest)
    config = replace(config, cluster=in_process(config.cluster))
    resources = find_resources()
    workers = plan_training(config, resources)
    place = worker_here(config.cluster, workers)
    limits = replace(plan_limits(config, resources, workers), stream_cpus=None)
    torch.set_num_threads(place.threads)
    place_model(model, config.compute, place.device)
    measures, predictions, unreadable = measure(
        model, config, manifest, place, limits, split=split, tta=tta
    )
    if too_many_unreadable(config, len(unreadable), manifest.split(split).num_images):
        raise UserError(
            f"ingest.max_bad_fraction is {config.ingest.max_bad_fraction}: {len(unreadable)} "
            f"{split} images could not be read: {unreadable[0]} ...; repair the data, or prepare "
            "it again"
        )
    if not math.isfinite(measures.loss):
        raise UserError(
            f"run is {run!r}: the answers of its network are not finite; train it again with a "
            "lower optim.learning_rate"
        )
    pairs = find_pairs(config, manifest, split, measures, predictions)
    result = {
        **{f"{split}/{name}": value for name, value in measures.means().items()},
        "num_images": measures.num_images,
        "lost": unreadable,
        "tta": tta,
        "epoch": progress.epoch,
        "data": config.data,
        "fingerprint": manifest.fingerprint,
        "most_confused": [pair.to_dict() for pair in pairs],
        "per_class": measures.per_class(manifest.classes),
        "reliability": measures.reliability(),
    }
    files = {
        "confusion.png": pictures.draw_confusion(measures, manifest.classes),
        "confused_pairs.png": pictures.draw_confused_pairs(pairs),
        "reliability.png": pictures.draw_reliability(measures),
        "confusion.csv": to_csv(
            ["true \\ predicted", *manifest.classes],
            zip(manifest.classes, *measures.confusion_KK.T.tolist(), strict=True),
        ),
        "per_class.csv": to_csv(
            result["per_class"][0], (row.values() for row in result["per_class"])
        ),
    }
    folder = folder_of(run, split, tta=tta)
    storage.write_parquet(storage.join(folder, PREDICTIONS), predictions)
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)
    storage.write_bytes(f"{folder}.json", json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def check_classes(run: str, classes: Sequence[str], data: str, manifest: Manifest) -> None:
    """Refuse a data set whose classes are not those the checkpoint knows."""
    if tuple(classes) != manifest.classes:
        raise UserError(
            f"run is {run!r}: its checkpoint knows {len(classes)} classes ({classes[0]} ...), "
            f"the data set {data} has {len(manifest.classes)} ({manifest.classes[0]} ...); "
            "evaluate on the data it was trained for"
        )


def find_pairs(
    config: FinetuneConfig,
    manifest: Manifest,
    split: str,
    measures: Measures,
    predictions: pa.Table,
) -> list[pictures.ConfusedPair]:
    """Name the most confused pairs of classes, each with the image it was surest about."""
    pairs, classes = measures.most_confused(NUM_PAIRS), manifest.classes
    if not pairs:
        return []
    label_N, predicted_N = (
        predictions[name].combine_chunks().indices.to_numpy() for name in ("label", "predicted")
    )
    confidence_N, row_N = predictions["confidence"].to_numpy(), predictions["row"].to_numpy()
    surest = [
        row_N[np.where((label_N == true) & (predicted_N == predicted), confidence_N, -1).argmax()]
        for true, predicted in pairs
    ]
    examples = read_views(config, manifest, split, surest)
    return [
        pictures.ConfusedPair(
            true=classes[true],
            predicted=classes[predicted],
            count=int(measures.confusion_KK[true, predicted]),
            num_images=int(measures.support_K[true]),
            example_HWC=example_HWC,
        )
        for (true, predicted), example_HWC in zip(pairs, examples, strict=True)
    ]


def show(result: dict[str, Any], split: str, folder: str) -> None:
    """Print the means, the worst classes, the most confused pairs, and where the rest lies."""
    lost = f", {len(result['lost'])} lost: {result['lost'][0]}" if result["lost"] else ""
    mirrored = " and their mirror images" if result["tta"] else ""
    means = {
        name: result[f"{split}/{name}"] for name in ("top1", "top5", "macro_f1", "ece", "loss")
    }
    print(f"{result['num_images']} {split} images of {result['data']}{mirrored}{lost}")
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
