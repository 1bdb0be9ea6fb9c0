"""Options of `prepare` (standard library only)."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from cluster.io.errors import (
    require,
    require_at_least,
    require_between,
    require_choice,
)
from cluster.io.markers import IN_FINGERPRINT, NOT_IN_KEY, URI
from datasets.config import MAX_FOLDS
from datasets.synthetic.config import SyntheticConfig

MAX_CLASS_DEPTH = 16

Source = Literal["folder", "table", "parquet", "stanford", "synthetic"]
NearDuplicates = Literal["report", "drop", "keep"]


def require_pattern(field: str, value: str | None) -> None:
    """Refuse what is no regular expression; None means 'not set' and passes."""
    try:
        re.compile(value or "")
    except (re.error, RecursionError, OverflowError) as error:
        require(False, field, value, f"no regular expression ({error})")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turn images of any source into validated, resized Parquet shards with splits."""

    source: Source
    """folder: class folders, with or without train/ and test/ above them, or a metadata.csv. table:
    a CSV, JSON lines or Parquet of paths or URIs and classes, or a label file for each image (YOLO,
    Pascal VOC, WebDataset). parquet: an image column. stanford: cars_train/, cars_test/ and
    devkit/*.mat, or car_ims/ and cars_annos.mat. synthetic: rendered cars."""
    out: Annotated[str, URI, NOT_IN_KEY]
    """URI of the data set to write."""
    root: Annotated[str | None, URI] = None
    """URI of the source's folder, zip or tar, table or Parquet files; not used by `synthetic`."""
    test_root: Annotated[str | None, URI] = None
    """URI of the test images, if they are not below `root` (folder, table, parquet). Without `root`
    the data set has only test images, for `evaluate --data`."""
    val_fraction: float = 0.15
    """Share of each class' training images set aside for validation, chosen by content hash."""
    folds: int | None = None
    """Cut this many folds from the images of train and val, for cross-validation, instead of a
    validation split. `--fold` of a training chooses the validation fold. With as many folds as
    images, each fold leaves one image out."""
    short_side_px: Annotated[int, IN_FINGERPRINT] = 256
    """Images with a longer short side are shrunk to it; images are never enlarged."""
    crop_to_box: Annotated[bool, IN_FINGERPRINT] = False
    """Crop to the annotated bounding box, if the source has boxes (stanford)."""
    box_margin: Annotated[float, IN_FINGERPRINT] = 0.1
    """Margin around the box as a share of its size."""
    class_depth: int = 1
    """Folder source: how many folders, from the top, name a class: 2 for make/model. A negative
    number takes one folder, counted from the image: -1 is the folder that holds the image."""
    class_by: str | None = None
    """Folder source: regular expression that is searched in paths below `root`, instead of class
    folders. The text in its groups is the class: beagle for `([^/]+)_\\d+\\.jpg$` and
    beagle_12.jpg."""
    image_column: str = "image"
    """Parquet source: column with bytes, or a struct of bytes and path. Table source: column with
    paths or URIs; by default `image`, or another usual name."""
    label_column: str = "label"
    """Parquet and table sources: column with the class name or index. In a table, columns of 0 and
    1 can be the classes, by their names."""
    split_column: str | None = None
    """Parquet and table sources: column with train, val or test. Default: names of files and
    folders decide the split."""
    group_column: str | None = None
    """Parquet and table sources: column of groups, such as vehicles. Images of one group stay in
    one split."""
    group_by: str | None = None
    """Regular expression that is searched in paths below `root`. Images with the same text in its
    groups stay in one split, such as `vehicle_(\\d+)`."""
    group_depth: int | None = None
    """Folder source: this many folders below the class folder name a group. Images of one group
    stay in one split."""
    near_duplicates: NearDuplicates = "report"
    """Images that were compressed again, scaled, mirrored or cropped a little (not `synthetic`).
    report: list them in near_duplicates.parquet and .png, and keep each pair in one split when val
    is cut. drop: also leave out images of train and val that are like a test image. keep: do not
    look for them."""
    exclude: Annotated[str | None, URI] = None
    """URI of a list of images to leave out, as `audit` writes it: a table with a column `path` (and
    optionally `split`, `reason`), or a text file with one path per line. Paths are complete, or
    relative to `root`."""
    row_group_size: Annotated[int, IN_FINGERPRINT] = 64
    """Images per Parquet row group, the unit that the stream reads and shuffles."""
    shard_mib: Annotated[int, IN_FINGERPRINT] = 128
    """Target size of a shard, in MiB."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """Options of `--source synthetic`."""
    dry_run: Annotated[bool, NOT_IN_KEY] = False
    """Only list the source: print splits, classes, counts and unused files. Write nothing."""
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
        self._check_source()

    def _check_source(self) -> None:
        """Refuse options that the kind of source does not have."""
        require(
            self.source == "synthetic"
            or self.root is not None
            or (self.test_root is not None and self.source != "stanford"),
            "root",
            self.root,
            f"source {self.source} needs the images: give --root URI",
        )
        require(
            not self.root
            or self.test_root is None
            or self.root.rstrip("/") != self.test_root.rstrip("/"),
            "test_root",
            self.test_root,
            "it is --root as well: an image can't both train and test; give another folder of test "
            "images, or leave it out",
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
        require(
            self.class_by is None or (self.source == "folder" and self.class_depth == 1),
            "class_by",
            self.class_by,
            "use it with --source folder, and without --class-depth",
        )
        require_pattern("class_by", self.class_by)
        for name in ("image_column", "label_column", "split_column", "group_column"):
            default = getattr(PrepareConfig, name)
            require(
                self.source not in ("stanford", "synthetic") or getattr(self, name) == default,
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
            self.group_depth is None
            or (self.source == "folder" and self.class_depth > 0 and self.class_by is None),
            "group_depth",
            self.group_depth,
            "only `--source folder` with class folders above others has it; use --group-by",
        )
        require_pattern("group_by", self.group_by)
