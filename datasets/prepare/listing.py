"""What every source hands to `prepare`: its classes, and references to images nobody has opened.

A reference is a row of `split` (train, val or test), `label` (an index into the classes; negative
where the image has none), `path` (for people) and whatever the source's reader opens it by.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from cluster.io import storage
from cluster.io.errors import UserError
from datasets.images import BadImage

Reader = Callable[[pa.Table], Iterator[bytes | BadImage]]

SPLIT_OF_NAME = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_READERS_PER_TASK = 8  # an object store answers slowly, but many at once
_IMAGES_IN_MEMORY = 32
MAX_FILE_BYTES = 2**28
"""Fifty megapixels, which is all we decode, take 150 MB uncompressed."""
TOO_LARGE = "too large: more than 256 MiB"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The classes of a source and a reference to each of its images."""

    classes: tuple[str, ...]
    references: pa.Table
    read: Reader
    """Runs in the tasks: the contents of some references, in their order. What can't be read at
    all comes as the BadImage that says why."""
    version: str
    """Changes with the paths, sizes and modification times of the source."""


def list_visible(field: str, uri: str) -> list[fs.FileInfo]:
    """Files and folders directly below `uri`, sorted, without hidden ones.

    Raises:
        UserError: where there is no such folder, which the sentence blames on `field`, or it is
            out of reach.
    """
    file_system, path = storage.resolve(uri)
    with storage.explaining(uri):
        if file_system.get_file_info(path).type != fs.FileType.Directory:
            raise UserError(f"{field} is {uri!r}: there is no such folder; check the path")
        below = file_system.get_file_info(fs.FileSelector(path))
        visible = [info for info in below if not info.base_name.startswith(".")]
        if isinstance(file_system, fs.LocalFileSystem):
            names = (name for name in os.listdir(path) if not name.startswith("."))
            visible += find_broken_links(path, names)
    return sorted(visible, key=lambda info: info.base_name)


def find_broken_links(folder: str, names: Iterable[str]) -> list[fs.FileInfo]:
    """Links to nothing or to themselves: pyarrow leaves them out without a word."""
    places = (os.path.join(folder, name) for name in names)
    return [
        fs.FileInfo(place, type=fs.FileType.NotFound)
        for place in places
        if not os.path.exists(place)
    ]


def is_folder(info: fs.FileInfo) -> bool:
    return info.type == fs.FileType.Directory


def _judge(path: str) -> str | None:
    """Say why a local file is not worth opening; None where it is."""
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
    """Read files whole; `folder` tells the file system, `path` the place on it.

    A pipe or device is never opened, as it may have no end; of a file that is too large for any
    photograph no more is read than tells so.
    """
    folders = references["folder"].to_pylist()
    file_systems = {folder: storage.resolve(folder)[0] for folder in set(folders)}

    def read(folder: str, path: str) -> bytes | BadImage:
        file_system = file_systems[folder]
        try:
            if isinstance(file_system, fs.LocalFileSystem) and (reason := _judge(path)):
                return BadImage(reason)
            with file_system.open_input_stream(path, compression=None) as stream:
                content = stream.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return BadImage("missing file")
        except OSError as error:
            is_dir = is_folder(file_system.get_file_info(path))
            return BadImage("a folder, not an image" if is_dir else f"unreadable: {error}")
        return content if len(content) <= MAX_FILE_BYTES else BadImage(TOO_LARGE)

    paths = references["path"].to_pylist()
    with ThreadPoolExecutor(_READERS_PER_TASK) as pool:
        for some in range(0, len(paths), _IMAGES_IN_MEMORY):
            chosen = slice(some, some + _IMAGES_IN_MEMORY)
            yield from pool.map(read, folders[chosen], paths[chosen])
