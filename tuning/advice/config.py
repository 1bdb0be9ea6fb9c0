"""Options of `advise` (standard library only)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cluster.config import Device
from cluster.io.errors import require_at_least, require_between
from cluster.io.markers import URI
from datasets.config import SIZES_PX, IngestConfig
from trainers.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class AdviseConfig:
    """Recommend how many stages of a pretrained network to freeze for your images.

    One pass computes the features of every stage of the frozen network; a linear classifier is
    trained and validated on each. Two measures (little or much data, similar or different task)
    give one of the lecture's four quadrants, and the quadrant gives the freeze depths to sweep.

      python -m tuning advise --data runs/cars

      python -m tuning advise --data runs/cars --backbone mobilenet_v2 --init file
          --weights mobilenet_v2_imagenet.pth --normalization half

      python -m tuning --from-advice runs/advice
    """

    data: Annotated[str, URI]
    """URI of a prepared data set (`python -m datasets prepare`)."""
    out: Annotated[str, URI] = "runs/advice"
    """URI of the folder for advice.json and advice.png."""
    backbone: str = ModelConfig.backbone
    """Network."""
    init: Literal["imagenet", "imagenet_v1", "imagenet_v2", "file"] = "imagenet"
    """Pretrained weights."""
    weights: Annotated[str | None, URI] = None
    """URI of a state dict, for `file`; with `imagenet`, used instead of the download."""
    normalization: Literal["auto", "imagenet", "half"] = ModelConfig.normalization
    """Pixel mean and standard deviation the weights were trained with."""
    size_px: int = IngestConfig.size_px
    """Height and width of the network's input images."""
    little_per_class: int = 100
    """Little data: fewer training images than this in the median class."""
    cache: Annotated[str | None, URI] = None
    """URI of the feature cache. Default: `cache` beside OUT."""
    device: Device = "auto"
    """`auto` uses GPUs if the cluster has any."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require_between("size_px", self.size_px, *SIZES_PX)
        require_at_least("little_per_class", self.little_per_class, 1)
