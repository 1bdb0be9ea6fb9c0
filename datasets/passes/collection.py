"""Images to run a network on: a folder of any depth, Parquet files, a prepared data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from cluster.io import filesystems, storage
from cluster.io.errors import UserError, require
from datasets.images import BadImage
from datasets.manifest import SPLITS, require_images
from datasets.manifest_file import is_prepared, read_manifest
from datasets.plan import Chunk, RowGroup
from datasets.prepare.archives import is_archive
from datasets.prepare.listing import Reader, read_files, walk
from datasets.prepare.names import find_system_name
from datasets.prepare.parquet.labels import huggingface_names
from datasets.prepare.parquet.rows import (
    check_image_column,
    is_parquet,
    open_parquet,
    read_column,
    read_own_paths,
    read_rows,
    refer_to_rows,
)
from datasets.prepare.tables.rows import is_table
from datasets.read import rows_of_shards

KEY = "key:"
"""Begins the names of columns of references that results carry."""
_BESIDE_PARQUET = (".md", ".txt", ".json", ".jsonl", ".csv", ".yaml", ".yml", "_success", "license")
"""Endings of other files that data sets of Parquet files contain."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """References to images that are not opened yet."""

    kind: str
    """Of the images, for messages."""
    references: pa.Table
    """`path` (for messages), the columns that `read` needs, and those that begin with KEY."""
    read: Reader
    """Runs in the tasks: yields the contents of references in order."""


def lies_in(uri: str, folder: str) -> bool:
    """Whether `uri` is `folder` or below it, however the two are written."""
    (file_system, path), (other, root) = filesystems.resolve(uri), filesystems.resolve(folder)
    return file_system == other and f"{path.rstrip('/')}/".startswith(f"{root.rstrip('/')}/")


def list_images(
    uri: str, *, split: str | None = None, fold: int = 0, image_column: str = "image"
) -> Collection:
    """List every image at `uri`: a file, a folder, Parquet or a prepared data set.

    Every visible file of a folder counts as an image; files that are not images are reported.

    Args:
        split: of a prepared data set; all of them by default.
        fold: of a prepared data set with folds: the one that validates.
        image_column: of Parquet files: bytes, or Hugging Face's struct.

    Raises:
        UserError: where there is no image, or the arguments don't fit the kind of images.
    """
    collection = _list(uri, split, fold, image_column)
    require(len(collection.references) > 0, "images", uri, "it holds no image; give another")
    return collection


def _list(uri: str, split: str | None, fold: int, image_column: str) -> Collection:
    if is_prepared(uri):
        return _list_prepared(uri, split, fold)
    require(split is None, "split", split, "only a prepared data set has splits: leave it out")
    files = _list_files(uri)
    tables = [info for info in files if is_parquet(info)]
    if not tables:
        return Collection(
            kind="files",
            references=pa.table(
                {"path": [info.path for info in files], "folder": [uri] * len(files)}
            ),
            read=read_files,
        )
    others = [info.path for info in files if not is_parquet(info)]
    loose = [path for path in others if not path.lower().endswith(_BESIDE_PARQUET)]
    require(
        not loose, "images", uri, f"it holds Parquet files and {loose[:1]}: give one of the two"
    )
    return _list_parquet(uri, tables, image_column)


def _list_files(uri: str) -> list[fs.FileInfo]:
    """List visible files at or below `uri`, sorted by path, broken links included."""
    file_system, path = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        info = file_system.get_file_info(path)
    if info.type == fs.FileType.File and not is_archive(path):
        require(
            not is_table(path) or is_parquet(info),
            "images",
            uri,
            "it is a table, not images; give the folder that the images are in",
        )
        return [info]
    found = walk("images", uri)
    files = [
        info
        for path, info in found.items()
        if info.type not in (fs.FileType.Directory, fs.FileType.Unknown)
        and find_system_name(path.split("/")) is None
    ]
    require(bool(files), "images", uri, "there is no file; check the path")
    return files


def _list_parquet(uri: str, files: list[fs.FileInfo], image_column: str) -> Collection:
    tables: list[pa.Table] = []
    for info in files:
        file = open_parquet("images", uri, info.path)
        check_image_column(file.schema_arrow, info.path, image_column)
        own = read_own_paths(file, image_column)
        names = [path or f"{info.path}#{row}" for row, path in enumerate(own)]
        rows = refer_to_rows(file, uri, info.path, names)
        for name in _find_keys(file.schema_arrow, image_column):
            values = read_column(file, name)
            if (classes := huggingface_names(file.schema_arrow, name, info.path)) is not None:
                values = name_labels(values, classes)
            rows = rows.append_column(KEY + name, [values])
        tables.append(rows)
    _require_same_types(uri, tables, [info.path for info in files])
    return Collection(
        kind="Parquet rows",
        references=pa.concat_tables(tables, promote_options="permissive"),
        read=partial(read_rows, image_column=image_column),
    )


def _find_keys(schema: pa.Schema, image_column: str) -> list[str]:
    """Return the columns of scalars beside the image: ids, names and labels."""
    return [
        field.name
        for field in schema
        if field.name != image_column
        and not pa.types.is_nested(field.type)
        and not pa.types.is_binary(field.type)
        and not pa.types.is_large_binary(field.type)
    ]


def _require_same_types(uri: str, tables: list[pa.Table], paths: list[str]) -> None:
    """Refuse keys whose types in two files have none in common, such as number and text."""
    known: dict[str, tuple[pa.Field, str]] = {}
    for table, path in zip(tables, paths, strict=True):
        for field in table.schema:
            before, first = known.get(field.name, (field, path))
            try:
                both = [pa.schema([before]), pa.schema([field])]
                merged = pa.unify_schemas(both, promote_options="permissive").field(0)
            except (pa.ArrowTypeError, pa.ArrowInvalid):
                raise UserError(
                    f"images is {uri!r}: its column {field.name.removeprefix(KEY)!r} is "
                    f"{before.type} in {first} and {field.type} in {path}; write it with one type, "
                    "or give one of the files"
                ) from None
            known[field.name] = merged, first


def name_labels(labels: Sequence[Any], classes: Sequence[str]) -> list[str | None]:
    """Return class names: numbers mean something in the files that they come from only.

    Text stays, -1 (Hugging Face) is no label, and a number that has no name is kept as text.
    """

    def find(label: Any) -> str | None:
        if label is None or label == -1:
            return None
        is_named = isinstance(label, int) and 0 <= label < len(classes)
        return classes[label] if is_named else str(label)

    return [find(label) for label in labels]


def _list_prepared(uri: str, split: str | None, fold: int) -> Collection:
    manifest = read_manifest(uri, fold)
    require_images(manifest, "images", uri)
    chosen = [split] if split is not None else [name for name in SPLITS if name in manifest.splits]
    shards = [shard for name in chosen for shard in manifest.split(name).shards]
    tables = []
    for shard in shards:
        shard_uri = storage.join(uri, shard.path)
        file = open_parquet("images", uri, filesystems.resolve(shard_uri)[1])
        columns = file.read(["path", "label"]).to_pydict()
        rows = refer_to_rows(file, uri, shard_uri, columns["path"])
        labels = name_labels(columns["label"], manifest.classes)
        tables.append(rows.append_column(f"{KEY}label", pa.array(labels, pa.string())))
    return Collection(
        kind=f"images of {split or 'all splits'}",
        references=pa.concat_tables(tables),
        read=_read_prepared,
    )


def _split_by_row_group(references: pa.Table) -> Iterator[pa.Table]:
    """Split references into those of each row group."""
    keys = list(
        zip(references["file"].to_pylist(), references["row_group"].to_pylist(), strict=True)
    )
    start = 0
    for end in range(1, len(keys) + 1):
        if end == len(keys) or keys[end] != keys[start]:
            yield references.slice(start, end - start)
            start = end


def _read_prepared(references: pa.Table) -> Iterator[bytes | BadImage]:
    """Read rows of shards as a training does: with retries, and checked by their checksums."""
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
        yield BadImage(row.read_error) if row.jpeg is None else row.jpeg.to_pybytes()
