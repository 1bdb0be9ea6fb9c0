"""Images in Parquet files: a column of bytes or of Hugging Face's struct, a column of labels."""

import json
import re
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.uris import name_of
from datasets.config import PrepareConfig
from datasets.images import BadImage
from datasets.prepare.listing import SPLIT_OF_NAME, Listing, hash_files, refuse_second_test_set


def list_parquet(config: PrepareConfig) -> Listing:
    """List the rows of Parquet files; names such as `test-00000-of-00004` give the split."""
    assert config.root is not None
    files = _list_files("root", config.root)
    splits = [_split_of(storage.resolve(config.root)[1], info.path) for info in files]
    folders = [config.root] * len(files)
    if config.test_root is not None:
        if "test" in splits:
            refuse_second_test_set(config.test_root, files[splits.index("test")].path)
        of_test = _list_files("test_root", config.test_root)
        files += of_test
        splits += ["test"] * len(of_test)
        folders += [config.test_root] * len(of_test)

    values: list[Any] = []
    tables, names = [], None
    for split, folder, info in zip(splits, folders, files, strict=True):
        file = open_parquet("root" if folder == config.root else "test_root", folder, info.path)
        check_image_column(file.schema_arrow, info.path, config.image_column)
        values += _read_labels(file, info.path, config)
        names = names or _huggingface_names(file.schema_arrow, config.label_column)
        rows = refer_to_rows(file, folder, info.path)
        tables.append(rows.append_column("split", pa.array([split] * len(rows), pa.string())))
    classes, labels = _index_labels(values, names, config)
    return Listing(
        classes=classes,
        references=pa.concat_tables(tables).append_column("label", pa.array(labels, pa.int32())),
        read=partial(read_rows, image_column=config.image_column),
        version=hash_files(files),
    )


def read_rows(references: pa.Table, *, image_column: str) -> Iterator[bytes | BadImage]:
    """Read the image column of some rows, at most 32 images in memory at a time."""
    rows = references.select(["folder", "file", "row_group", "row"]).to_pylist()
    for (folder, path, group), wanted in groupby(
        rows, lambda row: (row["folder"], row["file"], row["row_group"])
    ):
        remaining = [row["row"] for row in wanted]
        start = 0
        with storage.resolve(folder)[0].open_input_file(path) as stream:
            batches = pq.ParquetFile(stream).iter_batches(32, [group], [image_column])
            while remaining:
                images = next(batches).column(0)
                if pa.types.is_struct(images.type):
                    images = images.field("bytes")
                while remaining and remaining[0] < start + len(images):
                    content = images[remaining.pop(0) - start].as_py()
                    yield BadImage("no image bytes in the row") if content is None else content
                start += len(images)


def is_parquet(info: fs.FileInfo) -> bool:
    return info.type != fs.FileType.Directory and info.path.lower().endswith(".parquet")


def open_parquet(field: str, folder: str, path: str) -> pq.ParquetFile:
    """Open a file on the file system of `folder`.

    Raises:
        UserError: naming `field`, where it can't be read.
    """
    try:
        return pq.ParquetFile(storage.resolve(folder)[0].open_input_file(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{field} is {folder!r}: {path} can't be read as Parquet ({error}); write it again, or "
            "remove it"
        ) from error


def check_image_column(schema: pa.Schema, path: str, name: str) -> None:
    """Require a column of bytes, or of Hugging Face's struct of bytes and path."""
    _check_column(schema, path, "image_column", name)
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


def _check_column(schema: pa.Schema, path: str, field: str, name: str) -> None:
    require(name in schema.names, field, name, f"{path} has the columns {', '.join(schema.names)}")


def refer_to_rows(
    file: pq.ParquetFile, folder: str, path: str, names: list[str] | None = None
) -> pa.Table:
    """Return a reference to every row of a Parquet file, for `read_rows`.

    Args:
        names: of the rows; by default the file's path and the row's number.
    """
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    rows = np.arange(sum(sizes))
    return pa.table(
        {
            "path": pa.array(names or [f"{path}#{row}" for row in rows], pa.string()),
            "folder": pa.array([folder] * len(rows), pa.string()),
            "file": pa.array([path] * len(rows), pa.string()),
            "row_group": pa.array(np.repeat(np.arange(len(sizes)), sizes), pa.int32()),
            "row": pa.array(rows - np.repeat(np.cumsum([0, *sizes])[:-1], sizes), pa.int64()),
        }
    )


def _list_files(field: str, root: str) -> list[fs.FileInfo]:
    file_system, path = storage.resolve(root)
    with storage.explaining(root):
        info = file_system.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise UserError(f"{field} is {root!r}: it does not exist; give the URI of Parquet files")
    if info.type == fs.FileType.File:
        return [info]
    with storage.explaining(root):
        below = file_system.get_file_info(fs.FileSelector(path, recursive=True))
    files = sorted(filter(is_parquet, below), key=lambda info: info.path)
    if not files:
        raise UserError(f"{field} is {root!r}: it has no .parquet file; check the URI")
    return files


def _split_of(root: str, path: str) -> str:
    """Take the split from the nearest of the file's name and the folders below the root."""
    for part in reversed(path.removeprefix(root).strip("/").split("/") if path != root else [path]):
        word = re.match("[a-z]*", name_of(part))
        if word and word[0] in SPLIT_OF_NAME:
            return SPLIT_OF_NAME[word[0]]
    return "train"


def _read_labels(file: pq.ParquetFile, path: str, config: PrepareConfig) -> list[Any]:
    schema = file.schema_arrow
    _check_column(schema, path, "label_column", config.label_column)
    labels = file.read([config.label_column]).column(0).to_pylist()
    if not all(isinstance(label, int | str | None) for label in labels):
        raise UserError(
            f"label_column is {config.label_column!r}: it holds "
            f"{schema.field(config.label_column).type} in {path}; give a column of class names or "
            "whole numbers"
        )
    return labels


def _huggingface_names(schema: pa.Schema, label_column: str) -> list[str] | None:
    """Class names that Hugging Face writes into the schema's metadata."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", "{}"))
    return metadata.get("info", {}).get("features", {}).get(label_column, {}).get("names")


def _index_labels(
    values: list[Any], names: list[str] | None, config: PrepareConfig
) -> tuple[tuple[str, ...], list[int]]:
    """Return the classes and each value's index; no value and -1 (Hugging Face) mean no label."""
    given = {v for v in values if v is not None and v != -1}
    if names is not None and all(isinstance(value, int) for value in given):
        if given and max(given) >= len(names):
            raise UserError(
                f"label_column is {config.label_column!r}: it holds {max(given)}, and the file "
                f"names {len(names)} classes"
            )
        return tuple(names), [-1 if value is None else value for value in values]
    if len({type(value) for value in given}) > 1:
        raise UserError(
            f"label_column is {config.label_column!r}: some files hold names, others numbers; "
            "use one of the two in all files"
        )
    ordered = sorted(given)
    label_of = {value: label for label, value in enumerate(ordered)}
    return tuple(map(str, ordered)), [label_of.get(value, -1) for value in values]
