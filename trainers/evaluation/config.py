"""Options of `evaluate` and `explain` (standard library only)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cluster.io.errors import require, require_at_least
from cluster.io.markers import URI


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a run's best checkpoint on a split, each image once, on all workers of the cluster.

    Writes RUN/evaluation_SPLIT.json, and pictures and tables into RUN/evaluation_SPLIT:

    python -m trainers evaluate --run runs/head

    python -m trainers evaluate --run runs/head --split val --tta

    python -m trainers evaluate --run runs/head --data runs/field --map 'VW Golf=Golf'
    """

    run: Annotated[str, URI]
    """Run folder of a training."""
    split: Literal["train", "val", "test"] | None = None
    """Which images; none of them is augmented. Default: test, or of other `data` without a test
    split all."""
    data: Annotated[str | None, URI] = None
    """URI of another data set. Its classes are matched by name: images of classes that the network
    does not have are counted, not scored."""
    map: tuple[str, ...] = ()
    """Names of classes of `data` and of the network, as DATA=NETWORK, where they differ."""
    tta: bool = False
    """Test-time augmentation: the mean probability of each image and its mirror image. Takes twice
    as long, and writes evaluation_SPLIT_tta."""
    json: bool = False
    """Print only the result, as JSON."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""


Which = Literal["mistakes", "confident", "random"]


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Draw a Grad-CAM sheet: images with a heat map of the predicted class; for mistakes also one
    of the true class.

    python -m trainers explain --run runs/head --out cam.png

    python -m trainers explain --run runs/head --which confident --num-images 6 --out cam.png
    """

    run: Annotated[str, URI]
    """Run folder of a training of a convolutional network."""
    out: Annotated[str, URI] = "cam.png"
    """URI of the picture."""
    split: Literal["val", "test"] = "test"
    """Which images; the split is evaluated first, unless it has been."""
    num_images: int = 12
    """How many of them."""
    which: Which = "mistakes"
    """mistakes: of highest confidence; confident: correct, of highest confidence; random: any."""
    seed: int = 0
    """Seed of the random choice."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require(
            1 <= self.num_images <= 60, "num_images", self.num_images, "use 1 to 60, to be readable"
        )
        require_at_least("seed", self.seed, 0)
