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

    One pass computes the features of every stage of the frozen network, and a linear classifier is
    trained and validated on each stage. The size of the data and the similarity of the task give
    the line `Lecture:`, a rule of thumb. Then a few freeze depths race: they train the first epochs
    of a sweep's trials. The line `Advice:` is the depth with the least expected loss of accuracy.

    With --backbones, one pass computes the features of several networks. They are ranked by their
    best linear classifier, with time and memory per image. Each has its own advice in OUT/NAME.
    Only the depths of the best network race.

      python -m tuning advise --data runs/cars

      python -m tuning advise --data runs/cars --backbone mobilenet_v2 --init file
          --weights mobilenet_v2_imagenet.pth --normalization half

      python -m tuning advise --data runs/cars --backbones fast
      python -m tuning advise --data runs/cars
          --backbones resnet50 mobilenet_v2=mobilenet_v2_imagenet.pth@half vit_tiny_patch16_224=he

      python -m tuning --from-advice runs/advice
    """

    backbones: tuple[str, ...] = ()
    """Networks to compare, instead of --backbone: names of `python -m trainers zoo` or of timm, or
    the sets `fast`, `accurate` and `all`. NAME=INIT or NAME=URI sets the initial weights of a
    network, NAME=URI@half also its normalization; else --init and --normalization do."""

    out: Annotated[str, URI] = "runs/advice"
    """URI of the folder for advice.json and advice.png."""
    little_per_class: int = 100
    """Data is little if the median class has fewer training images than this."""
    race: bool = True
    """Train a few freeze depths for some epochs. Without the race, the sweep has its default freeze
    depths."""
    epochs: int | None = None
    """Epochs of the trials of the sweep that the race predicts. Default: those of a sweep."""
    global_batch_size: int | None = None
    """Images per step in the race. Default: that of a sweep, or all images if there are fewer."""
    num_workers: int | None = None
    """DDP workers of the race's trainings; 0 trains in this process. Default: one per GPU, or one
    per node without GPUs."""
    policy: Policy | None = None
    """Augmentation of the race's training images. Default: that of a sweep."""

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
