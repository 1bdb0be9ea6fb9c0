"""Features: the outputs of a frozen prefix for every view of every image, computed once.

CACHE/features/KEY/facts.json                         the facts that KEY hashes
CACHE/features/KEY/view-0003/part-000000064.parquet   named by its first row in the split; its row
                                                      groups are those of the data set
CACHE/features/KEY/view-0003/index.json               written last, when the view is complete

A view is complete or not there, also with concurrent builders: the names of parts say what is in
them, so two builders write the same file, and parts of a killed builder are used by the next one.

Dimensions: N images, S size in pixels, and the shape of an image's features.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cluster.io import filesystems, storage
from cluster.io.errors import UserError
from cluster.io.fields import build, take_object
from cluster.io.records import damaged, parse_json, read_object
from cluster.io.uris import name_of
from datasets.plan import IGNORE_INDEX, Chunk
from datasets.read import make_block, read_again, read_group, read_metadata

FORMAT_VERSION = 1
"""Of the files; part of the key, so that another format has other keys."""
DTYPE = np.dtype(np.float16)
COLUMNS = ["features", "label", "image_id"]
INDEX, FACTS = "index.json", b"thaw"


@dataclass(frozen=True)
class Part:
    """Features of consecutive row groups of the data set: one file."""

    name: str
    first_row: int
    """In the split."""
    row_groups: tuple[int, ...]
    """Images in each."""
    num_bytes: int
    unreadable: tuple[str, ...] = ()
    """Images that could not be read, whose label is IGNORE_INDEX, with the reason."""

    def __post_init__(self) -> None:
        storage.require_name("parts.name", self.name)

    @property
    def num_images(self) -> int:
        return sum(self.row_groups)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Part":
        """Rebuild from JSON."""
        return build(cls, _with_new_names(values), "parts.")


def _with_new_names(values: dict[str, Any]) -> dict[str, Any]:
    """`unreadable` was `losses` in earlier versions."""
    return {"unreadable" if name == "losses" else name: part for name, part in values.items()}


_INDEX = {"shape": tuple[int, ...], "parts": tuple[dict[str, Any], ...]}


@dataclass(frozen=True)
class View:
    """The features of one view of every image of a split."""

    uri: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def num_images(self) -> int:
        return sum(part.num_images for part in self.parts)

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    @property
    def unreadable(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.unreadable)


class FeatureArrays(NamedTuple):
    """A view in memory, in stored order."""

    features: np.ndarray
    """float16 `[N, *shape]`."""
    labels_N: np.ndarray
    """int64; IGNORE_INDEX where the image could not be read."""
    image_ids_N: np.ndarray
    unreadable: dict[int, str]
    """Row -> name of the unreadable image, and the reason."""


@dataclass(frozen=True, kw_only=True)
class FeatureSource:
    """Features of a split, read from storage; a `BatchSource`."""

    views: tuple[View, ...]
    """Epoch e shows view e % len(views)."""
    in_tasks = True

    @property
    def bytes_per_image(self) -> int:
        return count_bytes(self.views[0].shape)

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        return read_features(chunk, self.views[chunk.epoch % len(self.views)])


@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """Features of a split in the object store, where no process has to start; a `BatchSource`."""

    arrays: tuple[ray.ObjectRef, ...]
    """FeatureArrays of each view; epoch e shows view e % len(arrays)."""
    bytes_per_image: int
    in_tasks = False

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        view: FeatureArrays = ray.get(self.arrays[chunk.epoch % len(self.arrays)])
        rows_N = chunk.rows_N
        read_errors = [view.unreadable.get(row) for row in rows_N.tolist()]
        yield make_block(
            view.features[rows_N], view.labels_N[rows_N], view.image_ids_N[rows_N], read_errors
        )


def count_bytes(shape: tuple[int, ...]) -> int:
    """Return the size of an image's features."""
    return int(np.prod(shape)) * DTYPE.itemsize


def hash_facts(facts: dict[str, Any]) -> str:
    """Return the key of features; `facts` (JSON-safe) must hold all that decides their values."""
    text = json.dumps({**facts, "format": FORMAT_VERSION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def view_uri(entry: str, view: int) -> str:
    return storage.join(entry, f"view-{view:04d}")


def read_view(entry: str, view: int) -> View | None:
    """Read the index of a view; None where the view is incomplete."""
    uri = view_uri(entry, view)
    file = storage.join(uri, INDEX)
    try:
        index = read_object(file, _INDEX)
    except FileNotFoundError:
        return None
    try:
        return View(uri, index["shape"], tuple(map(Part.from_dict, index["parts"])))
    except UserError as error:
        raise damaged(file, error) from None


def write_view(view: View, facts: dict[str, Any]) -> None:
    """Write the index of a view, after its parts."""
    index = facts | {"shape": view.shape, "parts": [asdict(part) for part in view.parts]}
    storage.write_bytes(storage.join(view.uri, INDEX), json.dumps(index, indent=1).encode())


def write_part(
    uri: str,
    features: np.ndarray,
    block: pa.Table,
    row_groups: tuple[int, ...],
    *,
    first_row: int,
) -> Part:
    """Write the features of consecutive row groups.

    Args:
        features: float16 `[N, *shape]`.
        block: label, image_id and read_error of the rows.
    """
    rows = np.ascontiguousarray(features.reshape(len(features), -1))
    binary = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(rows.shape[1] * DTYPE.itemsize), len(rows), [None, pa.py_buffer(rows)]
    )
    table = pa.table({"features": binary, "label": block["label"], "image_id": block["image_id"]})
    unreadable = block["read_error"].drop_null().to_pylist()
    facts = {"first_row": first_row, "unreadable": unreadable}
    table = table.replace_schema_metadata({FACTS: json.dumps(facts)})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        start = 0
        for num_images in row_groups:
            writer.write_table(table.slice(start, num_images), row_group_size=num_images)
            start += num_images
    content = sink.getvalue()
    storage.write_bytes(uri, content.to_pybytes())
    name = name_of(uri)
    return Part(name, first_row, row_groups, content.size, tuple(unreadable))


def read_part(uri: str) -> Part:
    """Read the facts of a part from its footer."""
    filesystem, path = filesystems.resolve(uri)
    num_bytes = filesystem.get_file_info(path).size
    metadata = read_metadata(uri)
    facts = _take_facts(metadata.metadata, uri)
    row_groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    name = name_of(uri)
    return Part(name, facts["first_row"], row_groups, num_bytes, tuple(facts["unreadable"]))


def _take_facts(metadata: dict[bytes, bytes] | None, uri: str) -> dict[str, Any]:
    facts = parse_json((metadata or {}).get(FACTS, b""), uri)
    try:
        facts = take_object(facts, {})
        return take_object(_with_new_names(facts), {"first_row": int, "unreadable": list[str]})
    except ValueError as error:
        raise damaged(uri, error) from None


def load_view(view: View) -> FeatureArrays:
    """Read a whole view into memory.

    Raises:
        OSError, ValueError, pa.ArrowException: where a part can't be read.
    """
    features = np.empty((view.num_images, *view.shape), DTYPE)
    labels_N = np.empty(view.num_images, np.int64)
    image_ids_N = np.empty(view.num_images, np.int64)
    unreadable: dict[int, str] = {}
    for part in view.parts:
        table = storage.read_parquet(storage.join(view.uri, part.name))
        rows = slice(part.first_row, part.first_row + part.num_images)
        features[rows] = _to_array(table, view.shape)
        labels_N[rows], image_ids_N[rows] = table["label"].to_numpy(), table["image_id"].to_numpy()
        unreadable |= _name_unreadable(table, part)
    return FeatureArrays(features, labels_N, image_ids_N, unreadable)


def _name_unreadable(table: pa.Table, part: Part) -> dict[int, str]:
    """The names are those of the file, which may be newer than the index."""
    rows = part.first_row + np.flatnonzero(table["label"].to_numpy() == IGNORE_INDEX)
    names = _take_facts(table.schema.metadata, part.name)["unreadable"]
    return dict(zip(rows.tolist(), names, strict=True))


def read_features(chunk: Chunk, view: View) -> Iterator[pa.Table]:
    """Read the features of one chunk into one block, with the columns of `read_chunk`."""
    output = np.zeros((chunk.num_images, *view.shape), DTYPE)
    labels_N = np.full(chunk.num_images, IGNORE_INDEX, np.int64)
    image_ids_N = np.zeros(chunk.num_images, np.int64)
    read_errors_N = np.full(chunk.num_images, None, object)
    starts = [part.first_row for part in view.parts]
    for number, group in enumerate(chunk.row_groups):
        part = view.parts[bisect_right(starts, group.first_row) - 1]
        ends = np.cumsum([part.first_row, *part.row_groups])
        index = int(np.searchsorted(ends, group.first_row))
        indices = np.flatnonzero(chunk.group_N == number)
        try:
            uri = storage.join(view.uri, part.name)
            table = read_again(partial(read_group, uri, index, COLUMNS))
        except (OSError, ValueError, pa.ArrowException) as error:
            read_errors_N[indices] = f"{view.uri}/{part.name}: its features can't be read ({error})"
            continue
        rows = chunk.row_N[indices]
        output[indices] = _to_array(table, view.shape)[rows]
        labels_N[indices] = table["label"].to_numpy()[rows]
        image_ids_N[indices] = table["image_id"].to_numpy()[rows]
        read_errors_N[indices[labels_N[indices] == IGNORE_INDEX]] = (
            f"{view.uri}/{part.name}: its image could not be read"
        )
    yield make_block(output, labels_N, image_ids_N, read_errors_N)


def _to_array(table: pa.Table, shape: tuple[int, ...]) -> np.ndarray:
    column = table["features"].combine_chunks()
    values = np.frombuffer(column.buffers()[1], DTYPE, len(column) * int(np.prod(shape)))
    return values.reshape(len(column), *shape)
