"""Options of `advise` (standard library only)."""

from dataclasses import dataclass
from typing import Annotated

from cluster.io.errors import require, require_at_least
from cluster.io.markers import URI
from datasets.config import Policy
from trainers.inference.config import FrozenConfig


@dataclass(frozen=True, kw_only=True)
class AdviseConfig(FrozenConfig):
    """Recommend how many stages of a pretrained network to freeze for your images.

    One pass computes the features of every stage of the frozen network; a linear classifier is
    trained and validated on each. Two measures (little or much data, similar or different task)
    give one of the lecture's four quadrants. Then a race: a few freeze depths train the first
    epochs of a sweep's trials. The depth with the smallest expected loss of accuracy is advised.

    With --backbones, one pass computes the features of several networks. They are ranked by the
    best linear classifier, beside what an image costs; each has its own advice in OUT/NAME. Only
    the depths of the best one race.

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
    race: bool = True
    """Train at a few freeze depths for some epochs. Without it, the depths to sweep are those that
    a sweep has by default."""
    epochs: int | None = None
    """Epochs of the sweep's trials, which the race is to predict. Default: as a sweep."""
    global_batch_size: int | None = None
    """Images per step in the race. Default: as a sweep, or all where there are fewer."""
    num_workers: int | None = None
    """DDP workers of the race's trainings; 0 trains in this process. Default: one per GPU, or one
    per node without GPUs."""
    policy: Policy | None = None
    """Augmentation of the race's training images. Default: as a sweep."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.backbones or self.weights is None,
            "weights",
            self.weights,
            "each of --backbones has its own: give NAME=URI there",
        )
        require_at_least("little_per_class", self.little_per_class, 1)
        require_at_least("num_workers", self.num_workers, 0)
        require_at_least("epochs", self.epochs, 1)
        require_at_least("global_batch_size", self.global_batch_size, 1)
