"""Options of `audit` (standard library only)."""

from dataclasses import dataclass
from typing import Annotated

from cluster.io.errors import require_between
from cluster.io.markers import URI
from datasets.config import MAX_FOLDS


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Find faults of a prepared data set: near duplicates, dark, blank, tiny and thin images, class
    balance.

      python -m datasets audit --data runs/cars

    `python -m trainers audit` does the same. With the features of a pretrained network, it also
    finds label errors, outliers and splits that differ.

    OUT/audit.html shows the images; OUT/exclude.csv is for `prepare --exclude`.
    """

    data: Annotated[str, URI]
    """URI of a prepared data set."""
    fold: int = 0
    """Validation fold of a data set with folds; the other folds train."""
    out: Annotated[str, URI] = "runs/audit"
    """URI of the folder for the page and the lists."""
    max_shown: int = 48
    """Images per check on the page; the lists have all images."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require_between("fold", self.fold, 0, MAX_FOLDS)
        require_between("max_shown", self.max_shown, 0, 1000)
