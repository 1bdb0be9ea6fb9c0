"""Configuration of ingest and of small commands (standard library only)."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from cluster.io.errors import (
    require,
    require_at_least,
    require_between,
    require_choice,
    require_positive,
)
from cluster.io.markers import NOT_IN_KEY, ON_CARD, RESUMABLE, URI

SIZES_PX = (16, 1024)
"""Of images that a network sees."""

MAX_FOLDS = 1000

Policy = Literal["none", "flip", "light", "cars"]
Ingest = Literal["auto", "stream", "memory"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
NUM_VIEWS: dict[Policy, int] = {"none": 1, "flip": 2}
"""Views of an image under policies that draw nothing; each epoch of the others has its own."""
READERS = ("datasets.read", "datasets.policies")
"""Modules that Ray's workers need to read images."""


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How shards become batches of pixels."""

    size_px: int = 224
    """Height and width of the images the network sees."""
    policy: Annotated[Policy, ON_CARD] = "cars"
    """Augmentation of training images: flip (the image and its mirror image in turns), light (crops
    of 70 percent or more), cars (smaller crops, colours, holes). Evaluation always uses `none`."""
    views: int | None = None
    """Augmented views of each image: epoch e shows view e modulo this. Default: a new view in every
    epoch. A sweep computes the frozen stages once per view."""
    ingest: Ingest = "auto"
    """stream: every epoch reads and decodes. memory: images are decoded once and kept in the object
    store. auto: memory where the decoded images fit `memory_share` of it and no pixel changes."""
    memory_share: Annotated[float, RESUMABLE, NOT_IN_KEY] = 0.3
    """Share of the cluster's object store that the decoded images of all trainings may fill."""
    interleave: int = 8
    """Row groups read side by side (lanes): every batch takes the same share of images from each
    lane. More lanes mix better and read more; with more workers than lanes, workers share lanes and
    read images several times."""
    task_images: Annotated[int, RESUMABLE, NOT_IN_KEY] = 256
    """About how many images one read task reads, decodes and augments."""
    max_bad_fraction: Annotated[float, RESUMABLE, NOT_IN_KEY] = 0.01
    """Share of an epoch's images that may be unreadable; with more, the run stops."""

    def __post_init__(self) -> None:
        require_between("ingest.size_px", self.size_px, *SIZES_PX)
        require_choice("ingest.policy", self.policy, POLICIES)
        require_at_least("ingest.views", self.views, 1)
        require_choice("ingest", self.ingest, get_args(Ingest))
        require(
            0 < self.memory_share <= 0.6,
            "ingest.memory_share",
            self.memory_share,
            "use a share up to 0.6: batches need memory as well",
        )
        require_at_least("ingest.interleave", self.interleave, 1)
        require_at_least("ingest.task_images", self.task_images, 1)
        require(
            0 <= self.max_bad_fraction <= 1,
            "ingest.max_bad_fraction",
            self.max_bad_fraction,
            "use a share from 0 to 1",
        )

    def view_of(self, epoch: int) -> int:
        """Number of the view that an epoch shows."""
        return epoch % self.num_views(epoch + 1)

    def num_views(self, num_epochs: int) -> int:
        """Different views of each image that a training sees."""
        return min(num_epochs, self.views or num_epochs, NUM_VIEWS.get(self.policy, num_epochs))


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Show what a data set holds: python -m datasets info --data data/cars"""

    data: Annotated[str, URI]
    """URI of a prepared data set."""
    fold: int = 0
    """Validation fold, if the data set has folds."""

    def __post_init__(self) -> None:
        require_between("fold", self.fold, 0, MAX_FOLDS)


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Draw a contact sheet: python -m datasets preview --data data/cars"""

    data: Annotated[str, URI]
    """URI of a prepared data set."""
    out: Annotated[str, URI] = "preview.png"
    """URI of the PNG to write."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Time every stage of ingest on your data: python -m datasets bench --data runs/cars"""

    data: Annotated[str, URI]
    """URI of a prepared data set."""
    policy: Policy = "cars"
    """Augmentation policy."""
    size_px: int = 224
    """Height and width of the images the network sees."""
    seconds: float = 10.0
    """About how long the whole stream is measured."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require_between("size_px", self.size_px, *SIZES_PX)
        require_positive("seconds", self.seconds)
