"""Options of `advise` (standard library only)."""

from dataclasses import dataclass
from typing import Annotated

from cluster.io.errors import require_at_least
from cluster.io.markers import URI
from trainers.inference.config import FrozenConfig


@dataclass(frozen=True, kw_only=True)
class AdviseConfig(FrozenConfig):
    """Recommend how many stages of a pretrained network to freeze for your images.

    One pass computes the features of every stage of the frozen network; a linear classifier is
    trained and validated on each. Two measures (little or much data, similar or different task)
    give one of the lecture's four quadrants, and the quadrant gives the freeze depths to sweep.

      python -m tuning advise --data runs/cars

      python -m tuning advise --data runs/cars --backbone mobilenet_v2 --init file
          --weights mobilenet_v2_imagenet.pth --normalization half

      python -m tuning --from-advice runs/advice
    """

    out: Annotated[str, URI] = "runs/advice"
    """URI of the folder for advice.json and advice.png."""
    little_per_class: int = 100
    """Little data: fewer training images than this in the median class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("little_per_class", self.little_per_class, 1)
