"""Options of `zoo`."""

from dataclasses import dataclass
from typing import Annotated

from cluster.io.errors import require, require_at_least
from cluster.io.markers import URI


@dataclass(frozen=True, kw_only=True)
class ZooConfig:
    """Print a table of networks: size, published accuracy, depth, and time of an inference step on
    this machine. Write it as zoo.csv.

      python -m trainers zoo --classes 196
      python -m trainers zoo --backbones resnet50 mobilenet_v2 --batch-size 32
      python -m trainers zoo --backbones 'vit_small*dinov2*' --no-time
      python -m trainers zoo --lecture --batch-size 32
      python -m trainers zoo --no-time --json
    """

    classes: int = 1000
    """Classes of the head. The head is part of size and parameters."""
    backbones: tuple[str, ...] = ()
    """Networks to list: names, or patterns of timm's weight names, such as 'vit_*dinov2*'. Default:
    the networks of Keras Applications; timing them all takes minutes."""
    lecture: bool = False
    """Print the table of Keras Applications row by row: published numbers beside those measured
    here."""
    time: bool = True
    """Time an inference step of each network, on the CPU and on the GPU if there is one."""
    batch_size: int = 1
    """Images per timed step."""
    out: Annotated[str, URI] = "runs/zoo"
    """URI of the folder for zoo.csv."""
    json: bool = False
    """Print the rows as JSON instead of a table."""

    def __post_init__(self) -> None:
        require_at_least("classes", self.classes, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require(
            not (self.lecture and self.backbones),
            "backbones",
            self.backbones,
            "--lecture prints the lecture's networks: leave one of the two out",
        )
