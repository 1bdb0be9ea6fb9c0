"""Options of `audit` (standard library only)."""

from dataclasses import dataclass
from typing import Annotated

from cluster.io.errors import require_between
from cluster.io.markers import URI
from datasets.audit.config import AuditConfig
from trainers.inference.config import FrozenConfig


@dataclass(frozen=True, kw_only=True)
class FeatureAuditConfig(FrozenConfig):
    """Find faults of a prepared data set: label errors, outliers, splits that differ, near
    duplicates, dark, blank, tiny and thin images, class balance.

      python -m trainers audit --data runs/cars

      python -m trainers audit --data runs/cars --backbone mobilenet_v2 --init file
          --weights mobilenet_v2_imagenet.pth --normalization half

    One pass computes the features of the frozen network, which `advise` and sweeps share. `python
    -m datasets audit` runs the checks that need no network.

    OUT/audit.html shows the images; OUT/exclude.csv is for `prepare --exclude`.
    """

    out: Annotated[str, URI] = AuditConfig.out
    """URI of the folder for the page and the lists."""
    max_shown: int = AuditConfig.max_shown
    """Images per check on the page; the lists have all images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("max_shown", self.max_shown, 0, 1000)
