"""The folder of an evaluation in its run folder, and its results."""

from collections.abc import Sequence
from typing import Any

from cluster.io import storage
from cluster.io.records import read_object
from cluster.io.uris import name_of
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
