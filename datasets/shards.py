"""The files of a prepared data set, and its manifest.

OUT/manifest.json           written last: without it there is no data set
OUT/{train,val,test}/part-00000-<id>.parquet
OUT/fold-0/part-00000-<id>.parquet      with --folds, instead of val and most of train
OUT/quarantine.parquet      path and reason of every image left out
OUT/unused.parquet          path and reason of files that are no images of it, where there are any
"""

import hashlib
import json
import os
import re
import shlex
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
from pyarrow import fs

from cluster.io import filesystems, storage
from cluster.io.errors import UserError, require
from cluster.io.fields import build
from cluster.io.records import damaged, parse_json

SCHEMA_VERSION = 2
SPLITS = ("train", "val", "test")
UNUSED = "unused.parquet"
TRAIN_AND_VAL = "train+val"
"""Both as one split, for a training without validation."""
SHARD_SCHEMA = pa.schema(
    [
        ("image", pa.binary()),  # JPEG bytes
        ("label", pa.int32()),  # index into Manifest.classes
        ("image_id", pa.int64()),  # from the content's SHA-256: the same image anywhere
        ("crc32", pa.uint32()),  # `checksum` of the three above
        ("path", pa.string()),  # in the source
    ]
)
FOLD_FOLDER = re.compile(r"fold-\d+")
QUARANTINE_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string())])


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


def fold_name(number: int) -> str:
    """Return the folder of a fold's shards."""
    return f"fold-{number}"


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
                    "no class has a training image to spare for one: train with --train-on "
                    "train+val, or prepare it again with more images"
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


def write_manifest(uri: str, manifest: Manifest) -> None:
    storage.write_bytes(
        storage.join(uri, "manifest.json"), json.dumps(asdict(manifest), indent=1).encode()
    )


def read_quarantine(uri: str, name: str = "quarantine.parquet") -> pa.Table:
    """Read path and reason of every image that a data set left out, or of files unused.

    Raises:
        UserError: where the file is missing, or damaged.
    """
    file = storage.join(uri, name)
    try:
        table = storage.read_parquet(file)
        table = table.select(QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA)
    except FileNotFoundError:
        raise damaged(file, "it is missing") from None
    except (KeyError, pa.ArrowException) as error:
        raise damaged(file, error) from None
    if any(column.null_count for column in table.columns):
        raise damaged(file, "a path or reason is missing")
    return table


def checksum(jpeg: bytes | pa.Buffer, label: int, image_id: int) -> int:
    """CRC-32 of image, label and image id: damaged labels are found too."""
    return zlib.crc32(struct.pack("<iq", label, image_id), zlib.crc32(jpeg))


def is_prepared(uri: str) -> bool:
    """Whether `uri` is a prepared data set; other programs write a manifest.json as well.

    Raises:
        UserError: where `uri` can't be reached.
    """
    return storage.exists(storage.join(uri, "manifest.json")) and _read_values(uri) is not None


def _read_values(uri: str) -> dict[str, Any] | None:
    """Read the JSON of a manifest of any version; None where it is not Thaw's."""
    content = storage.read_bytes(storage.join(uri, "manifest.json"))
    try:
        values = parse_json(content, uri)
    except ValueError:
        return None
    return values if isinstance(values, dict) and "schema_version" in values else None


def require_images(manifest: Manifest, field: str, uri: str) -> None:
    """Refuse a data set without images: `read_manifest` returns it without splits.

    Raises:
        UserError: naming `field`, whose value is `uri`.
    """
    require(bool(manifest.splits), field, uri, "it holds no image; prepare it again")


def read_schema_version(uri: str) -> int:
    """Read the schema version of the manifest.json at `uri`.

    Raises:
        UserError: where it is not Thaw's.
    """
    values = _read_values(uri)
    if values is None:
        raise UserError(
            f"out is {uri!r}: it has a manifest.json of another program; use another folder"
        )
    if not isinstance(values["schema_version"], int):
        raise damaged(storage.join(uri, "manifest.json"), "its schema_version is no number")
    return values["schema_version"]


def read_manifest(uri: str, fold: int = 0) -> Manifest:
    """Read the manifest of a prepared data set.

    Args:
        fold: that validates, where the data set has folds.

    Returns:
        It without splits that hold no image, as they can neither train nor measure anything.

    Raises:
        UserError: where there is none of Thaw's, it was written by another version of Thaw, its
            values contradict each other, it names files outside of the data set, or it does not
            have the fold.
    """
    try:
        values = _read_values(uri)
    except FileNotFoundError:
        raise UserError(
            f"data is {uri!r}: no prepared data set there (manifest.json is missing); "
            f"make one with `python -m datasets prepare --source ... --out {shlex.quote(uri)}`"
        ) from None
    except OSError as error:
        raise UserError(f"data is {uri!r}: it cannot be read ({error}); check the URI") from None
    if values is None:
        raise UserError(
            f"data is {uri!r}: its manifest.json is another program's; give a data set made by "
            "`python -m datasets prepare`"
        )
    version = values["schema_version"]
    if version != SCHEMA_VERSION:
        raise UserError(
            f"data is {uri!r}: its shards have schema version {version}, this Thaw reads "
            f"{SCHEMA_VERSION}; update Thaw or prepare the data again"
        )
    try:
        manifest = build(Manifest, values)
        _check_counts(manifest)
    except ValueError as error:
        raise damaged(storage.join(uri, "manifest.json"), error) from None
    _refuse_links_out(uri, manifest)
    filled = {name: split for name, split in manifest.splits.items() if split.num_images}
    return replace(manifest, splits=filled).with_fold(fold)


def _check_counts(manifest: Manifest) -> None:
    """Check the numbers that readers plan by without opening a shard."""
    for name in manifest.splits:
        if name not in SPLITS:
            raise UserError(f"splits.{name[:40]} is unknown: use {', '.join(SPLITS)}")
    parts = {f"splits.{name}": split for name, split in manifest.splits.items()}
    parts |= {f"folds.{number}": fold for number, fold in enumerate(manifest.folds)}
    for name, split in parts.items():
        if len(split.class_counts) != len(manifest.classes) or min(split.class_counts) < 0:
            raise UserError(
                f"{name}.class_counts has {len(split.class_counts)} numbers: use one, zero "
                f"or more, for each of the {len(manifest.classes)} classes"
            )
        num_rows = sum(sum(shard.row_groups) for shard in split.shards)
        if num_rows != split.num_images:
            raise UserError(
                f"{name}.class_counts is {split.num_images} in all: its row groups hold {num_rows}"
            )
    if manifest.folds:
        _check_folds(manifest)


def _check_folds(manifest: Manifest) -> None:
    """Check that the folds are parts of train and val, and that none has all images of a class."""
    if manifest.splits.get("val") != manifest.folds[0] or "train" not in manifest.splits:
        raise UserError("folds.0 is not splits.val: the first fold validates")
    both = manifest.split(TRAIN_AND_VAL)
    shards = [shard for fold in manifest.folds for shard in fold.shards]
    if len(set(shards)) < len(shards) or not set(shards) <= set(both.shards):
        raise UserError("folds: use each shard of splits.train and splits.val at most once")
    for number, fold in enumerate(manifest.folds):
        for of_fold, count in zip(fold.class_counts, both.class_counts, strict=True):
            if of_fold and of_fold >= count:
                raise UserError(f"folds.{number}.class_counts leaves a class without train images")


def _refuse_links_out(uri: str, manifest: Manifest) -> None:
    """Refuse files that are links out of the data set; the data set itself may be a link.

    Raises:
        UserError: naming the link.
    """
    filesystem, root = filesystems.resolve(uri)
    if not isinstance(filesystem, fs.LocalFileSystem):
        return
    files = [os.path.join(root, s.path) for split in manifest.splits.values() for s in split.shards]
    for path in (*dict.fromkeys(map(os.path.dirname, files)), *files):
        if os.path.islink(path) and storage.leaves(path, root):
            raise UserError(
                f"data is {uri!r}: {path} is a link out of the data set, to "
                f"{os.path.realpath(path)}; put the files themselves there"
            )
