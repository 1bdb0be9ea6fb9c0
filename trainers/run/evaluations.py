"""Where an evaluation lies in its run folder, and whether there is one."""

from typing import Any

from cluster.io import storage
from cluster.io.records import read_object

PREDICTIONS = "predictions.parquet"


def folder_of(run: str, split: str, *, tta: bool = False) -> str:
    """Return where an evaluation's pictures and tables lie; its JSON lies beside the folder."""
    return storage.join(run, f"evaluation_{split}_tta" if tta else f"evaluation_{split}")


def read_evaluation(run: str, split: str, *, epoch: int, fingerprint: str) -> dict[str, Any] | None:
    """Return what evaluation_SPLIT.json holds where it is of the checkpoint of that epoch and of
    the data set with that fingerprint; None for any other, and where there is none."""
    hints = {"epoch": int, "fingerprint": str, "num_images": int}
    hints |= {f"{split}/{name}": float for name in ("top1", "top5")}
    try:
        known = read_object(f"{folder_of(run, split)}.json", hints)
    except FileNotFoundError:
        return None
    return known if (known["epoch"], known["fingerprint"]) == (epoch, fingerprint) else None
