"""Read and write files on local paths, s3://, gs:// and hf://; a file is whole or not there.

Names in a URI are literal, as in `aws s3`: a space or a % stands for itself.
"""

import errno
import os
import re
import textwrap
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cluster.io import filesystems
from cluster.io.errors import StorageError, UserError
from cluster.io.retry import doubling, retry

MAX_NAME_BYTES = 255
JOB_ENV_VAR = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job

# Where the words of a 503 don't fit into the memory that pyarrow has ready for a small object, it
# asks no second time, and reports a failure of its own.
BUSY = "INTERNAL_FAILURE during GetObject"
NUM_RETRIES, FIRST_RETRY_S = 5, 0.2
NO_PLACE = re.compile(r"(s3|gs|gcs|hf):/(?:[^/]|/*$)")
"""A URI without a bucket, or with one slash: a local path to those who know no better."""


def absolute(uri: str, field: str) -> str:
    """Return `uri` such that it means the same in any folder.

    Raises:
        UserError: for a relative path in a job of `ray job submit`, where it would name a place in
            the job's copy of the working folder, which is deleted; and for one that is empty, or
            names a scheme alone.
    """
    if not uri.strip():
        raise UserError(f"{field} is {uri!r}: give a path or a URI")
    if (scheme := NO_PLACE.match(uri)) is not None:
        raise UserError(f"{field} is {uri!r}: use {scheme[1]}://BUCKET/FOLDER")
    if "://" in uri or os.path.isabs(uri):
        return uri
    if JOB_ENV_VAR in os.environ:
        raise UserError(
            f"{field} is {uri!r}: a submitted job runs in a folder that is thrown away; give an "
            "absolute path on shared storage, or a URI such as s3://bucket/folder"
        )
    return os.path.abspath(uri)


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI."""
    return "/".join([uri.rstrip("/"), *parts])


def is_name(name: str) -> bool:
    """Whether `name` is that of one file or folder, and names no way to another place."""
    return (
        0 < len(name.encode(errors="replace")) <= MAX_NAME_BYTES
        and name not in (".", "..")
        and not any(character in "/\\" or not character.isprintable() for character in name)
    )


def require_name(field: str, name: str) -> None:
    """Refuse what is not the name of one file or folder.

    Raises:
        UserError: naming the field.
    """
    if not is_name(name):
        raise UserError(f"{field} is {name[:200]!r}: use the name of a file or folder, no path")


def leaves(place: str, folder: str) -> bool:
    """Whether a local path, its links followed, lies outside of a folder."""
    return not f"{os.path.realpath(place)}/".startswith(f"{os.path.realpath(folder)}/")


def exists(uri: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        UserError: where not even its bucket is there, or it is out of reach.
    """
    filesystem, path = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        found = filesystem.get_file_info(path).type != fs.FileType.NotFound
    if not found:
        filesystems.refuse_missing_bucket(uri, filesystem, path)
    return found


def read_bytes(uri: str, *, start: int = 0) -> bytes:
    """Read a file, whole or from its byte `start` on; nothing where it is shorter.

    Raises:
        MissingFileError: where there is none.
        UserError: where not even its bucket is there.
        StorageError: where it is out of reach: nothing is known about the file then.
    """
    filesystem, path = filesystems.resolve(uri)

    def read() -> bytes:
        if start:
            with filesystem.open_input_file(path) as file:
                return file.read_at(max(0, file.size() - start), start)
        # Without `compression`, a name that ends in .gz would be unpacked.
        with filesystem.open_input_stream(path, compression=None) as stream:
            return stream.read()

    try:
        return retry(read, _is_busy, doubling(FIRST_RETRY_S, times=NUM_RETRIES))
    except FileNotFoundError:
        filesystems.refuse_missing_bucket(uri, filesystem, path)
        raise filesystems.missing(uri) from None
    except (OSError, *filesystems.http_errors()) as error:
        raise StorageError(filesystems.explain(uri, error)) from error


def _is_busy(error: Exception) -> bool:
    return isinstance(error, OSError) and BUSY in str(error)


def size_of(uri: str) -> int:
    """Bytes of a file, for one request of an object store.

    Raises:
        MissingFileError: where there is none.
        UserError: where not even its bucket is there.
        StorageError: where it is out of reach: nothing is known about the file then.
    """
    filesystem, path = filesystems.resolve(uri)
    try:
        found = filesystem.get_file_info(path)
    except OSError as error:
        raise StorageError(filesystems.explain(uri, error)) from error
    if found.type != fs.FileType.File:
        filesystems.refuse_missing_bucket(uri, filesystem, path)
        raise filesystems.missing(uri)
    return found.size


def write_bytes(uri: str, content: bytes) -> None:
    """Write a whole file: a reader sees the old content or the new, never a part.

    Local files are written beside and renamed; object stores show an object only once it is whole.

    Raises:
        UserError: where it can't be written.
    """
    filesystem, path = filesystems.resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        with filesystems.explaining(uri):
            try:
                _write_local(path, content)
            except FileNotFoundError as error:  # no folder can be made there, as in /proc
                raise UserError(filesystems.explain(uri, error)) from error
        return
    # Any exception that closes a stream of pyarrow makes an object of what it holds, be it nothing.
    # In a thread of its own no interrupt can come between the first byte and the last.
    with filesystems.explaining(uri), ThreadPoolExecutor(1) as uploader:
        uploader.submit(_upload, filesystem, path, memoryview(content)).result()


def can_append(uri: str) -> bool:
    """Whether `append_bytes` works there: object stores hold whole objects only."""
    return isinstance(filesystems.resolve(uri)[0], fs.LocalFileSystem)


def append_bytes(uri: str, content: bytes) -> None:
    """Add to the end of a local file that is there; what can't be added whole is taken back.

    Raises:
        UserError: where it can't be written.
    """
    _, path = filesystems.resolve(uri)
    with filesystems.explaining(uri), open(path, "r+b", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        try:
            if stream.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(size)
            raise


def _upload(filesystem: fs.FileSystem, path: str, content: memoryview) -> None:
    with filesystem.open_output_stream(path, compression=None) as stream:
        stream.write(content)


def _write_local(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    beside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(beside, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException:  # a part of a file would keep a full disk full
        with suppress(OSError):
            os.unlink(beside)
        raise


def read_parquet(uri: str) -> pa.Table:
    """Read a whole table.

    Raises:
        MissingFileError: where there is none.
        UserError: where it is no Parquet file, or a damaged one.
    """
    content = read_bytes(uri)
    try:
        return pq.read_table(pa.BufferReader(content))
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{uri} is damaged, or no Parquet file ({textwrap.shorten(str(error), 240)}); delete "
            "it, and run the command again that wrote it"
        ) from None


def write_parquet(uri: str, table: pa.Table, **options: Any) -> int:
    """Write a table, whole or not at all, and return its size; options are those of pyarrow."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    content = sink.getvalue()
    write_bytes(uri, content.to_pybytes())
    return content.size


def list_names(uri: str) -> list[str]:
    """Names directly below a folder, sorted; none where it does not exist."""
    filesystem, path = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        below = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in below)


def delete_folder(uri: str) -> None:
    """Delete a folder and everything below it, if it exists."""
    filesystem, path = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        if filesystem.get_file_info(path).type == fs.FileType.Directory:
            filesystem.delete_dir(path)


def delete_file(uri: str) -> None:
    """Delete a file, if it exists."""
    filesystem, path = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        if filesystem.get_file_info(path).type == fs.FileType.File:
            filesystem.delete_file(path)
