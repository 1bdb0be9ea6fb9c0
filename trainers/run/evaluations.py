"""The folder of an evaluation in its run folder, and its results."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.io import storage
from cluster.io.records import read_object
from cluster.io.uris import name_of
from datasets.manifest import TRAIN_AND_VAL, Manifest
from datasets.manifest_file import read_manifest
from trainers.config import FinetuneConfig
from trainers.run.checkpoint import TrainingProgress


def folder_of(run: str, split: str, *, tta: bool = False, other: str | None = None) -> str:
    """Return the URI of an evaluation's pictures and tables; its JSON is beside the folder.

    Args:
        other: as `name_other` returns it.
    """
    of = f"_of_{other}" if other else ""
    return storage.join(run, f"evaluation_{split}{of}{'_tta' if tta else ''}")


def name_other(
    data: str,
    fingerprint: str,
    config: FinetuneConfig,
    progress: TrainingProgress | None,
    renamed: Sequence[str] = (),
) -> str | None:
    """Return a name for other images than those that a run was trained for, or for classes that
    have other names (`--map`); None for its own, as they are. What is at the URI of its training is
    its own, prepared again or not.

    Args:
        data: absolute URI of the images.
        fingerprint: of the data set there.
        config: of the training.
        progress: of one of its checkpoints.
    """
    known = data == config.data or progress is None or fingerprint == progress.fingerprint
    parts = [] if known else [f"{name_of(data)}-{fingerprint[:6]}"]
    return "-".join([*parts, *(["mapped"] if renamed else [])]) or None


def open_data(
    config: FinetuneConfig, fingerprint: str | None, data: str
) -> tuple[FinetuneConfig, Manifest]:
    """Return a training's config with the data set at `data`, and its manifest.

    The fold is the training's where the images are its own, at the same URI or moved; else 0.

    Args:
        fingerprint: of the data set that the checkpoint trained on.
        data: absolute URI.

    Raises:
        UserError: as `read_manifest`.
    """
    if data == config.data:
        return config, read_manifest(data, config.fold)
    manifest = read_manifest(data)
    if 0 < config.fold < len(manifest.folds):
        own = manifest.with_fold(config.fold)
        if own.fingerprint == fingerprint:
            return replace(config, data=data), own
    return replace(config, data=data, fold=0), manifest


def has_trained_on(
    split: str, fingerprint: str, config: FinetuneConfig, progress: TrainingProgress
) -> bool:
    """Whether images of a split trained the network; False as well where that is not known.

    Args:
        fingerprint: of the data set of the split.
        config: of the training.
        progress: of one of its checkpoints.
    """
    trained = ("train", TRAIN_AND_VAL) if config.validates else ("train", TRAIN_AND_VAL, "val")
    return split in trained and fingerprint == progress.fingerprint


def predictions_uri(folder: str) -> str:
    """Return the URI of an evaluation's predictions, for `predictions.read_table`."""
    return storage.join(folder, "predictions.parquet")


def read_evaluation(
    run: str, split: str, *, epoch: int, fingerprint: str, other: str | None = None
) -> dict[str, Any] | None:
    """Return the content of evaluation_SPLIT.json.

    Args:
        other: as of `folder_of`.

    Returns:
        None where there is none, or one of another epoch's checkpoint, another data set, or with
        classes that had other names (`--map`).
    """
    hints = {"epoch": int, "fingerprint": str, "num_images": int}
    hints |= {f"{split}/{name}": float for name in ("top1", "top5")}
    try:
        known = read_object(f"{folder_of(run, split, other=other)}.json", hints)
    except FileNotFoundError:
        return None
    same = (known["epoch"], known["fingerprint"]) == (epoch, fingerprint)
    return known if same and not known.get("map") else None
