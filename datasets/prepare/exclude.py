"""The list of images that `prepare --exclude FILE` leaves out, as `audit` writes it.

A table with a column `path` and, where it has them, `split` and `reason`; or text, a path a line.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from cluster.io import storage
from cluster.io.errors import StorageError, UserError, require, show
from cluster.io.terminal import report
from cluster.io.uris import name_of
from datasets.prepare.config import PrepareConfig
from datasets.prepare.groups import list_relative
from datasets.prepare.listing import Listing
from datasets.prepare.tables.rows import read_rows

COLUMNS = ("path", "split", "class", "reason", "detail")
"""Of the list that `audit` writes."""
DEFAULT_REASON = "in the exclude list"


@dataclass(frozen=True)
class Entry:
    """An image to leave out."""

    row: int
    """In the list."""
    split: str | None
    """That the image was in when it was listed; None where the list does not say."""
    reason: str

    def fits(self, split: str) -> bool:
        """Whether an image of a source's split is meant: val may have been cut from its train."""
        return self.split in (None, split) or (self.split == "val" and split == "train")


def exclude(config: PrepareConfig, listing: Listing) -> Listing:
    """Return the listing without the images of `config.exclude`, which it counts as unused.

    Raises:
        UserError: where the list can't be read, or none of its images is in the source.
    """
    if config.exclude is None:
        return listing
    content, entries, num_rows = _read_list(config.exclude)
    references = listing.references
    paths = references["path"].to_pylist()
    places = zip(paths, list_relative(config, paths), references["split"].to_pylist(), strict=True)
    found = [_find(entries, (path, relative), split) for path, relative, split in places]
    used = {entry.row for entry in found if entry is not None}
    require(
        bool(used) or not num_rows,
        "exclude",
        config.exclude,
        f"none of its {num_rows} images is in the source, such as {next(iter(entries), '')!r}; "
        "give paths as the source has them, in full or below --root",
    )
    unknown = [path for path, own in entries.items() if used.isdisjoint(e.row for e in own)]
    if unknown:
        report(
            f"{config.exclude}: {len(unknown)} of its {num_rows} images are not in the source, "
            f"such as {unknown[0]}",
            warning=True,
        )
    excluded = [
        (path, f"excluded: {entry.reason}")
        for path, entry in zip(paths, found, strict=True)
        if entry is not None
    ]
    return replace(
        listing,
        references=references.filter(pa.array([entry is None for entry in found], pa.bool_())),
        unused=(*listing.unused, *excluded),
        version=hashlib.sha256(listing.version.encode() + content).hexdigest(),
    )


def _find(entries: Mapping[str, list[Entry]], names: tuple[str, ...], split: str) -> Entry | None:
    fitting = (e for name in names for e in entries.get(name, ()) if e.fits(split))
    return next(fitting, None)


def _read_list(uri: str) -> tuple[bytes, dict[str, list[Entry]], int]:
    """Return the content of a list, its entries by path, and how many rows it has.

    Raises:
        UserError: naming the option, where it can't be read.
    """
    try:
        content = storage.read_bytes(uri)
        return content, *parse_list(uri, content)
    except FileNotFoundError:
        raise UserError(
            f"exclude is {uri!r}: there is no such file; give a list of images, as "
            "`python -m datasets audit` writes it"
        ) from None
    except (StorageError, UserError) as error:
        reason = str(error)
        if not reason.startswith("exclude is "):
            reason = f"exclude is {uri!r}: {reason}"
        raise type(error)(reason) from error


def parse_list(uri: str, content: bytes) -> tuple[dict[str, list[Entry]], int]:
    """Return the entries of a list by path, and how many rows it has.

    Raises:
        UserError: naming the file, where it can't be read or has no column of paths.
    """
    columns = _read_columns(uri, content)
    names = {name.casefold(): name for name in columns}
    path = names.get("path") or (next(iter(columns)) if len(columns) == 1 else None)
    require(
        path is not None or not columns,
        "exclude",
        uri,
        f"it has no column `path`, but {show(list(columns))}; call the column of paths so",
    )
    entries = defaultdict[str, list[Entry]](list)
    values = columns.get(path, []) if path is not None else []
    splits, reasons = (
        columns[names[name]] if name in names else [None] * len(values)
        for name in ("split", "reason")
    )
    for row, (value, split, reason) in enumerate(zip(values, splits, reasons, strict=True)):
        if value is not None:
            entry = Entry(row, split, reason or DEFAULT_REASON)
            entries[_unquote(value)].append(entry)
    return dict(entries), sum(map(len, entries.values()))


def _read_columns(uri: str, content: bytes) -> dict[str, list[str | None]]:
    name = name_of(uri)
    if name.casefold().endswith(".txt"):
        lines = content.decode("utf-8-sig", "surrogateescape").splitlines()
        return {"path": [line.strip() or None for line in lines]}
    columns = read_rows(name, content).columns
    return {
        column: [None if value is None else str(value) for value in values]
        for column, values in columns.items()
    }


def _unquote(path: str) -> str:
    """Undo the apostrophe that `to_csv` puts before what a spreadsheet would compute."""
    return path[1:] if path[:1] == "'" and path[1:2] in ("=", "+", "-", "@") else path
