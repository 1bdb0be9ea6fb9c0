"""Images to look at, wherever they lie: a folder of any depth, Parquet files, a prepared data set.

Like a source of `prepare`, but nobody has to say what is on them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from datasets import storage
from datasets.config import require
from datasets.images import BadImage
from datasets.listing import Reader, read_files
from datasets.parquet import read_rows
from datasets.plan import Chunk, RowGroup
from datasets.read import rows_of_shards
from datasets.shards import SPLITS, read_manifest

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A reference to each of some images nobody has opened."""

    kind: str
    """What they lie in, for people."""
    references: pa.Table
    """`path` (for people) and whatever `read` opens it by."""
    read: Reader
    """Runs in the tasks: the contents of some references, in their order."""


def list_images(uri: str, *, split: str | None = None, image_column: str = "image") -> Collection:
    """List every image at `uri`, which is a file, a folder, Parquet or a prepared data set.

    Every visible file of a folder counts as an image: one that is none is told of as such.

    Args:
        split: of a prepared data set; all of them by default.
        image_column: of Parquet files: bytes, or Hugging Face's struct.

    Raises:
        ValueError: where there is no image, or the arguments don't fit what is there.
    """
    if storage.exists(storage.join(uri, "manifest.json")):
        return _list_prepared(uri, split)
    require(split is None, "split", split, "only a prepared data set has splits: leave it out")
    files = _list_files(uri)
    tables = [info for info in files if info.path.endswith(".parquet")]
    if not tables:
        return Collection(
            kind="files",
            references=pa.table(
                {"path": [info.path for info in files], "folder": [uri] * len(files)}
            ),
            read=read_files,
        )
    loose = [info.path for info in files if info.path.lower().endswith(_IMAGE_SUFFIXES)]
    require(
        not loose, "images", uri, f"it holds Parquet files and {loose[:1]}: give one of the two"
    )
    return _list_parquet(uri, tables, image_column)


def _list_files(uri: str) -> list[fs.FileInfo]:
    """Visible files at or below `uri`, sorted by path."""
    file_system, path = storage.resolve(uri)
    with storage.explaining(uri):
        info = file_system.get_file_info(path)
        if info.type == fs.FileType.File:
            return [info]
        selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
        below = file_system.get_file_info(selector)
    files = [
        info
        for info in sorted(below, key=lambda info: info.path)
        if info.type == fs.FileType.File
        and not any(part.startswith(".") for part in info.path[len(path) :].split("/"))
    ]
    require(bool(files), "images", uri, "no file lies there; check the path")
    return files


def _list_parquet(uri: str, files: list[fs.FileInfo], image_column: str) -> Collection:
    file_system, _ = storage.resolve(uri)
    tables = []
    for info in files:
        file = _open_parquet(file_system, info.path)
        _check_image_column(file.schema_arrow, info.path, image_column)
        paths = [f"{info.path}#{row}" for row in range(file.metadata.num_rows)]
        tables.append(_refer_to_rows(file, uri, info.path, paths))
    return Collection(
        kind="Parquet rows",
        references=pa.concat_tables(tables),
        read=partial(_read_parquet, image_column=image_column),
    )


def _list_prepared(uri: str, split: str | None) -> Collection:
    manifest = read_manifest(uri)
    chosen = [split] if split is not None else [name for name in SPLITS if name in manifest.splits]
    tables = []
    for name in chosen:
        for shard in manifest.split(name).shards:
            place = storage.join(uri, shard.path)
            file = _open_parquet(*storage.resolve(place))
            paths = file.read(["path"])["path"].to_pylist()
            tables.append(_refer_to_rows(file, uri, place, paths))
    return Collection(
        kind=f"images of {split or 'all splits'}",
        references=pa.concat_tables(tables),
        read=_read_prepared,
    )


def _open_parquet(file_system: fs.FileSystem, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file_system.open_input_file(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"images: {path!r} can't be read as Parquet ({error})") from error


def _check_image_column(schema: pa.Schema, path: str, name: str) -> None:
    require(
        name in schema.names,
        "image_column",
        name,
        f"{path} has the columns {', '.join(schema.names)}",
    )
    held = schema.field(name).type
    if pa.types.is_struct(held) and held.get_field_index("bytes") >= 0:
        held = held.field("bytes").type
    require(
        pa.types.is_binary(held) or pa.types.is_large_binary(held),
        "image_column",
        name,
        f"it holds {held} in {path}; give bytes or Hugging Face's struct of bytes and path",
    )


def _refer_to_rows(file: pq.ParquetFile, folder: str, path: str, paths: list[str]) -> pa.Table:
    """Refer to every row of a Parquet file as `datasets.parquet.read_rows` takes it."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    starts = np.cumsum([0, *sizes])[:-1]
    return pa.table(
        {
            "path": pa.array(paths, pa.string()),
            "folder": pa.array([folder] * len(paths), pa.string()),
            "file": pa.array([path] * len(paths), pa.string()),
            "row_group": pa.array(np.repeat(np.arange(len(sizes)), sizes), pa.int32()),
            "row": pa.array(np.arange(len(paths)) - np.repeat(starts, sizes), pa.int64()),
        }
    )


def _split_by_row_group(references: pa.Table) -> Iterator[pa.Table]:
    """Cut references where the next row group begins."""
    keys = list(
        zip(references["file"].to_pylist(), references["row_group"].to_pylist(), strict=True)
    )
    start = 0
    for end in range(1, len(keys) + 1):
        if end == len(keys) or keys[end] != keys[start]:
            yield references.slice(start, end - start)
            start = end


def _read_parquet(references: pa.Table, *, image_column: str) -> Iterator[bytes | BadImage]:
    """Read rows; what is left of a row group that can't be read is bad, each image of it."""
    for group in _split_by_row_group(references):
        num_read = 0
        try:
            for content in read_rows(group, image_column=image_column):
                yield content
                num_read += 1
        except (OSError, pa.ArrowException) as error:
            reason = f"unreadable: its row group can't be read ({error})"
            yield from [BadImage(reason)] * (len(group) - num_read)


def _read_prepared(references: pa.Table) -> Iterator[bytes | BadImage]:
    """Read rows of shards as a training does: again where storage fails, and by their checksums."""
    groups = list(_split_by_row_group(references))
    chunk = Chunk(
        epoch=0,
        row_groups=tuple(
            RowGroup(
                uri=group["file"][0].as_py(),
                index=group["row_group"][0].as_py(),
                num_rows=len(group),
                first_row=0,
            )
            for group in groups
        ),
        group_N=np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
        row_N=references["row"].to_numpy(),
    )
    for row in rows_of_shards(chunk):
        yield BadImage(row.loss) if row.jpeg is None else row.jpeg.to_pybytes()
