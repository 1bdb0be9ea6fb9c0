"""The folder of an evaluation in its run folder, and its results."""

from typing import Any

from cluster.io import storage
from cluster.io.records import read_object


def folder_of(run: str, split: str, *, tta: bool = False) -> str:
    """Return the URI of an evaluation's pictures and tables; its JSON is beside the folder."""
    return storage.join(run, f"evaluation_{split}_tta" if tta else f"evaluation_{split}")


def predictions_uri(run: str, split: str, *, tta: bool = False) -> str:
    """Return the URI of an evaluation's predictions, for `predictions.read_table`."""
    return storage.join(folder_of(run, split, tta=tta), "predictions.parquet")


def read_evaluation(run: str, split: str, *, epoch: int, fingerprint: str) -> dict[str, Any] | None:
    """Return the content of evaluation_SPLIT.json.

    Returns:
        None where there is none, or one of another epoch's checkpoint, another data set, or with
        classes that had other names (`--map`).
    """
    hints = {"epoch": int, "fingerprint": str, "num_images": int}
    hints |= {f"{split}/{name}": float for name in ("top1", "top5")}
    try:
        known = read_object(f"{folder_of(run, split)}.json", hints)
    except FileNotFoundError:
        return None
    same = (known["epoch"], known["fingerprint"]) == (epoch, fingerprint)
    return known if same and not known.get("map") else None
