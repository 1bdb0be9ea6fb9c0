"""Compare two runs on the same images.

    OUT/compare.json, per_class.csv, changes.csv, changes.png

N images, K classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.lease import hold_lease
from cluster.io.statistics import count_discordant, mcnemar
from cluster.io.tables import to_csv
from cluster.runtime import connect
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from trainers.config import FinetuneConfig
from trainers.evaluation.config import CompareConfig
from trainers.evaluation.evaluate import write_evaluation
from trainers.evaluation.pictures import Change, draw_changes
from trainers.evaluation.split import read_views
from trainers.run import checkpoint
from trainers.run import folder as run_folder
from trainers.run.checkpoint import TrainingProgress
from trainers.run.evaluations import (
    folder_of,
    has_trained_on,
    name_other,
    open_data,
    predictions_uri,
    read_evaluation,
)
from trainers.run.predictions import Predictions, read_table

NUM_SHOWN = 5
"""Classes that the terminal shows, gains and losses each."""
NUM_DRAWN = 24
"""Images on the sheet."""


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One of two runs, and the data set to compare on."""

    run: str
    config: FinetuneConfig
    """Of its training."""
    progress: TrainingProgress | None
    """Of its latest checkpoint."""
    measured: FinetuneConfig
    """The config, with the data set to compare on."""
    manifest: Manifest

    def has_trained_on(self, split: str) -> bool:
        return self.progress is not None and has_trained_on(
            split, self.manifest.fingerprint, self.config, self.progress
        )


def run_compare(config: CompareConfig) -> None:
    """Compare, print what changed, and fail where the second run is worse.

    Raises:
        SystemExit: with 1 where its top-1 is lower by more than `fail_if_worse`.
    """
    runs = [storage.absolute(run, "runs") for run in config.runs]
    out = storage.absolute(config.out, "out")
    opened = open_runs(runs, config.data, config.split)
    pair = [_evaluate(each, config) for each in opened]
    first, second = match_images(*pair, runs=config.runs)
    training, manifest = opened[0].measured, opened[0].manifest
    result = compare(first, second) | {
        "runs": list(config.runs),
        "data": training.data,
        "split": config.split,
        "not_compared": manifest.split(config.split).num_images - len(first.table),
        "trained": [each.has_trained_on(config.split) for each in opened],
    }
    changes = list_changes(first, second)
    files = {
        "changes.csv": to_csv(
            ["path", "label", "before", "after"],
            ([c[name] for name in ("path", "label", "before", "after")] for c in changes),
        ),
        "per_class.csv": to_csv(
            ["class", "images", "recall_before", "recall_after", "change"],
            (row.values() for row in result["per_class"]),
        ),
        "changes.png": _draw(changes[:NUM_DRAWN], training, manifest, config.split),
        "compare.json": json.dumps(result, indent=1, allow_nan=False).encode(),
    }
    with hold_lease(out):
        for name, content in files.items():
            storage.write_bytes(storage.join(out, name), content)
    show(result, config.out)
    limit = config.fail_if_worse
    if limit is not None and result["change"] < -limit:
        print(f"Worse by {-result['change']:.4f}, more than --fail-if-worse {limit}")
        raise SystemExit(1)


def _draw(
    changes: Sequence[dict[str, Any]], training: FinetuneConfig, manifest: Manifest, split: str
) -> bytes:
    images = read_views(training, manifest, split, [change["row"] for change in changes])
    return draw_changes(
        [
            Change(
                image_HWC=image_HWC,
                true=change["label"],
                before=change["before"],
                after=change["after"],
            )
            for change, image_HWC in zip(changes, images, strict=True)
        ]
    )


def open_runs(runs: Sequence[str], data: str | None, split: str) -> list[ComparedRun]:
    """Open two runs, each with its own data set or with `data`.

    Raises:
        UserError: where the images of the split are not the same.
    """
    first, second = opened = [_open(run, data) for run in runs]
    if first.manifest.fingerprint == second.manifest.fingerprint:
        return opened
    # The fingerprint of a fold is its own; folds of one data set have the test images in common.
    whole = [read_manifest(each.measured.data).fingerprint for each in opened]
    if whole[0] != whole[1]:
        raise UserError(
            f"runs are of the data sets {first.config.data} and {second.config.data}, which have "
            "other images: give --data URI to compare both on one"
        )
    if split != "test":
        raise UserError(
            f"fold is {first.measured.fold} and {second.measured.fold}: the {split} images of the "
            "runs differ; use --split test, or runs of one fold"
        )
    return opened


def _open(run: str, data: str | None) -> ComparedRun:
    config, progress = run_folder.read_config(run), checkpoint.latest_progress(run)
    at = config.data if data is None else storage.absolute(data, "data")
    measured, manifest = open_data(config, progress and progress.fingerprint, at)
    return ComparedRun(
        run=run, config=config, progress=progress, measured=measured, manifest=manifest
    )


def _evaluate(opened: ComparedRun, config: CompareConfig) -> Predictions:
    """Return a run's predictions; evaluate it unless it has been on this data set."""
    run, split, data = opened.run, config.split, opened.measured.data
    progress, fingerprint = opened.progress, opened.manifest.fingerprint
    other = name_other(data, fingerprint, opened.config, progress)
    known = progress and read_evaluation(
        run, split, epoch=progress.best_epoch, fingerprint=fingerprint, other=other
    )
    if not known:
        connect(config.address)
        write_evaluation(run, split=split, data=data, device=config.device)
    return read_table(predictions_uri(folder_of(run, split, other=other)))


def match_images(
    first: Predictions, second: Predictions, *, runs: Sequence[str]
) -> tuple[Predictions, Predictions]:
    """Return both predictions of the images that both have, in the same order.

    Raises:
        UserError: where there is none, or an image in the same row is another.
    """
    numbers = [predictions.table["row"].to_numpy() for predictions in (first, second)]
    _, at_first, at_second = np.intersect1d(*numbers, return_indices=True)
    require(len(at_first) > 0, "runs", list(runs), "no image has predictions of both")
    classes = tuple(dict.fromkeys([*first.classes, *second.classes]))
    pairs = ((first, at_first), (second, at_second))
    same = [replace(part, table=part.table.take(at), classes=classes) for part, at in pairs]
    ids = [part.table["image_id"].to_numpy() for part in same]
    require(
        np.array_equal(*ids),
        "runs",
        list(runs),
        "their predictions are of other images; evaluate both again, on one data set",
    )
    return same[0], same[1]


def compare(first: Predictions, second: Predictions) -> dict[str, Any]:
    """Return how accuracy changed from the first predictions to the second, of the same images,
    over all of them and class by class, the largest gain first."""
    before_N, after_N, label_N = first.is_correct_N, second.is_correct_N, first.label_N
    losses, gains = count_discordant(before_N, after_N)
    support_K, before_K, after_K = (
        np.bincount(label_N[chosen_N], minlength=len(first.classes))
        for chosen_N in (np.ones(len(label_N), bool), before_N, after_N)
    )
    rows = [
        {
            "class": first.classes[label],
            "images": int(support_K[label]),
            "recall_before": before_K[label] / support_K[label],
            "recall_after": after_K[label] / support_K[label],
            "change": (after_K[label] - before_K[label]) / support_K[label],
        }
        for label in np.flatnonzero(support_K)
    ]
    return {
        "num_images": len(label_N),
        "top1": [float(before_N.mean()), float(after_N.mean())],
        "change": float(after_N.mean() - before_N.mean()),
        "gains": gains,
        "losses": losses,
        "p_value": mcnemar(losses, gains),
        "per_class": sorted(rows, key=lambda row: -row["change"]),
    }


def list_changes(first: Predictions, second: Predictions) -> list[dict[str, Any]]:
    """Return the images that one of two runs gets right: losses and gains in turns, those of
    highest confidence first."""
    changed_N = first.is_correct_N != second.is_correct_N
    confidence_N = np.maximum(first.numbers("confidence"), second.numbers("confidence"))
    before, after = first.table.to_pylist(), second.table.to_pylist()
    order_N = [at for at in np.argsort(-confidence_N, kind="stable") if changed_N[at]]
    of_kind: dict[bool, int] = {True: 0, False: 0}
    turns = []
    for at in order_N:
        is_gain = bool(second.is_correct_N[at])
        turns.append((of_kind[is_gain], is_gain, at))
        of_kind[is_gain] += 1
    return [
        {
            "row": before[at]["row"],
            "path": before[at]["path"],
            "label": before[at]["label"],
            "before": before[at]["predicted"],
            "after": after[at]["predicted"],
        }
        for _, _, at in sorted(turns)
    ]


def show(result: dict[str, Any], out: str) -> None:
    """Print the change, its test, and the classes that gained and lost most."""
    before, after = result["top1"]
    print(f"{result['num_images']} {result['split']} images of {result['data']}")
    if result["not_compared"]:
        print(
            f"Not compared: {result['not_compared']}, unreadable or of classes that one of the two "
            "networks does not have"
        )
    for run, trained in zip(result["runs"], result["trained"], strict=True):
        if trained:
            print(f"These images trained {run}: its accuracy on others may be lower (--split test)")
    print(
        f"top-1 {before:.4f} -> {after:.4f} ({result['change']:+.4f}): {result['gains']} images "
        f"gained, {result['losses']} lost; McNemar's exact test p = {result['p_value']:.3g}"
    )
    rows = result["per_class"]
    gained = [row for row in rows if row["change"] > 0][:NUM_SHOWN]
    lost = [row for row in reversed(rows) if row["change"] < 0][:NUM_SHOWN]
    for title, shown in (("Gained", gained), ("Lost", lost)):
        if shown:
            print(f"\n{title}\nrecall          change  images  class")
        for row in shown:
            print(
                f"{row['recall_before']:.3f} -> {row['recall_after']:.3f}  {row['change']:+.3f}  "
                f"{row['images']:6}  {row['class']}"
            )
    print(f"\nPictures: {out}/changes.png; tables: changes.csv, per_class.csv, compare.json")
