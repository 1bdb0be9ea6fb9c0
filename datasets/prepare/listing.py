"""What every source returns to `prepare`: its classes, and references to unopened images.

A reference is a row of `split` (train, val or test), `label` (an index into the classes; negative
where the image has none), `path` (for messages), `group` (text; only where the source has groups
of images that must stay in one split) and the columns the source's reader needs.
"""

import hashlib
import json
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from typing import NoReturn

import pyarrow as pa
from pyarrow import fs

from cluster.io import filesystems, storage
from cluster.io.errors import StorageError, UserError
from datasets.images import BadImage
from datasets.prepare.archives import (
    find_archive,
    is_archive,
    list_members,
    read_members,
    without_suffix,
)
from datasets.prepare.config import PrepareConfig
from datasets.prepare.names import find_system_name
from datasets.prepare.remote import is_local, read_again

Reader = Callable[[pa.Table], Iterator[bytes | BadImage]]

_NAMES_SHOWN = 3
_READERS_PER_TASK = 8  # an object store has high latency
_IMAGES_IN_MEMORY = 32
MAX_FILE_BYTES = 2**28
"""The largest image we decode, 50 megapixels, has 150 MB uncompressed."""
TOO_LARGE = "too large: more than 256 MiB"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The classes of a source and a reference to each of its images."""

    classes: tuple[str, ...]
    references: pa.Table
    read: Reader
    """Runs in the tasks: yields the contents of references in order, or a BadImage with the
    reason."""
    version: str
    """Changes with the paths, sizes and modification times of the source."""
    unused: tuple[tuple[str, str], ...] = ()
    """Path and reason of each file that is no image of the data set."""
    notes: tuple[str, ...] = ()
    """How splits and classes were found, for the user."""


def walk(field: str, uri: str) -> dict[str, fs.FileInfo]:
    """Return files and folders at any depth below `uri`, by their path below it.

    Links to folders are followed out of the source, not to a folder that is in it or was visited.
    An archive counts as a folder, where it is `uri` itself, or beside other archives and files.

    Raises:
        UserError: naming `field`, where there is no such folder or it can't be reached.
    """
    file_system, root = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        info = file_system.get_file_info(root)
        if info.type == fs.FileType.File and is_archive(root):
            return _list_archive(field, uri, file_system, info, len(root) + 1)
        if info.type == fs.FileType.File:
            raise UserError(
                f"{field} is {uri!r}: it is a file; give a folder, a zip or a tar, or use --source "
                "table for a table that names images"
            )
        if info.type != fs.FileType.Directory:
            remedy = "check the path"
            if uri.startswith(("http://", "https://", "ftp://")):
                remedy = "the web has no folders: download the images, to a folder or a bucket"
            raise UserError(f"{field} is {uri!r}: there is no such folder; {remedy}")
        if isinstance(file_system, fs.LocalFileSystem):
            infos = list(_walk_local(root))
        else:
            infos = file_system.get_file_info(fs.FileSelector(root, recursive=True))
    start = len(root.rstrip("/")) + 1
    found = {info.path[start:]: info for info in sorted(infos, key=lambda info: info.path)}
    if any(map(is_folder, found.values())):
        return found
    names = [name for name in found if is_archive(name) and find_system_name([name]) is None]
    for name in names:
        members = _list_archive(field, uri, file_system, found.pop(name), len(root) + len(name) + 2)
        for path, info in members.items():
            other = found.setdefault(f"{without_suffix(name)}/{path}", info)
            if other is not info:
                raise UserError(
                    f"{field} is {uri!r}: {name} holds {path}, and so does {other.path[start:]}; "
                    "rename one of the two archives, or move it away"
                )
    return found


def _list_archive(
    field: str, uri: str, file_system: fs.FileSystem, archive: fs.FileInfo, start: int
) -> dict[str, fs.FileInfo]:
    try:
        members = list_members(file_system, archive, uri)
    except UserError as error:
        raise UserError(f"{field} is {uri!r}: {error}") from None
    return {info.path[start:]: info for info in sorted(members, key=lambda info: info.path)}


def _walk_local(root: str) -> Iterator[fs.FileInfo]:
    """Yield what is below a folder; a link that is not followed comes as a file of type Unknown."""
    visited, folders = {os.path.realpath(root)}, [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                info = _describe_entry(entry, root, visited)
                yield info
                if info.type == fs.FileType.Directory:
                    folders.append(info.path)


def _describe_entry(entry: os.DirEntry[str], root: str, visited: set[str]) -> fs.FileInfo:
    """Return what `_walk_local` yields; a folder behind a link is added to `visited`."""
    path = entry.path
    path.encode()  # pyarrow reads UTF-8 only
    try:
        facts = entry.stat()
    except OSError:  # a link to nothing, or to itself
        return fs.FileInfo(path, type=fs.FileType.NotFound)
    if not stat.S_ISDIR(facts.st_mode):
        return fs.FileInfo(path, fs.FileType.File, size=facts.st_size, mtime_ns=facts.st_mtime_ns)
    if entry.is_symlink():
        real = os.path.realpath(path)
        if real in visited or not storage.leaves(real, root):
            return fs.FileInfo(path, fs.FileType.Unknown)
        visited.add(real)
    return fs.FileInfo(path, fs.FileType.Directory)


def describe_unused(unused: Sequence[tuple[str, str]]) -> str:
    """Count the files by reason, the most frequent first, with the first names of each."""
    paths_of = defaultdict[str, list[str]](list)
    for path, reason in unused:
        paths_of[reason].append("/".join(path.split("/")[-2:]))
    parts = []
    for reason, paths in sorted(paths_of.items(), key=lambda item: -len(item[1])):
        more = " ..." if len(paths) > _NAMES_SHOWN else ""
        parts.append(f"{len(paths)} {reason} ({', '.join(paths[:_NAMES_SHOWN])}{more})")
    files = "1 file" if len(unused) == 1 else f"{len(unused)} files"
    return f"{files} not used: {'; '.join(parts)}"


def list_visible(field: str, uri: str) -> list[fs.FileInfo]:
    """Files and folders directly below `uri`, sorted, without hidden ones.

    Raises:
        UserError: naming `field`, where there is no such folder or it can't be reached.
    """
    file_system, path = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        if file_system.get_file_info(path).type != fs.FileType.Directory:
            raise UserError(f"{field} is {uri!r}: there is no such folder; check the path")
        below = file_system.get_file_info(fs.FileSelector(path))
        visible = [info for info in below if not info.base_name.startswith(".")]
        if isinstance(file_system, fs.LocalFileSystem):
            names = (name for name in os.listdir(path) if not name.startswith("."))
            visible += find_broken_links(path, names)
    return sorted(visible, key=lambda info: info.base_name)


def find_broken_links(folder: str, names: Iterable[str]) -> list[fs.FileInfo]:
    """Links to nothing or to themselves, which pyarrow leaves out silently."""
    paths = (os.path.join(folder, name) for name in names)
    return [
        fs.FileInfo(path, type=fs.FileType.NotFound) for path in paths if not os.path.exists(path)
    ]


def describe_source(config: PrepareConfig) -> str:
    """Begin a sentence about the source, with the field that names it."""
    for field in ("root", "test_root"):
        if (uri := getattr(config, field)) is not None:
            return f"{field} is {uri!r}"
    return f"source is {config.source!r}"


def refuse_second_test_set(test_root: str, first: str) -> NoReturn:
    raise UserError(
        f"test_root is {test_root!r}: {first!r} holds test images as well; leave one of the two out"
    )


def is_folder(info: fs.FileInfo) -> bool:
    return info.type == fs.FileType.Directory


def _find_problem(path: str) -> str | None:
    """Return why a local file must not be opened; None where it may be."""
    facts = os.stat(path)
    if stat.S_ISDIR(facts.st_mode):
        return "a folder, not an image"
    if not stat.S_ISREG(facts.st_mode):
        return "a pipe or device, not an image"
    return TOO_LARGE if facts.st_size > MAX_FILE_BYTES else None


def hash_files(files: Iterable[fs.FileInfo]) -> str:
    facts = sorted((info.path, info.size, info.mtime_ns) for info in files)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def read_files(references: pa.Table) -> Iterator[bytes | BadImage]:
    """Read whole files; `folder` gives the file system, `path` the path on it, or in an archive.

    A pipe or device is never opened, as it may have no end; of a larger file, MAX_FILE_BYTES are
    read.

    Raises:
        StorageError: where an object store stays out of reach: nothing is known of the files then.
    """
    folders = references["folder"].to_pylist()
    file_systems = {folder: filesystems.resolve(folder)[0] for folder in set(folders)}

    @cache
    def find(folder: str, parent: str) -> str | None:
        return read_again(folder, partial(find_archive, file_systems[folder], f"{parent}/"))

    rows = zip(folders, references["path"].to_pylist(), strict=True)

    def find_place(row: tuple[str, str]) -> tuple[str, str] | None:
        folder, path = row
        archive = find(folder, path.rpartition("/")[0])
        return None if archive is None else (folder, archive)

    for place, group in groupby(rows, find_place):
        if place is None:
            yield from _read_paths([(folder, file_systems[folder], path) for folder, path in group])
            continue
        folder, archive = place
        members = read_members(
            file_systems[folder],
            archive,
            [path[len(archive) + 1 :] for _, path in group],
            uri=folder,
            max_bytes=MAX_FILE_BYTES,
        )
        yield from map(_bound, members)


def _read_paths(places: list[tuple[str, fs.FileSystem, str]]) -> Iterator[bytes | BadImage]:
    with ThreadPoolExecutor(_READERS_PER_TASK) as pool:
        for some in range(0, len(places), _IMAGES_IN_MEMORY):
            yield from pool.map(_read_path, places[some : some + _IMAGES_IN_MEMORY])


def _read_path(place: tuple[str, fs.FileSystem, str]) -> bytes | BadImage:
    uri, file_system, path = place

    def read() -> bytes:
        with file_system.open_input_stream(path, compression=None) as stream:
            return stream.read(MAX_FILE_BYTES + 1)

    try:
        if not is_local(file_system):
            return _bound(read_again(uri, read))
        return BadImage(reason) if (reason := _find_problem(path)) else _bound(read())
    except FileNotFoundError:
        return BadImage("missing file")
    except StorageError:
        raise
    except IsADirectoryError:
        return BadImage("a folder, not an image")
    except OSError as error:
        return BadImage(f"unreadable: {error}")


def _bound(content: bytes | BadImage) -> bytes | BadImage:
    if isinstance(content, BadImage) or len(content) <= MAX_FILE_BYTES:
        return content
    return BadImage(TOO_LARGE)
