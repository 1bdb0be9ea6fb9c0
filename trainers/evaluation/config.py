"""Options of `evaluate` and `explain` (standard library only)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cluster.io.errors import (
    require,
    require_at_least,
    require_not_negative,
    require_share,
)
from cluster.io.markers import URI


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a run's best checkpoint on a split, each image once, on all workers of the cluster.

    Writes RUN/evaluation_SPLIT.json, and pictures and tables into RUN/evaluation_SPLIT:

    python -m trainers evaluate --run runs/head

    python -m trainers evaluate --run runs/head --split val --tta

    python -m trainers evaluate --run runs/head --data runs/field --map 'VW Golf=Golf'

    python -m trainers evaluate --run runs/head --hierarchy names
    """

    run: Annotated[str, URI]
    """Run folder of a training."""
    split: Literal["train", "val", "test"] | None = None
    """Which images; none of them is augmented. Default: test, or of other `data` without a test
    split all."""
    data: Annotated[str | None, URI] = None
    """URI of another data set. Its classes are matched by name: images of classes that the network
    does not have are counted, not scored. Writes evaluation_SPLIT_of_NAME-FINGERPRINT."""
    map: tuple[str, ...] = ()
    """Names of classes of `data` and of the network, as DATA=NETWORK, where they differ."""
    tta: bool = False
    """Test-time augmentation: the mean probability of each image and its mirror image. Takes twice
    as long, and writes evaluation_SPLIT_tta."""
    coverage: float = 0.95
    """Share of images whose set of classes is to have the true one; measured on the split."""
    refused: float = 0.05
    """Share of images of known classes that may be called unknown; sets the threshold on
    validation images."""
    hierarchy: str | None = None
    """Levels of classes: `names` reads make, model and year from names such as Audi S6 Sedan 2011;
    else the URI of a CSV file with the column class and a column for each level, the coarsest
    first. Measures each level, and answers that back off to a coarser one."""
    least_probability: float = 0.9
    """With a hierarchy: the answer is of the finest level that has this probability."""
    json: bool = False
    """Print only the result, as JSON."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require_share("coverage", self.coverage)
        require_share("refused", self.refused)
        require_share("least_probability", self.least_probability)


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


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare two runs on the same images: McNemar's test, classes that gained and lost, and
    pictures of the images that changed.

    python -m trainers compare --runs runs/before runs/after

    In CI, exit code 1 where the second run's top-1 is lower by more than a hundredth:

    python -m trainers compare --runs runs/before runs/after --fail-if-worse 0.01
    """

    runs: Annotated[tuple[str, str], URI]
    """Run folders of two trainings: before and after. What is not evaluated yet is evaluated."""
    split: Literal["train", "val", "test"] = "test"
    """Which images."""
    data: Annotated[str | None, URI] = None
    """URI of the data set, where the runs trained on different ones."""
    out: Annotated[str, URI] = "runs/compared"
    """URI of the folder to write."""
    fail_if_worse: float | None = None
    """Exit with code 1 where top-1 fell by more than this."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require(
            self.runs[0] != self.runs[1], "runs", self.runs, "give the folders of two trainings"
        )
        if self.fail_if_worse is not None:
            require_not_negative("fail_if_worse", self.fail_if_worse)
