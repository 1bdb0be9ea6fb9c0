"""Rows of Parquet files: referred to by the driver, read by tasks."""

from collections import deque
from collections.abc import Iterator
from itertools import groupby
from textwrap import shorten
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cluster.io import filesystems
from cluster.io.errors import StorageError, UserError, require
from datasets.images import BadImage
from datasets.prepare.remote import RemoteFile, is_local


def read_rows(references: pa.Table, *, image_column: str) -> Iterator[bytes | BadImage]:
    """Read the image column of some rows, at most 32 images in memory at a time.

    The rest of a row group that can't be read comes as bad images.

    Raises:
        StorageError: where an object store stays out of reach.
    """
    rows = references.select(["folder", "file", "row_group", "row"]).to_pylist()
    for (folder, path, group), wanted in groupby(
        rows, lambda row: (row["folder"], row["file"], row["row_group"])
    ):
        numbers = [row["row"] for row in wanted]
        num_read = 0
        try:
            for content in _read_row_group(folder, path, group, numbers, image_column):
                yield BadImage("no image bytes in the row") if content is None else content
                num_read += 1
        except StorageError:
            raise
        except (OSError, pa.ArrowException) as error:
            reason = f"unreadable: its row group can't be read ({shorten(str(error), 200)})"
            yield from [BadImage(reason)] * (len(numbers) - num_read)


def _read_row_group(
    folder: str, path: str, group: int, numbers: list[int], image_column: str
) -> Iterator[bytes | None]:
    """Yield the content of rows of one row group, by their rising numbers in it."""
    remaining, start = deque(numbers), 0
    with _open(folder, path) as stream:
        file = pq.ParquetFile(stream)
        if pa.types.is_struct(file.schema_arrow.field(image_column).type):
            image_column += ".bytes"
        batches = file.iter_batches(32, [group], [image_column])
        while remaining:
            images = next(batches).column(0)
            if pa.types.is_struct(images.type):
                images = images.field("bytes")
            while remaining and remaining[0] < start + len(images):
                yield images[remaining.popleft() - start].as_py()
            start += len(images)


def _open(folder: str, path: str) -> pa.NativeFile | RemoteFile:
    file_system = filesystems.resolve(folder)[0]
    if is_local(file_system):
        return file_system.open_input_file(path)
    return RemoteFile(file_system, path, folder)


def is_parquet(info: fs.FileInfo) -> bool:
    return info.type != fs.FileType.Directory and info.path.lower().endswith(".parquet")


def open_parquet(field: str, folder: str, path: str) -> pq.ParquetFile:
    """Open a file on the file system of `folder`.

    Raises:
        UserError: naming `field`, where it can't be read.
        StorageError: where it is out of reach, also of what is read from it later.
    """
    try:
        return pq.ParquetFile(_open(folder, path))
    except StorageError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{field} is {folder!r}: {path} can't be read as Parquet ({error}); write it again, or "
            "remove it"
        ) from error


def check_image_column(schema: pa.Schema, path: str, name: str) -> None:
    """Require a column of bytes, or of Hugging Face's struct of bytes and path."""
    check_column(schema, path, "image_column", name)
    column_type = schema.field(name).type
    if pa.types.is_struct(column_type) and column_type.get_field_index("bytes") >= 0:
        column_type = column_type.field("bytes").type
    require(
        pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type),
        "image_column",
        name,
        f"it holds {column_type} in {path}; give a column of bytes or of Hugging Face's struct of "
        "bytes and path",
    )


def check_column(schema: pa.Schema, path: str, field: str, name: str) -> None:
    require(
        name in schema.names,
        field,
        name,
        f"{path} has the columns {', '.join(schema.names)}; name one of them by "
        f"--{field.replace('_', '-')}",
    )


def refer_to_rows(
    file: pq.ParquetFile,
    folder: str,
    path: str,
    names: list[str] | None = None,
    *,
    image_column: str | None = None,
) -> pa.Table:
    """Return a reference to every row of a Parquet file, for `read_rows`.

    Args:
        names: of the rows; by default the file's path, the row's number and, where `image_column`
            has Hugging Face's struct, the image's own path.
    """
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    rows = np.arange(sum(sizes))
    if names is None:
        own = read_own_paths(file, image_column) if image_column else [None] * len(rows)
        names = [f"{path}#{row}{f'/{own[row]}' if own[row] else ''}" for row in rows]
    return pa.table(
        {
            "path": pa.array(names, pa.string()),
            "folder": pa.array([folder] * len(rows), pa.string()),
            "file": pa.array([path] * len(rows), pa.string()),
            "row_group": pa.array(np.repeat(np.arange(len(sizes)), sizes), pa.int32()),
            "row": pa.array(rows - np.repeat(np.cumsum([0, *sizes])[:-1], sizes), pa.int64()),
        }
    )


def read_own_paths(file: pq.ParquetFile, image_column: str) -> list[str | None]:
    """Read the paths in Hugging Face's struct; None where a row has none, or can't be read."""
    column_type = file.schema_arrow.field(image_column).type
    if not (pa.types.is_struct(column_type) and column_type.get_field_index("path") >= 0):
        return [None] * file.metadata.num_rows
    paths = read_column(file, f"{image_column}.path")
    return [None if row is None else row["path"] for row in paths]


def read_column(file: pq.ParquetFile, name: str) -> list[Any]:
    """Read a column of scalars; the values of a row group that can't be read are None."""
    values: list[Any] = []
    for group in range(file.num_row_groups):
        try:
            values += file.read_row_group(group, [name]).column(0).to_pylist()
        except StorageError:
            raise
        except (OSError, pa.ArrowException):
            values += [None] * file.metadata.row_group(group).num_rows
    return values
