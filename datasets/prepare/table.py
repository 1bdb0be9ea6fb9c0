"""Images that tables name: a CSV, Kaggle's train.csv, Hugging Face's metadata.csv, COCO's JSON.

A value names a file below the table's folder or the root, in full or by its name alone, with or
without suffix; or it is an absolute path or a URI, of any bucket. An absolute path of another
machine is found by its end.
"""

import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
from pyarrow import fs

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.uris import name_of, parent_of
from datasets.config import PrepareConfig
from datasets.images import BadImage
from datasets.prepare.archives import is_archive
from datasets.prepare.classes import describe_spellings
from datasets.prepare.columns import Columns, find_columns
from datasets.prepare.layout import find_system_name
from datasets.prepare.listing import (
    Listing,
    describe_source,
    hash_files,
    read_files,
    refuse_second_test_set,
    walk,
)
from datasets.prepare.matching import Files, split_of_path
from datasets.prepare.parquet import NO_SPLIT, FileLabels, index_labels
from datasets.prepare.rows import Value, is_table, read_rows
from datasets.prepare.splits import split_of_name

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Hugging Face's `imagefolder`; https://huggingface.co/docs/datasets/image_dataset"""
ONE_HOT = "_classes.csv"
"""Roboflow's export for classification, in the folder of each split."""
NO_ROW, NO_FILE = "in no row of a table", "named in a table, but not found, or found several times"
NO_NAME, TWICE = "a row without the name of an image", "a row that says what another one does"


@dataclass(kw_only=True)
class Root:
    """A place with tables and images."""

    option: str
    """Of the config: root or test_root."""
    uri: str
    """Of the folder that names are below."""
    tables: tuple[str, ...]
    """Paths below `uri`."""
    is_folder: bool = True
    """The option gives the folder; else the table, whose folder may hold much else."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Tables that are not used, and why."""
    infos: dict[str, fs.FileInfo] | None = None
    """Files below `uri`; None until a name asks for them, as a table may name URIs alone."""

    def list_files(self, values: Sequence[str]) -> None:
        """List the files that `values` may name: those in folders with which all of them begin,
        where the table itself was given."""
        tops = {value.removeprefix("./").partition("/")[::2] for value in values}
        folders = {top for top, rest in tops if rest}
        if self.is_folder or len(folders) < len({top for top, _ in tops}):
            folders = {""}
        self.infos = {}
        for folder in sorted(folders):
            uri = storage.join(self.uri, folder) if folder else self.uri
            prefix = f"{folder}/" if folder else ""
            if not folder or storage.exists(uri):
                self.infos |= {f"{prefix}{p}": info for p, info in walk(self.option, uri).items()}
        self.infos = _keep_files(self.infos)

    @cached_property
    def files(self) -> Files:
        visible = (p for p in self.infos or () if find_system_name(p.split("/")) is None)
        return Files(path for path in visible if path not in self.tables)

    def address(self, path: str) -> str:
        """Path on the file system."""
        return f"{storage.resolve(self.uri)[1].rstrip('/')}/{path}"


def _keep_files(infos: dict[str, fs.FileInfo]) -> dict[str, fs.FileInfo]:
    """Leave out folders, and links to folders."""
    others = (fs.FileType.Directory, fs.FileType.Unknown)
    return {path: info for path, info in infos.items() if info.type not in others}


@dataclass(kw_only=True)
class Found:
    """Rows of all tables: images of the data set, and what is not used."""

    splits: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    labels: list[FileLabels] = field(default_factory=list)
    infos: list[fs.FileInfo] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: set[tuple[str, str, str, Value]] = field(default_factory=set)
    """URI, path, split and class of each image."""


def list_table(config: PrepareConfig) -> Listing:
    """List the images that tables at ROOT and TEST_ROOT name."""
    places = {"root": config.root, "test_root": config.test_root}
    roots = [_open_root(name, uri) for name, uri in places.items() if uri is not None]
    return _to_listing(config, roots, _read_tables(config, roots, is_required=True))


def list_by_metadata(
    config: PrepareConfig, places: dict[str, tuple[str, dict[str, fs.FileInfo]]]
) -> Listing | str | None:
    """List the images that metadata.csv and its like name, in the folders of `--source folder`.

    Args:
        places: URI and content of each folder, by its option.

    Returns:
        The reason where such tables name no class; None where there are none.
    """
    roots = [
        Root(option=option, uri=uri, tables=_find_metadata(infos), infos=_keep_files(infos))
        for option, (uri, infos) in places.items()
    ]
    if not all(root.tables for root in roots):
        return None
    found = _read_tables(config, roots, is_required=False)
    if found.paths:
        return _to_listing(config, roots, found)
    reasons = [f"{path} is {why}" for root in roots for path, why in root.skipped.items()]
    reasons = reasons or ["no row of a metadata file names an image that is there"]
    return f"folders are the classes, as {_enumerate(reasons)}"


def _find_metadata(infos: dict[str, fs.FileInfo]) -> tuple[str, ...]:
    """Return the tables that a folder of images may have by convention."""
    return tuple(
        path
        for path in infos
        if name_of(path).casefold() in (*METADATA, ONE_HOT)
        and find_system_name(path.split("/")) is None
    )


def _read_tables(config: PrepareConfig, roots: Sequence[Root], *, is_required: bool) -> Found:
    found = Found()
    for root in roots:
        for path in root.tables:
            required = is_required and len(root.tables) == 1
            columns = _read_columns(config, root, path, found, is_required=required)
            if columns is not None:
                _take_rows(root, path, columns, found)
    return found


def _to_listing(config: PrepareConfig, roots: Sequence[Root], found: Found) -> Listing:
    if not found.paths:
        reasons = [f"{p}: {why}" for root in roots for p, why in root.skipped.items()]
        reasons = reasons or [f"{p}: {why}" for p, why in found.unused] or ["there is no row"]
        raise UserError(
            f"{describe_source(config)}: no row names an image that is there "
            f"({_enumerate(reasons)}); give --image-column and --label-column"
        )
    if config.test_root is not None and "test" in (
        split for split, uri in zip(found.splits, found.folders, strict=True) if uri == config.root
    ):
        refuse_second_test_set(config.test_root, str(config.root))
    _name_unused_files(roots, found)
    classes, labels = index_labels(found.labels, config.label_column)
    references: dict[str, pa.Array | list] = {
        "split": found.splits,
        "label": pa.array(labels, pa.int32()),
        "path": found.paths,
        "folder": found.folders,
    }
    if any(group is not None for group in found.groups):
        references["group"] = pa.array(found.groups, pa.string())
    return Listing(
        classes=classes,
        references=pa.table(references),
        read=read_files,
        version=hash_files(found.infos),
        unused=tuple(found.unused),
        notes=(*found.notes, *describe_spellings({name: name for name in classes})),
    )


def _open_root(option: str, uri: str) -> Root:
    file_system, path = storage.resolve(uri)
    with storage.explaining(uri):
        info = file_system.get_file_info(path)
    if info.type == fs.FileType.File and is_table(path):
        table = (name_of(uri),)
        return Root(option=option, uri=parent_of(uri), tables=table, is_folder=False)
    if info.type == fs.FileType.File and not is_archive(path):
        raise UserError(
            f"{option} is {uri!r}: it is no table (.csv, .tsv, .txt, .jsonl, .json, .parquet); "
            "save it as CSV in UTF-8"
        )
    infos = _keep_files(walk(option, uri))
    tables, skipped = list[str](), dict[str, str]()
    for path in filter(is_table, infos):
        if find_system_name(path.split("/")) or path.casefold().endswith(".txt"):
            continue  # a text beside images is seldom a table; one can be given by its own name
        if "submission" in name_of(path).casefold():
            skipped[path] = "an example of a submission, by its name"
        else:
            tables.append(path)
    if not tables:
        raise UserError(
            f"{option} is {uri!r}: it has no table (.csv, .tsv, .jsonl, .json, .parquet); give the "
            "table itself, or use --source folder"
        )
    return Root(option=option, uri=uri, tables=tuple(tables), skipped=skipped, infos=infos)


def _read_columns(
    config: PrepareConfig, root: Root, path: str, found: Found, *, is_required: bool
) -> Columns | None:
    """Read a table, and note its columns.

    Returns:
        None for one that is not used, as it has none of classes, say.

    Raises:
        UserError: for that, where it is required.
    """
    address = root.address(path)
    references = pa.table({"folder": [root.uri], "path": [address]})
    (content,) = read_files(references)
    try:
        if isinstance(content, BadImage):
            raise UserError(f"it can't be read: {content}")
        rows = read_rows(name_of(path), content)
        columns = find_columns(rows, config)
        if columns is None:
            names = ", ".join(rows.columns)
            raise UserError(f"it has the columns {names}, and none of classes")
    except UserError as error:
        if is_required:
            raise UserError(
                f"{root.option} is {root.uri!r}: {path}: {error}; name the columns by "
                "--image-column and --label-column"
            ) from None
        root.skipped[path] = f"a table that is not used: {error}"
        return None
    found.notes += [f"{path}: {note}" for note in (*rows.notes, columns.rule)]
    found.infos.append(storage.resolve(root.uri)[0].get_file_info(address))
    return columns


def _take_rows(root: Root, table: str, columns: Columns, found: Found) -> None:
    folder, address = table.rpartition("/")[0], root.address(table)
    of_table = "test" if root.option == "test_root" else _split_of_table(table)
    if root.infos is None:
        values = [str(value) for value in columns.images if value is not None]
        names = [v for v in values if not (_is_outside(root, v) or v.startswith("../"))]
        if names:
            root.list_files(names)
    labels: list[Value] = []
    for row, value in enumerate(columns.images):
        split = of_table
        if columns.splits is not None and root.option != "test_root":
            split = split_of_name(str(columns.splits[row]))
            if split is None:
                found.unused.append((f"{address}#{row}", NO_SPLIT))
                continue
        if value is None:
            found.unused.append((f"{address}#{row}", NO_NAME))
            continue
        name = str(value)
        if _is_outside(root, name):
            uri, path = _find_outside(root, name)
        elif name.startswith("../") and not folder:
            uri, path = root.uri, posixpath.normpath(root.address(name))
        elif (key := root.files.find(name, below=folder, split=split)) is not None:
            assert root.infos is not None
            info = root.infos[key]
            uri, path, split = root.uri, info.path, split or split_of_path(key)
            found.infos.append(info)
        else:
            found.unused.append((f"{address}#{row}/{name}", NO_FILE))
            continue
        split, label = split or "train", columns.labels[row]
        if (facts := (uri, path, split, label)) in found.facts:
            found.unused.append((f"{address}#{row}/{name}", TWICE))
            continue
        found.facts.add(facts)
        found.splits.append(split)
        found.folders.append(uri)
        found.paths.append(path)
        labels.append(label)
        group = columns.groups[row] if columns.groups is not None else None
        found.groups.append(None if group is None else str(group))
    found.labels.append(FileLabels(path=address, split=of_table or "train", values=labels))


def _split_of_table(path: str) -> str | None:
    """The split that the name of a table, or the nearest folder above it, stands for."""
    return split_of_name(name_of(path)) or split_of_path(path)


def _is_outside(root: Root, name: str) -> bool:
    """Whether a name is a URI, or an absolute path that is here; one of another machine is looked
    for below the root."""
    if "://" in name:
        return True
    is_local = isinstance(storage.resolve(root.uri)[0], fs.LocalFileSystem)
    return os.path.isabs(name) and is_local and os.path.exists(name)


def _find_outside(root: Root, name: str) -> tuple[str, str]:
    """Return the URI of the file system of an absolute path or a URI, and the path on it."""
    scheme, separator, place = name.partition("://")
    if scheme in ("http", "https", "ftp"):
        raise UserError(
            f"{root.option} is {root.uri!r}: {name} is on the web; download the images first, to a "
            "folder or a bucket"
        )
    uri = f"{scheme}://{place.partition('/')[0]}" if separator and scheme != "file" else "/"
    try:
        return uri, storage.resolve(name)[1]
    except UserError as error:
        raise UserError(f"{root.option} is {root.uri!r}: {error}") from None


def _name_unused_files(roots: Iterable[Root], found: Found) -> None:
    """Name every file below the roots that no row is for."""
    used = set(found.paths)
    for root in roots:
        found.unused += [(root.address(path), why) for path, why in root.skipped.items()]
        for path, info in (root.infos or {}).items():
            if path not in root.tables and path not in root.skipped and info.path not in used:
                reason = find_system_name(path.split("/")) or NO_ROW
                found.unused.append((info.path, reason))


def _enumerate(reasons: Sequence[str], limit: int = 3) -> str:
    more = " ..." if len(reasons) > limit else ""
    return f"{'; '.join(reasons[:limit])}{more}"
