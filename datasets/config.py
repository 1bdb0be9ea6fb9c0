"""Configuration of `prepare`, ingest and the other commands (standard library only)."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from cluster.io.errors import (
    require,
    require_at_least,
    require_between,
    require_choice,
    require_positive,
)
from cluster.io.markers import IN_FINGERPRINT, NOT_IN_KEY, ON_CARD, RESUMABLE, URI

SIZES_PX = (16, 1024)
"""Of images that a network sees."""

MAX_CLASS_DEPTH, MAX_FOLDS = 16, 1000

Source = Literal["folder", "table", "parquet", "stanford", "synthetic"]
Policy = Literal["none", "flip", "light", "cars"]
Ingest = Literal["auto", "stream", "memory"]
LabelBy = Literal["model", "body"]
NearDuplicates = Literal["report", "drop", "keep"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
NUM_VIEWS: dict[Policy, int] = {"none": 1, "flip": 2}
"""Views of an image under policies that draw nothing; each epoch of the others has its own."""
READERS = ("datasets.read", "datasets.policies")
"""Modules that Ray's workers need to read images."""


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The procedural cars of `--source synthetic`."""

    num_classes: int = 20
    """How many make/model/year-like classes to render, 2 to 196."""
    train_per_class: int = 40
    """Training images per class, before the validation split is cut."""
    test_per_class: int = 20
    """Test images per class."""
    render_px: int = 160
    """Height of a rendered photograph in pixels; its width is 4/3 of it."""
    label_by: LabelBy = "model"
    """`model`: every car model is a class. `body`: the class is the body type (a source task)."""
    seed: int = 0
    """Another seed is another fleet: other proportions, other photographs."""

    def __post_init__(self) -> None:
        require_between("synthetic.num_classes", self.num_classes, 2, 196)
        require_between("synthetic.train_per_class", self.train_per_class, 2, 100_000)
        require_between("synthetic.test_per_class", self.test_per_class, 1, 100_000)
        require_between("synthetic.render_px", self.render_px, 32, 1024)
        require_at_least("synthetic.seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turn images of any source into validated, resized, balanced Parquet shards."""

    source: Source
    """folder: class folders, with or without train/ and test/ above them, or a metadata.csv. table:
    a CSV, JSON lines or Parquet of paths or URIs and classes. parquet: an image column. stanford:
    cars_train/, cars_test/ and devkit/*.mat. synthetic: procedural cars."""
    out: Annotated[str, URI, NOT_IN_KEY]
    """URI of the data set to write."""
    root: Annotated[str | None, URI] = None
    """URI of the source's folder, zip or tar, table or Parquet files; not used by `synthetic`."""
    test_root: Annotated[str | None, URI] = None
    """URI of the test images, where they are not below `root` (folder, table, parquet). Without
    `root` the data set has test images alone, for `evaluate --data`."""
    val_fraction: float = 0.15
    """Share of each class' training images set aside for validation, chosen by content hash."""
    folds: int | None = None
    """Cut this many folds from the images of train and val, for cross-validation, instead of a
    validation split: `--fold` of a training chooses the one that validates. As many folds as
    images leave one out."""
    short_side_px: Annotated[int, IN_FINGERPRINT] = 256
    """Images with a longer short side are reduced to it; smaller ones are never enlarged."""
    crop_to_box: Annotated[bool, IN_FINGERPRINT] = False
    """Crop to the annotated bounding box, where the source has boxes (stanford)."""
    box_margin: Annotated[float, IN_FINGERPRINT] = 0.1
    """Margin around the box as a share of its size."""
    class_depth: int = 1
    """Folder source: how many folders name a class, from the top: 2 for make/model. Negative: the
    one that does, from the image: -1 for the folder it is in, whatever is above."""
    image_column: str = "image"
    """Parquet source: column holding bytes or a struct of bytes and path. Table: paths or URIs; by
    default `image`, or another usual name."""
    label_column: str = "label"
    """Parquet and table sources: column holding the class name or index; of a table, columns of 0
    and 1 named by class as well."""
    split_column: str | None = None
    """Parquet and table sources: column holding train, val or test. Default: files and folders
    tell the split."""
    group_column: str | None = None
    """Parquet and table sources: images of one value, such as a vehicle, stay in one split."""
    group_by: str | None = None
    """Regular expression of paths below `root`: images with the same text in its groups belong
    together, such as `vehicle_(\\d+)`."""
    group_depth: int | None = None
    """Folder source: so many folders below the class folder name images that belong together."""
    near_duplicates: NearDuplicates = "report"
    """Images that were compressed again, scaled, mirrored or cropped a little (not `synthetic`).
    report: list them in near_duplicates.parquet and .png; val is cut from train without parting
    them. drop: also leave out those of train and val that are like a test image. keep: don't
    look."""
    exclude: Annotated[str | None, URI] = None
    """URI of a list of images to leave out, as `audit` writes it: a table with a column `path` (and
    `split`, `reason`), or text with a path a line, in full or below `root`."""
    row_group_size: Annotated[int, IN_FINGERPRINT] = 64
    """Images per Parquet row group: the unit the stream reads and shuffles."""
    shard_mib: Annotated[int, IN_FINGERPRINT] = 128
    """Size a shard aims at, in MiB."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """Options of `--source synthetic`."""
    dry_run: Annotated[bool, NOT_IN_KEY] = False
    """Only list the source: print splits, classes, counts and unused files; write nothing."""
    address: Annotated[str | None, NOT_IN_KEY] = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require(
            0 < self.val_fraction < 1,
            "val_fraction",
            self.val_fraction,
            "use a share between 0 and 1, such as 0.15",
        )
        require_between("folds", self.folds, 2, MAX_FOLDS)
        require(
            self.folds is None or self.val_fraction == PrepareConfig.val_fraction,
            "val_fraction",
            self.val_fraction,
            f"each of the {self.folds} folds validates in its turn: leave it out",
        )
        require_at_least("short_side_px", self.short_side_px, 32)
        require(0 <= self.box_margin <= 1, "box_margin", self.box_margin, "use 0 to 1")
        require_choice("near_duplicates", self.near_duplicates, get_args(NearDuplicates))
        require_at_least("group_depth", self.group_depth, 1)
        self._check_groups()
        require_at_least("row_group_size", self.row_group_size, 1)
        require_at_least("shard_mib", self.shard_mib, 1)
        require(
            self.source == "synthetic"
            or self.root is not None
            or (self.test_root is not None and self.source != "stanford"),
            "root",
            self.root,
            f"source {self.source} needs the images: give --root URI",
        )
        require(
            self.source == "stanford" or not self.crop_to_box,
            "crop_to_box",
            self.crop_to_box,
            "only `--source stanford` has boxes",
        )
        require(
            self.class_depth != 0 and abs(self.class_depth) <= MAX_CLASS_DEPTH,
            "class_depth",
            self.class_depth,
            "use 1 to 16, or -1 to -16",
        )
        require(
            self.class_depth == 1 or self.source == "folder",
            "class_depth",
            self.class_depth,
            "only `--source folder` has class folders",
        )
        for name in ("split_column", "group_column"):
            require(
                self.source not in ("stanford", "synthetic") or getattr(self, name) is None,
                name,
                getattr(self, name),
                f"source {self.source} has no table",
            )

    def _check_groups(self) -> None:
        names = ("group_column", "group_by", "group_depth")
        given = [name for name in names if getattr(self, name) is not None]
        for name in given[1:]:
            require(False, name, getattr(self, name), f"{given[0]} is set as well: use one of them")
        require(
            self.group_depth is None or (self.source == "folder" and self.class_depth > 0),
            "group_depth",
            self.group_depth,
            "only `--source folder` with class folders above others has it; use --group-by",
        )
        if self.group_by is not None:
            try:
                re.compile(self.group_by)
            except re.error as error:
                require(False, "group_by", self.group_by, f"no regular expression ({error})")


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
    """Share of the cluster's object store that decoded images may fill, over all trainings."""
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
    """The fold that validates, where it has folds."""

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


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Say what is wrong with a prepared data set: near duplicates, dark, blank, tiny and thin
    images, class balance.

      python -m datasets audit --data runs/cars

    `python -m trainers audit` does all of this, and finds label errors, images of other things and
    splits that differ, by the features of a pretrained network.

    OUT/audit.html shows the images; OUT/exclude.csv is for `prepare --exclude`.
    """

    data: Annotated[str, URI]
    """URI of a prepared data set."""
    fold: int = 0
    """The fold that validates, of a data set with folds; the others train."""
    out: Annotated[str, URI] = "runs/audit"
    """URI of the folder for the page and the lists."""
    max_shown: int = 48
    """Images of each check on the page; the lists have all."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require_between("fold", self.fold, 0, MAX_FOLDS)
        require_between("max_shown", self.max_shown, 0, 1000)
