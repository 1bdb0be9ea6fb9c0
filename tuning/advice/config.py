"""Options of `advise` (standard library only)."""

from dataclasses import dataclass
from typing import Annotated

from cluster.io.errors import require, require_at_least
from cluster.io.markers import URI
from trainers.inference.config import FrozenConfig


@dataclass(frozen=True, kw_only=True)
class AdviseConfig(FrozenConfig):
    """Recommend how many stages of a pretrained network to freeze for your images.

    One pass computes the features of every stage of the frozen network; a linear classifier is
    trained and validated on each. Two measures (little or much data, similar or different task)
    give one of the lecture's four quadrants, and the quadrant gives the freeze depths to sweep.

    With --backbones, one pass computes the features of several networks. They are ranked by the
    best linear classifier, beside what an image costs; each has its own advice in OUT/NAME.

      python -m tuning advise --data runs/cars

      python -m tuning advise --data runs/cars --backbone mobilenet_v2 --init file
          --weights mobilenet_v2_imagenet.pth --normalization half

      python -m tuning advise --data runs/cars --backbones fast
      python -m tuning advise --data runs/cars
          --backbones resnet50 mobilenet_v2=mobilenet_v2_imagenet.pth@half vit_tiny_patch16_224=he

      python -m tuning --from-advice runs/advice
    """

    backbones: tuple[str, ...] = ()
    """Networks to compare, instead of --backbone: names of timm or of `python -m trainers zoo`, or
    the sets `fast`, `accurate` and `all`. NAME=INIT or NAME=URI set the initial weights of one,
    NAME=URI@half their normalization; else --init and --normalization do."""

    out: Annotated[str, URI] = "runs/advice"
    """URI of the folder for advice.json and advice.png."""
    little_per_class: int = 100
    """Little data: fewer training images than this in the median class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.backbones or self.weights is None,
            "weights",
            self.weights,
            "each of --backbones has its own: give NAME=URI there",
        )
        require_at_least("little_per_class", self.little_per_class, 1)
