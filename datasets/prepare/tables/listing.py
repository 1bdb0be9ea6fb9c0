"""The rows of tables as a listing: images of the data set, and rows and files that are not used."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NoReturn

import pyarrow as pa
from pyarrow import fs

from cluster.io.errors import UserError
from cluster.io.uris import name_of
from datasets.prepare.classes import describe_spellings
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import (
    Listing,
    describe_source,
    describe_unused,
    hash_files,
    read_files,
    refuse_second_test_set,
)
from datasets.prepare.names import find_system_name
from datasets.prepare.parquet.labels import FileLabels, index_labels
from datasets.prepare.splits import NO_SPLIT, split_of_name, split_of_path
from datasets.prepare.tables.columns import Columns
from datasets.prepare.tables.outside import describe_outside
from datasets.prepare.tables.roots import Root, find_metadata, keep_files, open_root
from datasets.prepare.tables.rows import Value
from datasets.prepare.tables.table import Table, read_tables

NO_ROW, NO_FILE = "in no row of a table", "named in a table, but not found, or found several times"
NO_NAME, TWICE = "a row without the name of an image", "a row that says what another one does"


@dataclass(kw_only=True)
class Found:
    """Rows of all tables: images of the data set, and what is not used."""

    splits: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    labels: list[FileLabels] = field(default_factory=list)
    infos: list[fs.FileInfo] = field(default_factory=list)
    outside: set[tuple[str, str]] = field(default_factory=set)
    """URI and path of images that are not below a root."""
    unused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    """Paths of files in rows that are not used, which name them."""
    has_test_at_root: bool = False
    facts: set[tuple[str, str, str, Value]] = field(default_factory=set)
    """URI, path, split and class of each image."""


def list_table(config: PrepareConfig) -> Listing:
    """List the images that tables at ROOT and TEST_ROOT name."""
    places = {"root": config.root, "test_root": config.test_root}
    roots = [open_root(name, uri) for name, uri in places.items() if uri is not None]
    return _to_listing(config, roots, _find_images(read_tables(config, roots, is_required=True)))


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
        Root(option=option, uri=uri, tables=find_metadata(infos), infos=keep_files(infos))
        for option, (uri, infos) in places.items()
    ]
    if not all(root.tables for root in roots):
        return None
    found = _find_images(read_tables(config, roots, is_required=False))
    if found.paths:
        return _to_listing(config, roots, found)
    reasons = [f"{path} is {why}" for root in roots for path, why in root.skipped.items()]
    reasons = reasons or ["no row of a metadata file names an image that is there"]
    return f"folders are the classes, as {_enumerate(reasons)}"


def _find_images(tables: Sequence[Table]) -> Found:
    found = Found()
    for root in {id(table.root): table.root for table in tables}.values():
        note = root.compare_outside(_list_without_split(root, tables))
        found.notes += [] if note is None else [note]
    for table in tables:
        found.notes += table.notes
        found.infos += table.infos
        _take_rows(table.root, table.path, table.columns, found)
    found.infos += describe_outside(found.outside)
    return found


def _list_without_split(root: Root, tables: Iterable[Table]) -> Iterator[Value]:
    """Yield the names in rows whose split only their folders may tell."""
    for table in tables:
        is_open = table.columns.splits is None and _split_of_table(root, table.path) is None
        yield from table.columns.images if table.root is root and is_open else ()


def _take_rows(root: Root, table: str, columns: Columns, found: Found) -> None:
    """Add the rows of a table to the images, or name why they are not used."""
    address, of_table = root.address(table), _split_of_table(root, table)
    root.list_named(columns.images)
    labels: list[Value] = []
    for row, value in enumerate(columns.images):
        split = of_table
        if columns.splits is not None and root.option != "test_root":
            split = columns.splits[row]
            if split is None:
                _leave_out_row(root, table, f"{address}#{row}", value, found)
                continue
        if value is None:
            found.unused.append((f"{address}#{row}", NO_NAME))
            continue
        place = root.locate(str(value), table=table, split=split)
        if place is None:
            found.unused.append((f"{address}#{row}/{value}", NO_FILE))
            continue
        split, label = split or place.split or "train", columns.labels[row]
        if (facts := (place.uri, place.path, split, label)) in found.facts:
            found.unused.append((f"{address}#{row}/{value}", TWICE))
            continue
        found.facts.add(facts)
        found.has_test_at_root |= root.option == "root" and split == "test"
        if place.info is not None:
            found.infos.append(place.info)
        else:
            found.outside.add((place.uri, place.path))
        found.splits.append(split)
        found.folders.append(place.uri)
        found.paths.append(place.path)
        labels.append(label)
        group = columns.groups[row] if columns.groups is not None else None
        found.groups.append(None if group is None else str(group))
    found.labels.append(FileLabels(path=address, split=of_table or "train", values=labels))


def _leave_out_row(root: Root, table: str, row: str, value: Value, found: Found) -> None:
    """Name a row of no split, and the image that it is of."""
    found.unused.append((row if value is None else f"{row}/{value}", NO_SPLIT))
    with suppress(UserError):  # of a URI that no one needs to read
        place = None if value is None else root.locate(str(value), table=table, split=None)
        found.named |= set() if place is None else {place.path}


def _split_of_table(root: Root, path: str) -> str | None:
    """The split that the name of a table, or the nearest folder above it, stands for."""
    if root.option == "test_root":
        return "test"
    return split_of_name(name_of(path)) or split_of_path(path)


def _to_listing(config: PrepareConfig, roots: Sequence[Root], found: Found) -> Listing:
    if not found.paths:
        _refuse_no_rows(config, roots, found)
    if config.test_root is not None and found.has_test_at_root:
        refuse_second_test_set(config.test_root, str(config.root))
    _name_unused_files(roots, found)
    classes, labels = index_labels(_name_numbers(found), config.label_column)
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


def _name_numbers(found: Found) -> list[FileLabels]:
    """Take numbers as names where any label of all tables is a text: a CSV has no types, and `911`
    beside `A4` in one table may be alone in another."""
    kinds = {file.path: {type(value) for value in file.values} for file in found.labels}
    numbered = [path for path, of_file in kinds.items() if int in of_file]
    if not numbered or not any(str in of_file for of_file in kinds.values()):
        return found.labels
    found.notes.append(f"numbers are names of classes, as others are texts: {name_of(numbered[0])}")
    return [
        replace(file, values=[v if v in (None, -1) else str(v) for v in file.values])
        for file in found.labels
    ]


def _refuse_no_rows(config: PrepareConfig, roots: Sequence[Root], found: Found) -> NoReturn:
    """Refuse tables of which no row is an image, with the reasons and what helps."""
    reasons = [f"{p}: {why}" for root in roots for p, why in root.skipped.items()]
    remedy = "give --image-column and --label-column"
    if not reasons and any(why == NO_FILE for _, why in found.unused):
        remedy = (
            "give --root the folder that both the table and the images are in, or another "
            "--image-column"
        )
    if not reasons and found.unused:
        reasons = [describe_unused(found.unused)]
    raise UserError(
        f"{describe_source(config)}: no row names an image that is there "
        f"({_enumerate(reasons or ['there is no row'])}); {remedy}"
    )


def _name_unused_files(roots: Iterable[Root], found: Found) -> None:
    """Name every file below the roots that no row is for."""
    used = found.named.union(found.paths)
    for root in roots:
        found.unused += [(root.address(path), why) for path, why in root.skipped.items()]
        for path, info in (root.infos or {}).items():
            known = path in root.tables or path in root.skipped or path in root.used
            if not known and info.path not in used:
                reason = find_system_name(path.split("/")) or NO_ROW
                found.unused.append((info.path, reason))


def _enumerate(reasons: Sequence[str]) -> str:
    more = " ..." if len(reasons) > 3 else ""
    return f"{'; '.join(reasons[:3])}{more}"
