"""Images in Parquet files: a column of bytes or of Hugging Face's struct, a column of labels."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from textwrap import shorten
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from cluster.io import filesystems
from cluster.io.errors import UserError, require
from cluster.io.uris import name_of
from datasets.config import PrepareConfig
from datasets.images import BadImage
from datasets.prepare.classes import unify
from datasets.prepare.layout import find_system_name
from datasets.prepare.listing import Listing, hash_files, refuse_second_test_set, walk
from datasets.prepare.splits import find_split_column, may_tell_splits, read_splits, split_of_file
from datasets.shards import SPLITS

NO_SPLIT = "of no split"
"""Of a row whose split column names none."""


def list_parquet(config: PrepareConfig) -> Listing:
    """List the rows of Parquet files; names such as `test-00000-of-00004` give the split."""
    files, unused = list[DataFile](), list[tuple[str, str]]()
    if config.root is not None:
        files, unused = _list_files("root", config.root)
    if config.test_root is not None:
        of_test, more = _list_files("test_root", config.test_root)
        first = next((file.path for file in files if file.split == "test"), None)
        if first is not None:
            refuse_second_test_set(config.test_root, first)
        files, unused = files + of_test, unused + more
    tables, notes, labels = [], list[str](), list[FileLabels]()
    for found in files:
        file = open_parquet(found.field, found.folder, found.path)
        check_image_column(file.schema_arrow, found.path, config.image_column)
        rows = refer_to_rows(file, found.folder, found.path, image_column=config.image_column)
        of_file = _read_labels(file, found, config)
        splits: list[str | None] = [found.split] * len(rows)
        if (column := _find_split_column(file, found, config)) is not None:
            splits = read_splits(column, read_column(file, column))
            notes.append(f"{found.name}: splits from {column!r}")
        rows = rows.append_column("split", pa.array(splits, pa.string()))
        if (groups := _read_optional(file, found, config, "group_column")) is not None:
            texts = [None if group is None else str(group) for group in groups]
            rows = rows.append_column("group", pa.array(texts, pa.string()))
        without = rows.filter(pc.field("split").is_null())["path"].to_pylist()
        unused += [(path, NO_SPLIT) for path in without]
        kept = [v for v, split in zip(of_file.values, splits, strict=True) if split is not None]
        labels.append(replace(of_file, values=kept))
        tables.append(rows.filter(pc.field("split").is_valid()))
    classes, label_of_rows = index_labels(labels, config.label_column)
    for split in SPLITS:
        names = [file.name for file in files if file.split == split]
        if names:
            notes.append(f"{split}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}")
    return Listing(
        classes=classes,
        references=pa.concat_tables(tables).append_column(
            "label", pa.array(label_of_rows, pa.int32())
        ),
        read=partial(read_rows, image_column=config.image_column),
        version=hash_files(file.info for file in files),
        unused=tuple(unused),
        notes=tuple(notes),
    )


def read_rows(references: pa.Table, *, image_column: str) -> Iterator[bytes | BadImage]:
    """Read the image column of some rows, at most 32 images in memory at a time.

    The rest of a row group that can't be read comes as bad images.
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
        except (OSError, pa.ArrowException) as error:
            reason = f"unreadable: its row group can't be read ({shorten(str(error), 200)})"
            yield from [BadImage(reason)] * (len(numbers) - num_read)


def _read_row_group(
    folder: str, path: str, group: int, numbers: list[int], image_column: str
) -> Iterator[bytes | None]:
    """Yield the content of rows of one row group, by their rising numbers in it."""
    remaining, start = deque(numbers), 0
    with filesystems.resolve(folder)[0].open_input_file(path) as stream:
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


def is_parquet(info: fs.FileInfo) -> bool:
    return info.type != fs.FileType.Directory and info.path.lower().endswith(".parquet")


def open_parquet(field: str, folder: str, path: str) -> pq.ParquetFile:
    """Open a file on the file system of `folder`.

    Raises:
        UserError: naming `field`, where it can't be read.
    """
    try:
        return pq.ParquetFile(filesystems.resolve(folder)[0].open_input_file(path))
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
        except (OSError, pa.ArrowException):
            values += [None] * file.metadata.row_group(group).num_rows
    return values


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A Parquet file of the source."""

    field: str
    """Of the config: root or test_root."""
    folder: str
    """URI, the value of the field."""
    info: fs.FileInfo
    split: str

    @property
    def path(self) -> str:
        return self.info.path

    @property
    def name(self) -> str:
        """Path below the folder."""
        root = f"{filesystems.resolve(self.folder)[1].rstrip('/')}/"
        return self.path.removeprefix(root) if self.path.startswith(root) else name_of(self.path)


def _list_files(field: str, uri: str) -> tuple[list[DataFile], list[tuple[str, str]]]:
    """List the Parquet files at `root` or `test_root`, and the other files there with a reason."""
    file_system, root = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        info = file_system.get_file_info(root)
    if info.type == fs.FileType.NotFound:
        raise UserError(f"{field} is {uri!r}: it does not exist; give the URI of Parquet files")
    found = {info.base_name: info} if info.type == fs.FileType.File else walk(field, uri)
    unused, files = [], dict[str, fs.FileInfo]()
    for path, info in found.items():
        if info.type == fs.FileType.Directory:
            continue
        if (reason := find_system_name(path.split("/"))) is not None:
            unused.append((info.path, reason))
        elif is_parquet(info):
            files[path] = info
        else:
            unused.append((info.path, "not a Parquet file"))
    if not files:
        raise UserError(f"{field} is {uri!r}: it has no .parquet file; check the URI")
    splits = {path: split_of_file(path.split("/")) for path in files}
    if field == "test_root" or not any(splits.values()):
        splits = dict.fromkeys(files, "test" if field == "test_root" else "train")
    chosen = []
    for path, info in files.items():
        if (split := splits[path]) is None:
            unused.append((info.path, "of a split that is not train, val or test"))
        else:
            chosen.append(DataFile(field=field, folder=uri, info=info, split=split))
    return chosen, unused


def _find_split_column(file: pq.ParquetFile, found: DataFile, config: PrepareConfig) -> str | None:
    """Return the column that tells the splits of rows: the named one, or of a usual name where the
    file may be of any split."""
    if found.field == "test_root":
        return None
    if (name := config.split_column) is not None:
        _check_column(file.schema_arrow, found.path, "split_column", name)
        return name
    if found.split != "train":
        return None
    names = (name for name in file.schema_arrow.names if may_tell_splits(name))
    try:
        return find_split_column({name: read_column(file, name) for name in names})
    except UserError as error:
        raise UserError(f"{found.field} is {found.folder!r}: {found.path}: {error}") from None


def _read_optional(
    file: pq.ParquetFile, found: DataFile, config: PrepareConfig, field: str
) -> list[Any] | None:
    """Read the column that a field names; None where it names none."""
    name = getattr(config, field)
    if name is None:
        return None
    _check_column(file.schema_arrow, found.path, field, name)
    return read_column(file, name)


@dataclass(frozen=True, kw_only=True)
class FileLabels:
    """The labels of one file, and what their numbers mean."""

    path: str
    split: str
    values: list[int | str | None]
    names: list[str] | None = None
    """By number, where the file's metadata names them."""


def _read_labels(file: pq.ParquetFile, found: DataFile, config: PrepareConfig) -> FileLabels:
    schema, name, path = file.schema_arrow, config.label_column, found.path
    _check_column(schema, path, "label_column", name)
    labels = read_column(file, name)
    if not all(isinstance(label, int | str | None) for label in labels):
        raise UserError(
            f"label_column is {name!r}: it holds {schema.field(name).type} in {path}; give a "
            "column of class names or whole numbers"
        )
    names = huggingface_names(schema, name)
    return FileLabels(path=path, split=found.split, values=labels, names=names)


def huggingface_names(schema: pa.Schema, label_column: str) -> list[str] | None:
    """Class names that Hugging Face writes into the schema's metadata."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", "{}"))
    return metadata.get("info", {}).get("features", {}).get(label_column, {}).get("names")


def index_labels(
    files: Sequence[FileLabels], label_column: str
) -> tuple[tuple[str, ...], list[int]]:
    """Return the classes, and each row's index of them over all files; negative without a label.

    Numbers are matched by the class names of their own file: two files may have them in another
    order. Without names anywhere, the numbers themselves are the classes.

    Raises:
        UserError: where one file numbers classes and another names them.
    """
    values_of = {file.path: _name_values(file, label_column) for file in files}
    numbered, named = (
        next((p for p, vs in values_of.items() if any(isinstance(v, t) for v in vs)), None)
        for t in (int, str)
    )
    if numbered is not None and named is not None:
        raise UserError(
            f"label_column is {label_column!r}: some files hold names, others numbers ({named} and "
            f"{numbered}); use one of the two in all files"
        )
    values = [value for file in files for value in values_of[file.path]]
    if named is None and not any(file.names for file in files):
        ordered = sorted({value for value in values if value is not None})
        label_of = {value: label for label, value in enumerate(ordered)}
        return tuple(map(str, ordered)), [
            -1 if value is None else label_of[value] for value in values
        ]
    by_train = sorted(files, key=lambda file: file.split != "train")
    official = [name for file in by_train for name in file.names or ()]
    given = sorted({str(value) for value in values if value is not None})
    try:
        class_of = unify([*official, *given])
    except UserError as error:
        raise UserError(f"label_column is {label_column!r}: {error}") from None
    classes = tuple(dict.fromkeys(class_of.values()))
    label_of_name = {name: classes.index(cleaned) for name, cleaned in class_of.items()}
    return classes, [-1 if value is None else label_of_name[str(value)] for value in values]


def _name_values(file: FileLabels, label_column: str) -> list[int | str | None]:
    """Return class names where the file has them, else numbers; no value, -1 (Hugging Face) and
    blanks mean no label."""
    values = [
        None if value in (-1, None) or not str(value).strip() else value for value in file.values
    ]
    if file.names is None or any(isinstance(value, str) for value in values):
        return values
    numbers = [value for value in values if isinstance(value, int)]
    if numbers and max(numbers) >= len(file.names):
        raise UserError(
            f"label_column is {label_column!r}: it holds {max(numbers)}, and the file names "
            f"{len(file.names)} classes ({file.path})"
        )
    return [file.names[v] if isinstance(v, int) and v >= 0 else None for v in values]
