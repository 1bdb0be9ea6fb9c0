"""What a prepared data set looks like on storage, and its manifest.

OUT/manifest.json           written last: without it there is no data set
OUT/{train,val,test}/part-00000-<id>.parquet
OUT/quarantine.parquet      path and reason of every image left out
"""

import json
import struct
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from datasets import storage

SCHEMA_VERSION = 2
SPLITS = ("train", "val", "test")
TRAIN_AND_VAL = "train+val"
"""Both as one split, for a training that validates nothing."""
SHARD_SCHEMA = pa.schema(
    [
        ("image", pa.binary()),  # JPEG bytes
        ("label", pa.int32()),  # index into Manifest.classes
        ("image_id", pa.int64()),  # from the content's SHA-256: the same image anywhere
        ("crc32", pa.uint32()),  # `checksum` of the three above
        ("path", pa.string()),  # where it came from
    ]
)
QUARANTINE_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file: its path below the data set and the images in each row group."""

    path: str
    row_groups: tuple[int, ...]
    num_bytes: int


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


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a reader needs to plan, without listing or opening a shard."""

    classes: tuple[str, ...]
    splits: dict[str, Split]
    num_quarantined: int
    fingerprint: str
    """Hash of classes, image ids, labels, splits and the options that shape pixels or order."""
    options: dict[str, Any] = field(default_factory=dict)
    """The PrepareConfig that made it."""
    source_version: str = ""
    """Hash of the source's paths, sizes and modification times: tells whether it changed since."""
    schema_version: int = SCHEMA_VERSION

    def split(self, name: str) -> Split:
        """Return a split; TRAIN_AND_VAL is two as one, the second after the first.

        Raises:
            ValueError: where the data set has none of that name.
        """
        names = name.split("+")
        if not set(names) <= set(self.splits):
            raise ValueError(
                f"split is {name!r}: this data set has {', '.join(self.splits)}; "
                "prepare it again with the missing images"
            )
        splits = [self.splits[part] for part in names]
        return Split(
            shards=tuple(shard for split in splits for shard in split.shards),
            class_counts=tuple(map(sum, zip(*(s.class_counts for s in splits), strict=True))),
            num_pixels=sum(split.num_pixels for split in splits),
        )


def write_manifest(uri: str, manifest: Manifest) -> None:
    storage.write_bytes(
        storage.join(uri, "manifest.json"), json.dumps(asdict(manifest), indent=1).encode()
    )


def checksum(jpeg: bytes | pa.Buffer, label: int, image_id: int) -> int:
    """CRC-32 of all that a row is used for: a label that rots would be worse than a pixel."""
    return zlib.crc32(struct.pack("<iq", label, image_id), zlib.crc32(jpeg))


def is_prepared(uri: str) -> bool:
    """Whether a prepared data set lies at `uri`; other programs write a manifest.json as well.

    Raises:
        ValueError: where `uri` is out of reach.
    """
    return storage.exists(storage.join(uri, "manifest.json")) and _read_values(uri) is not None


def _read_values(uri: str) -> dict[str, Any] | None:
    """Read the JSON of a manifest of any version; None where it is none of Thaw's."""
    content = storage.read_bytes(storage.join(uri, "manifest.json"))
    try:
        values = json.loads(content)
    except ValueError:
        return None
    return values if isinstance(values, dict) and "schema_version" in values else None


def read_schema_version(uri: str) -> int:
    """Read which version of Thaw's shards lies at `uri`, where a manifest.json is.

    Raises:
        ValueError: where it is none of Thaw's.
    """
    values = _read_values(uri)
    if values is None:
        raise ValueError(
            f"out is {uri!r}: another program's manifest.json stands there; use another folder"
        )
    return values["schema_version"]


def read_manifest(uri: str) -> Manifest:
    """Read the manifest of a prepared data set.

    Raises:
        ValueError: where there is none of Thaw's, or it was written by a newer Thaw.
    """
    try:
        values = _read_values(uri)
    except FileNotFoundError:
        raise ValueError(
            f"data is {uri!r}: no prepared data set there (manifest.json is missing); "
            f"make one with `python -m datasets prepare --source ... --out {uri}`"
        ) from None
    except OSError as error:
        raise ValueError(f"data is {uri!r}: it cannot be read ({error}); check the URI") from None
    if values is None:
        raise ValueError(
            f"data is {uri!r}: its manifest.json is another program's; give a data set that "
            "`python -m datasets prepare` made"
        )
    version = values["schema_version"]
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"data is {uri!r}: its shards have schema version {version}, this Thaw reads "
            f"{SCHEMA_VERSION}; update Thaw or prepare the data again"
        )
    splits = {
        name: Split(
            shards=tuple(
                Shard(**{**shard, "row_groups": tuple(shard["row_groups"])})
                for shard in split["shards"]
            ),
            class_counts=tuple(split["class_counts"]),
            num_pixels=split["num_pixels"],
        )
        for name, split in values["splits"].items()
    }
    return Manifest(**{**values, "classes": tuple(values["classes"]), "splits": splits})
