"""Size and time of images that tables name outside of their root, where nothing is listed."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pyarrow import fs

from cluster.io import filesystems, storage
from cluster.io.errors import StorageError
from datasets.prepare.archives import find_archive
from datasets.prepare.remote import is_local, read_again

_NUM_THREADS = 32  # an object store answers one question a file


def describe_outside(places: Iterable[tuple[str, str]]) -> list[fs.FileInfo]:
    """Return what `hash_files` needs of files, by the URI of the file system and the path on it.

    Raises:
        StorageError: where it is out of reach.
    """
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        return list(threads.map(_describe, sorted(set(places))))


def _describe(place: tuple[str, str]) -> fs.FileInfo:
    uri, path = place
    file_system, _ = filesystems.resolve(uri)
    look_up = partial(_look_up, file_system, path)
    try:
        info = look_up() if is_local(file_system) else read_again(uri, look_up)
    except StorageError:
        raise
    except OSError:  # nor can it be read
        info = fs.FileInfo(path, fs.FileType.NotFound)
    # With its file system: another one may have the same path.
    return fs.FileInfo(storage.join(uri, path), info.type, size=info.size, mtime_ns=info.mtime_ns)


def _look_up(file_system: fs.FileSystem, path: str) -> fs.FileInfo:
    """Look up a file, or the archive that it is in."""
    return file_system.get_file_info(find_archive(file_system, path) or path)
