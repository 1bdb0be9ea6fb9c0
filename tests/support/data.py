"""Small data sets of easy images, written straight to shards."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.io import storage
from datasets.manifest import Manifest, Shard, Split
from datasets.manifest_file import read_manifest, write_manifest
from datasets.prepare.staging import write_images
from datasets.shards import SHARD_SCHEMA, checksum


def draw_image(label: int, number: int, size_px: int = 48) -> np.ndarray:
    """Draw uint8 `[size_px, size_px + 16, 3]`: dark, with a bright bar whose place is its class."""
    image_HWC = np.random.default_rng((label, number)).integers(
        0, 60, (size_px, size_px + 16, 3), np.uint8
    )
    cv2.rectangle(image_HWC, (0, 6 + 10 * label), (size_px + 16, 14 + 10 * label), (230,) * 3, -1)
    return image_HWC


WriteData = Callable[..., str]


def write_shards(
    uri: str,
    *,
    train: int = 48,
    val: int = 17,
    test: int = 13,
    classes: int = 3,
    row_group_size: int = 8,
) -> None:
    """Write a data set of easy images, straight to shards."""
    drawn = {
        split: [
            (number % classes, draw_image(number % classes, hash_seed(split, number)))
            for number in range(size)
        ]
        for split, size in (("train", train), ("val", val), ("test", test))
    }
    write_images_of(
        uri,
        drawn,
        classes=classes,
        row_group_size=row_group_size,
        fingerprint=f"{train}-{val}-{test}-{classes}",
    )


def write_images_of(
    uri: str,
    images: dict[str, list[tuple[int, np.ndarray]]],
    *,
    classes: int,
    row_group_size: int = 8,
    fingerprint: str = "f",
) -> None:
    """Write a data set of given labels and images, by split."""
    splits = {}
    for split, of_split in images.items():
        rows = []
        for number, (label, image) in enumerate(of_split):
            content = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
            image_id = hash_seed(split, number) << 20 | number
            rows.append(
                {
                    "image": content,
                    "label": label,
                    "image_id": image_id,
                    "crc32": checksum(content, label, image_id),
                    "path": f"{split}/{number}.jpg",
                }
            )
        content_hash = hashlib.sha256(b"".join(row["image"] for row in rows)).hexdigest()
        path = f"{split}/part-00000-{content_hash[:12]}.parquet"  # other content has another name
        os.makedirs(os.path.join(uri, split))
        write_images(
            storage.join(uri, path),
            pa.Table.from_pylist(rows, schema=SHARD_SCHEMA),
            row_group_size,
        )
        metadata = pq.read_metadata(storage.join(uri, path))
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        splits[split] = Split(
            shards=(Shard(path=path, row_groups=tuple(groups), num_bytes=1),),
            class_counts=tuple(
                sum(row["label"] == label for row in rows) for label in range(classes)
            ),
            num_pixels=sum(image.shape[0] * image.shape[1] for _, image in of_split),
        )
    manifest = Manifest(
        classes=tuple(f"class {label}" for label in range(classes)),
        splits=splits,
        num_quarantined=0,
        fingerprint=fingerprint,
        options={"short_side_px": 48},
    )
    write_manifest(uri, manifest)


def find_shard(uri: str | Path, split: str) -> Path:
    """Return the one shard of a split."""
    (shard,) = Path(uri, split).glob("part-00000-*.parquet")
    return shard


def rename_classes(uri: str, pattern: str) -> str:
    """Give the classes of a data set other names, of their numbers; return its URI."""
    manifest = read_manifest(uri)
    names = tuple(pattern.format(number) for number in range(len(manifest.classes)))
    write_manifest(uri, replace(manifest, classes=names))
    return uri


def flip_byte(shard: Path, image: int, *, at: int) -> None:
    """Change one byte of a stored JPEG, counted from its start, or its end if negative."""
    jpeg = pq.read_table(shard)["image"][image].as_py()
    content = bytearray(shard.read_bytes())
    place = content.find(jpeg) + at % len(jpeg)
    content[place] ^= 0x55
    shard.write_bytes(content)


def hash_seed(split: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{split}/{number}".encode()).digest()[:4], "big")
