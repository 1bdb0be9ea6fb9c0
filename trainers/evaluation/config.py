"""Options of `evaluate` and `explain` (standard library only)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cluster.config import Device
from cluster.io.errors import (
    require,
    require_at_least,
    require_not_negative,
    require_share,
)
from cluster.io.markers import OR_NAMES, URI


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a run's best checkpoint on a split, each image once, on all workers of the cluster.

    Writes RUN/evaluation_SPLIT.json, and pictures and tables to RUN/evaluation_SPLIT:

    python -m trainers evaluate --run runs/head

    python -m trainers evaluate --run runs/head --split val --tta

    python -m trainers evaluate --run runs/head --data runs/field --map 'VW Golf=Golf'

    python -m trainers evaluate --run runs/head --hierarchy names
    """

    run: Annotated[str, URI]
    """Run folder of a training."""
    split: Literal["train", "val", "test"] | None = None
    """Split to evaluate, without augmentation. Default: test, or all images if `data` has no test
    split."""
    data: Annotated[str | None, URI] = None
    """URI of another data set. Its classes are matched by name. Images of classes that the network
    does not have are counted, not scored. Writes evaluation_SPLIT_of_NAME-FINGERPRINT."""
    map: tuple[str, ...] = ()
    """Class names that differ, as DATA=NETWORK: the name in `data`, then the network's."""
    tta: bool = False
    """Test-time augmentation: average the probabilities of each image and its mirror image. Takes
    twice as long, and writes evaluation_SPLIT_tta."""
    coverage: float = 0.95
    """Target share of images whose set of classes has the true class; measured on the split."""
    refused: float = 0.05
    """Share of images of known classes that may be called unknown. The validation images set the
    threshold."""
    hierarchy: Annotated[str | None, URI, OR_NAMES] = None
    """Levels of classes: `names` reads make, model and year from names such as Audi S6 Sedan 2011.
    Else the URI of a CSV file with the column class and a column for each level, the coarsest
    first. Measures each level, and answers at the finest level that is probable enough."""
    least_probability: float = 0.9
    """With a hierarchy: answer at the finest level that has this probability."""
    json: bool = False
    """Print only the result, as JSON."""
    device: Device = "auto"
    """`auto` uses GPUs if the cluster has any, whatever the run was trained on."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require_share("coverage", self.coverage)
        require_share("refused", self.refused)
        require_share("least_probability", self.least_probability)


Which = Literal["mistakes", "confident", "random"]


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Draw a Grad-CAM sheet: images with a heat map of the predicted class. Mistakes also have a
    heat map of the true class.

    python -m trainers explain --run runs/head --out cam.png

    python -m trainers explain --run runs/head --which confident --num-images 6 --out cam.png
    """

    run: Annotated[str, URI]
    """Run folder of a training of a convolutional network."""
    out: Annotated[str, URI] = "cam.png"
    """URI of the picture."""
    split: Literal["val", "test"] = "test"
    """Split of the images. It is evaluated first, unless it has been."""
    num_images: int = 12
    """Number of images."""
    which: Which = "mistakes"
    """mistakes: the most confident mistakes. confident: the most confident correct predictions.
    random: any images."""
    seed: int = 0
    """Seed of the random choice."""
    device: Device = "auto"
    """`auto` uses GPUs if the cluster has any, whatever the run was trained on."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require(
            1 <= self.num_images <= 60, "num_images", self.num_images, "use 1 to 60, to be readable"
        )
        require_at_least("seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare two runs on the same images: McNemar's test, classes that gained and lost, and
    pictures of the images whose prediction changed.

    python -m trainers compare --runs runs/before runs/after

    In CI, exit with code 1 if the second run's top-1 is lower by more than a hundredth:

    python -m trainers compare --runs runs/before runs/after --fail-if-worse 0.01
    """

    runs: Annotated[tuple[str, str], URI]
    """Run folders of two trainings: before and after. A run without an evaluation is evaluated."""
    split: Literal["train", "val", "test"] = "test"
    """Split to compare on."""
    data: Annotated[str | None, URI] = None
    """URI of the data set to compare on, if the runs trained on different ones."""
    out: Annotated[str, URI] = "runs/compared"
    """URI of the folder to write."""
    fail_if_worse: float | None = None
    """Exit with code 1 if top-1 is lower by more than this."""
    device: Device = "auto"
    """`auto` uses GPUs if the cluster has any, whatever the run was trained on."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require(
            self.runs[0] != self.runs[1], "runs", self.runs, "give the folders of two trainings"
        )
        if self.fail_if_worse is not None:
            require_not_negative("fail_if_worse", self.fail_if_worse)
