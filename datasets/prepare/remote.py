"""Files of a source on an object store: an outage is waited for, and never taken for damage."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from pyarrow import fs

from cluster.io import filesystems
from cluster.io.errors import StorageError
from cluster.io.retry import doubling, retry

T = TypeVar("T")

FIRST_RETRY_S, NUM_RETRIES = 1.0, 5
"""With some seconds of the store's own client each time, about a minute."""
_BUFFER_BYTES = 2**20
_SURE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_DENIED = ("ACCESS_DENIED", "PERMISSION_DENIED")
"""How pyarrow's S3 and Google clients write that a file is not for this user."""


def is_local(file_system: fs.FileSystem) -> bool:
    return isinstance(file_system, fs.LocalFileSystem)


def read_again(uri: str, read: Callable[[], T]) -> T:
    """Read, with retries where storage fails temporarily.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError: of which storage
            is sure.
        StorageError: where it stays out of reach; it names `uri`.
    """
    try:
        return retry(read, _may_pass, doubling(FIRST_RETRY_S, times=NUM_RETRIES))
    except _SURE:
        raise
    except (OSError, *filesystems.http_errors()) as error:
        if _is_denied(error):
            raise PermissionError(str(error)) from error
        raise StorageError(filesystems.explain(uri, error)) from error


def _may_pass(error: Exception) -> bool:
    fails = isinstance(error, (OSError, *filesystems.http_errors()))
    return fails and not isinstance(error, _SURE) and not _is_denied(error)


def _is_denied(error: Exception) -> bool:
    return any(word in str(error) for word in _DENIED)


class RemoteFile(io.RawIOBase):
    """A file that is read as by `read_again`; after an outage every read raises it at once."""

    def __init__(self, file_system: fs.FileSystem, path: str, uri: str) -> None:
        super().__init__()
        self._uri, self._position = uri, 0
        self._file = read_again(uri, partial(file_system.open_input_file, path))
        self._size = read_again(uri, self._file.size)
        self.outage: StorageError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError("a position before the start of the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.outage is not None:
            raise self.outage
        num_bytes = min(len(buffer), max(0, self._size - self._position))
        read = partial(self._file.read_at, num_bytes, self._position)
        try:
            content = read_again(self._uri, read) if num_bytes else b""
        except StorageError as error:
            self.outage = error
            raise
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def open_buffered(file_system: fs.FileSystem, path: str, uri: str) -> Iterator[io.BufferedReader]:
    """Open a file, on the file system of `uri`, for a reader that may take an outage for damage.

    Raises:
        StorageError: at the end, whatever the reader made of an outage.
    """
    if is_local(file_system):
        with file_system.open_input_file(path) as file:
            yield io.BufferedReader(file, _BUFFER_BYTES)  # pyright: ignore[reportArgumentType]
        return
    with RemoteFile(file_system, path, uri) as file:
        try:
            yield io.BufferedReader(file, _BUFFER_BYTES)
        finally:
            if file.outage is not None:
                raise file.outage
