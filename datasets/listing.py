"""What every source hands to `prepare`: its classes, and references to images nobody has opened.

A reference is a row of `split` (train, val or test), `label` (an index into the classes; negative
where the image has none), `path` (for people) and whatever the source's reader opens it by.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from datasets import storage
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


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The classes of a source and a reference to each of its images."""

    classes: tuple[str, ...]
    references: pa.Table
    read: Reader
    """Runs in the tasks: the contents of some references, in their order. What can't be had at
    all comes as the BadImage that says why."""
    version: str
    """Changes with the paths, sizes and modification times of the source."""


def list_visible(field: str, uri: str) -> list[fs.FileInfo]:
    """Files and folders directly below `uri`, sorted, without hidden ones.

    Raises:
        ValueError: where there is no such folder, which the sentence blames on `field`, or it is
            out of reach.
    """
    file_system, path = storage.resolve(uri)
    with storage.explaining(uri):
        if file_system.get_file_info(path).type != fs.FileType.Directory:
            raise ValueError(f"{field} is {uri!r}: there is no such folder; check the path")
        below = file_system.get_file_info(fs.FileSelector(path))
    visible = (info for info in below if not info.base_name.startswith("."))
    return sorted(visible, key=lambda info: info.base_name)


def is_folder(info: fs.FileInfo) -> bool:
    return info.type == fs.FileType.Directory


def hash_files(files: Iterable[fs.FileInfo]) -> str:
    facts = sorted((info.path, info.size, info.mtime_ns) for info in files)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def read_files(references: pa.Table) -> Iterator[bytes | BadImage]:
    """Read files whole; `folder` tells the file system, `path` the place on it."""
    folders = references["folder"].to_pylist()
    file_systems = {folder: storage.resolve(folder)[0] for folder in set(folders)}

    def read(folder: str, path: str) -> bytes | BadImage:
        try:
            with file_systems[folder].open_input_stream(path, compression=None) as stream:
                return stream.read()
        except FileNotFoundError:
            return BadImage("missing file")
        except OSError as error:
            is_dir = is_folder(file_systems[folder].get_file_info(path))
            return BadImage("a folder, not an image" if is_dir else f"unreadable: {error}")

    paths = references["path"].to_pylist()
    with ThreadPoolExecutor(_READERS_PER_TASK) as pool:
        for some in range(0, len(paths), _IMAGES_IN_MEMORY):
            chosen = slice(some, some + _IMAGES_IN_MEMORY)
            yield from pool.map(read, folders[chosen], paths[chosen])
