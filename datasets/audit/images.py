"""Measures of every image of a prepared data set, by one pass over its shards.

N images, H x W pixels, C the channels red, green, blue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa

from cluster.io.errors import UserError
from cluster.io.progress import collect
from datasets.blocks import run_blocks
from datasets.decode import decode
from datasets.images import BadImage
from datasets.manifest import SPLITS, Manifest
from datasets.manifest_file import read_manifest
from datasets.passes.actors import choose_block_images
from datasets.passes.collection import KEY, list_images
from datasets.prepare.duplicates.near import hash_image
from datasets.prepare.listing import Reader

_DARKEST, _BRIGHTEST = 1, 99  # percentiles: a few pixels are noise, or a logo
_IMAGE_BYTES, _NUM_CPUS = 256 * 341 * 3, 16  # usual; they set the size of tasks alone
MEASURES = pa.schema(
    [
        ("position", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("darkest", pa.int32()),  # of the grey values, without the lowest percent
        ("brightest", pa.int32()),
        ("hashes", pa.binary()),  # `near.hash_image`
        ("reason", pa.string()),  # why it can't be read; else null
    ]
)


@dataclass(frozen=True, kw_only=True)
class AuditedImages:
    """A data set and the measures of its images, in the order of SPLITS and of the shards."""

    data: str
    manifest: Manifest
    table: pa.Table
    """References with split, label and MEASURES."""
    read: Reader
    fold: int = 0
    """The one that validates, of a data set with folds."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def splits_N(self) -> np.ndarray:
        return np.asarray(self.table["split"].to_pylist(), object)

    @property
    def labels_N(self) -> np.ndarray:
        return self.table["label"].to_numpy()

    @property
    def is_readable_N(self) -> np.ndarray:
        return self.table["reason"].is_null().to_numpy()

    def read_images(self, indices: Sequence[int] | np.ndarray) -> dict[int, np.ndarray]:
        """Decode images by their row, in the driver; those that can't be read are left out."""
        rows = np.unique(np.asarray(indices, np.int64))
        contents = self.read(self.table.take(rows))
        return {
            int(row): decode(content)
            for row, content in zip(rows, contents, strict=True)
            if not isinstance(content, BadImage) and self.table["reason"][int(row)].as_py() is None
        }


def measure_images(data: str, fold: int = 0) -> AuditedImages:
    """Measure every image of a prepared data set on the cluster.

    Raises:
        UserError: where there is no prepared data set, or no such fold.
    """
    manifest = read_manifest(data, fold)
    images = list_images(data, fold=fold)
    references = images.references.append_column("split", _list_splits(manifest))
    references = references.append_column(
        "label", _number_labels(references[f"{KEY}label"], manifest)
    )
    num_images = len(references)
    references = references.append_column("position", pa.array(np.arange(num_images)))
    size = choose_block_images(num_images, _IMAGE_BYTES, num_cpus=_NUM_CPUS)
    blocks = [references.slice(i, size) for i in range(0, num_images, size)]
    measured = run_blocks(blocks, measure_block, read=images.read)
    measures = collect(measured, num_images, "Measuring images").sort_by("position")
    for name in MEASURES.names[1:]:
        references = references.append_column(name, measures[name])
    return AuditedImages(
        data=data, manifest=manifest, table=references, read=images.read, fold=fold
    )


def _list_splits(manifest: Manifest) -> pa.Array:
    counts = [
        (name, manifest.splits[name].num_images) for name in SPLITS if name in manifest.splits
    ]
    return pa.array([name for name, number in counts for _ in range(number)], pa.string())


def _number_labels(names: pa.ChunkedArray, manifest: Manifest) -> pa.Array:
    """Return the label of every image; 0 where it is damaged, as its image is unreadable then."""
    label_of = {name: label for label, name in enumerate(manifest.classes)}
    return pa.array([label_of.get(name, 0) for name in names.to_pylist()], pa.int32())


def measure_block(references: pa.Table, *, read: Reader) -> pa.Table:
    """Measure the images of a block, a row of MEASURES each. Runs in a Ray task."""
    cv2.setNumThreads(0)  # tasks already fill the cores
    rows = []
    for position, content in zip(references["position"].to_pylist(), read(references), strict=True):
        row = {"position": position}
        try:
            if isinstance(content, BadImage):
                raise content
            row |= measure(decode(content))
        except (BadImage, UserError) as bad:
            row["reason"] = str(bad)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=MEASURES)


def measure(image_HWC: np.ndarray) -> dict[str, object]:
    """Return the measures of an image."""
    grey_HW = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
    darkest, brightest = np.percentile(grey_HW, (_DARKEST, _BRIGHTEST))
    height, width = grey_HW.shape
    return {
        "height": height,
        "width": width,
        "darkest": round(float(darkest)),
        "brightest": round(float(brightest)),
        "hashes": hash_image(image_HWC)[0],
    }
