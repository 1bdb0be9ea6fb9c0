"""Images in Parquet files: a column of bytes or of Hugging Face's struct, a column of labels."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from cluster.io import filesystems
from cluster.io.errors import UserError
from cluster.io.uris import name_of
from datasets.manifest import SPLITS
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import Listing, hash_files, refuse_second_test_set, walk
from datasets.prepare.names import find_system_name
from datasets.prepare.parquet.labels import FileLabels, huggingface_names, index_labels
from datasets.prepare.parquet.rows import (
    check_column,
    check_image_column,
    is_parquet,
    open_parquet,
    read_column,
    read_rows,
    refer_to_rows,
)
from datasets.prepare.splits import (
    NO_SPLIT,
    find_split_column,
    may_tell_splits,
    read_splits,
    split_of_file,
)


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
        check_column(file.schema_arrow, found.path, "split_column", name)
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
    check_column(file.schema_arrow, found.path, field, name)
    return read_column(file, name)


def _read_labels(file: pq.ParquetFile, found: DataFile, config: PrepareConfig) -> FileLabels:
    schema, name, path = file.schema_arrow, config.label_column, found.path
    check_column(schema, path, "label_column", name)
    labels = read_column(file, name)
    if not all(isinstance(label, int | str | None) for label in labels):
        raise UserError(
            f"label_column is {name!r}: it holds {schema.field(name).type} in {path}; give a "
            "column of class names or whole numbers"
        )
    names = huggingface_names(schema, name, path)
    return FileLabels(path=path, split=found.split, values=labels, names=names)
