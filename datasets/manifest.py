"""The manifest of a prepared data set: its classes, splits, folds and shards."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.io import storage
from cluster.io.errors import UserError, require
from datasets.shards import fold_name

SCHEMA_VERSION = 2
SPLITS = ("train", "val", "test")
TRAIN_AND_VAL = "train+val"
"""Both as one split, for a training without validation."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file: its path below the data set and the images in each row group."""

    path: str
    row_groups: tuple[int, ...]
    num_bytes: int

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if len(parts) > 2 or not all(map(storage.is_name, parts)):
            raise UserError(f"path is {self.path[:200]!r}: use SPLIT/NAME, below the data set")
        if self.num_bytes < 0 or min(self.row_groups, default=0) < 0:
            raise UserError(f"row_groups and num_bytes of {self.path!r}: use zero or more")


@dataclass(frozen=True, kw_only=True)
class Split:
    shards: tuple[Shard, ...]
    class_counts: tuple[int, ...]
    """Images per class, in the order of Manifest.classes."""
    num_pixels: int
    """Height x width of all its images together."""

    @property
    def num_images(self) -> int:
        return sum(self.class_counts)


def join_splits(splits: Sequence[Split]) -> Split:
    return Split(
        shards=tuple(shard for split in splits for shard in split.shards),
        class_counts=tuple(map(sum, zip(*(s.class_counts for s in splits), strict=True))),
        num_pixels=sum(split.num_pixels for split in splits),
    )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a reader needs to plan without opening a shard."""

    classes: tuple[str, ...]
    splits: dict[str, Split]
    num_quarantined: int
    fingerprint: str
    """Hash of classes, image ids, labels, splits and the options that shape pixels or order."""
    options: dict[str, Any] = field(default_factory=dict)
    """The PrepareConfig that made it."""
    source_version: str = ""
    """Hash of the source's paths, sizes and modification times."""
    num_unused: int = 0
    """Files of the source that are no images of the data set."""
    folds: tuple[Split, ...] = ()
    """Parts of train and val together, of which one validates; val is the first. Images in none
    always train."""
    schema_version: int = SCHEMA_VERSION

    def split(self, name: str) -> Split:
        """Return a split; TRAIN_AND_VAL is val, if there is one, after train.

        Raises:
            UserError: where the data set has none of that name.
        """
        names = ("train", "val") if name == TRAIN_AND_VAL else (name,)
        if names[0] not in self.splits:
            remedy = "prepare it again with images of that split"
            if name == "test":
                remedy = f"choose another --split, or {remedy}"
            if name == "val":
                remedy = (
                    "no class has a training image to spare for one: prepare it again with more "
                    "images, or train without one (`python -m trainers`, --train-on train+val)"
                )
            raise UserError(
                f"split is {name!r}: this data set has {', '.join(self.splits)}; {remedy}"
            )
        return join_splits([self.splits[part] for part in names if part in self.splits])

    def with_fold(self, fold: int) -> "Manifest":
        """Return the manifest whose val is this fold, and whose train is all other images.

        Raises:
            UserError: where the data set does not have it.
        """
        if fold == 0:
            return self
        remedy = f"this data set has {len(self.folds)} folds, counted from 0"
        if not self.folds:
            remedy = "this data set has no folds; prepare it again with --folds"
        require(0 < fold < len(self.folds), "fold", fold, remedy)
        both, val = self.split(TRAIN_AND_VAL), self.folds[fold]
        validating = set(val.shards)
        train = Split(
            shards=tuple(shard for shard in both.shards if shard not in validating),
            class_counts=tuple(
                count - of_fold
                for count, of_fold in zip(both.class_counts, val.class_counts, strict=True)
            ),
            num_pixels=both.num_pixels - val.num_pixels,
        )
        identity = f"{self.fingerprint} {fold_name(fold)}".encode()
        return replace(
            self,
            splits={**self.splits, "train": train, "val": val},
            fingerprint=hashlib.sha256(identity).hexdigest(),
        )


def require_images(manifest: Manifest, field: str, uri: str) -> None:
    """Refuse a data set without images: `read_manifest` returns it without splits.

    Raises:
        UserError: naming `field`, whose value is `uri`.
    """
    require(bool(manifest.splits), field, uri, "it holds no image; prepare it again")
