"""Read and write files on local paths, s3://, gs:// and hf://; a file is whole or not there.

Names in a URI are literal, as in `aws s3`: a space or a % stands for itself. Credentials and
endpoints come from environment variables of each process:

    s3://  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION; AWS_ENDPOINT_URL for
           MinIO, Ceph and R2; or what else the AWS SDK knows (profiles, roles of a machine)
    gs://  GOOGLE_APPLICATION_CREDENTIALS; gs://anonymous@BUCKET for public data
    hf://  HF_TOKEN
"""

import errno
import os
import sys
import textwrap
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cluster.io.errors import MissingFileError, StorageError, UserError
from cluster.io.fields import check_text
from cluster.io.retry import doubling, retry

MAX_NAME_BYTES = 255
JOB_ENV_VAR = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job

# Options of pyarrow. Small objects go in one request instead of three; without a limit a process
# without Google credentials would ask for them for 15 minutes.
BUCKET_OPTIONS = {
    "s3": "allow_delayed_open=true",
    "gs": "retry_limit_seconds=60",
    "gcs": "retry_limit_seconds=60",
}
_GOOGLE = "check the bucket and GOOGLE_APPLICATION_CREDENTIALS"
REMEDIES = {
    "s3": "check the bucket, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL",
    "gs": _GOOGLE,
    "gcs": _GOOGLE,
    "hf": "check the network, the name of the repository and HF_TOKEN",
}

# The AWS SDK gives a request up that moves no byte for some seconds. What the kernel has of it
# (4 MB) takes longer on a slow link: at 100 kB/s no checkpoint of 1 MB was ever written.
REQUEST_TIMEOUT_S = 60.0
# A busy S3 server is asked so often, within 6 s.
NUM_ATTEMPTS = 8
# Except where the words of a 503 don't fit into the memory that pyarrow has ready for a small
# object: that it reports as a failure of its own.
BUSY = "INTERNAL_FAILURE during GetObject"
NUM_RETRIES, FIRST_RETRY_S = 5, 0.2
LOCAL_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or have the quota raised",
    errno.EROFS: "mount it for writing",
}


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of `uri` and the path on it; relative paths are local.

    Raises:
        UserError: for a scheme neither pyarrow nor fsspec knows, a package that is missing, a
            bucket that can't be looked up, and for control characters or credentials in the URI.
    """
    check_text(uri, "a URI")
    scheme, separator, place = uri.partition("://")
    if not separator:
        return fs.LocalFileSystem(), os.path.abspath(uri)
    if scheme == "file":
        return fs.LocalFileSystem(), os.path.abspath(place)
    if scheme not in BUCKET_OPTIONS:
        return _resolve_fsspec(uri)
    bucket = place.split("/", 1)[0]
    name = bucket.removeprefix("anonymous@") if scheme != "s3" else bucket
    if not name:
        raise UserError(f"URI {uri!r} names no bucket: use {scheme}://BUCKET/PATH")
    if "@" in name or ":" in name:  # the URI is not shown: it may hold a secret
        raise UserError(
            f"a URI of {scheme}:// holds credentials: it would carry them into configs and logs; "
            f"use {scheme}://BUCKET/PATH, and give them in the environment"
        )
    with explaining(uri):
        filesystem = _open_bucket(scheme, bucket)
    return filesystem, place.removeprefix("anonymous@" if bucket != name else "").rstrip("/")


@cache
def _open_bucket(scheme: str, bucket: str) -> fs.FileSystem:
    """Kept: another one would look up the bucket and greet the server again for each file."""
    filesystem = fs.FileSystem.from_uri(f"{scheme}://{bucket}?{BUCKET_OPTIONS[scheme]}")[0]
    if not isinstance(filesystem, fs.S3FileSystem):
        return filesystem
    _, (found,) = filesystem.__reduce__()  # its region and endpoint; a URI holds no timeout
    return fs.S3FileSystem(
        **found
        | {
            "request_timeout": REQUEST_TIMEOUT_S,
            "retry_strategy": fs.AwsDefaultS3RetryStrategy(max_attempts=NUM_ATTEMPTS),
        }
    )


def _resolve_fsspec(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or error.name
        raise UserError(
            f"URI {uri!r} needs the package {package}: `pip install {package}` on every node"
        ) from error
    except ValueError as error:
        raise UserError(f"URI {uri!r} cannot be opened: {error}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


@contextmanager
def explaining(uri: str) -> Iterator[None]:
    """Turn what a file system says about `uri` into the user's sentence.

    Raises:
        MissingFileError: for a FileNotFoundError.
        UserError: for any other OSError, where no server answers, and for names that are not UTF-8.
    """
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise _missing(uri) from error
    except (OSError, *_http_errors()) as error:
        raise UserError(_explain(uri, error)) from error
    except UnicodeError as error:
        name = getattr(error, "object", b"")
        name = os.fsencode(name) if isinstance(name, str) else name
        raise UserError(f"URI {uri!r}: {name!r} there is no name in UTF-8; rename it") from None


def _http_errors() -> tuple[type[Exception], ...]:
    """Return those of Hugging Face's client that are no OSErrors; it is imported for hf:// only."""
    clients = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return tuple(client.HTTPError for client in clients if client is not None)


def _explain(uri: str, error: Exception) -> str:
    number = getattr(error, "errno", None) or 0
    remedy = REMEDIES.get(uri.split("://")[0]) or LOCAL_REMEDIES.get(
        number, "check the path and who may use it"
    )
    return f"URI {uri!r} is out of reach ({textwrap.shorten(str(error), 240)}); {remedy}"


def _missing(uri: str) -> MissingFileError:
    return MissingFileError(f"URI {uri!r} does not exist; check the path, or bring the file back")


def _refuse_missing_bucket(uri: str, filesystem: fs.FileSystem, path: str) -> None:
    """A bucket that isn't there looks like a file that isn't there, until the first write."""
    if not isinstance(filesystem, fs.S3FileSystem | fs.GcsFileSystem):
        return
    bucket = path.split("/", 1)[0]
    try:
        missing = filesystem.get_file_info(bucket).type == fs.FileType.NotFound
    except OSError:
        return  # some may use its objects without seeing the bucket
    if missing:
        where = " and where AWS_ENDPOINT_URL points" if uri.startswith("s3:") else ""
        raise UserError(
            f"URI {uri!r}: there is no bucket {bucket!r}; create it, or check its name{where}"
        )


def absolute(uri: str, field: str) -> str:
    """Return `uri` such that it means the same in any folder.

    Raises:
        UserError: for a relative path in a job of `ray job submit`, where it would name a place in
            the job's copy of the working folder, which is deleted; and for an empty one.
    """
    if not uri.strip():
        raise UserError(f"{field} is {uri!r}: give a path or a URI")
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
    filesystem, path = resolve(uri)
    with explaining(uri):
        found = filesystem.get_file_info(path).type != fs.FileType.NotFound
    if not found:
        _refuse_missing_bucket(uri, filesystem, path)
    return found


def read_bytes(uri: str, *, start: int = 0) -> bytes:
    """Read a file, whole or from its byte `start` on; nothing where it is shorter.

    Raises:
        MissingFileError: where there is none.
        UserError: where not even its bucket is there.
        StorageError: where it is out of reach: nothing is known about the file then.
    """
    filesystem, path = resolve(uri)

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
        _refuse_missing_bucket(uri, filesystem, path)
        raise _missing(uri) from None
    except (OSError, *_http_errors()) as error:
        raise StorageError(_explain(uri, error)) from error


def _is_busy(error: Exception) -> bool:
    return isinstance(error, OSError) and BUSY in str(error)


def size_of(uri: str) -> int:
    """Bytes of a file, for one request of an object store.

    Raises:
        MissingFileError: where there is none.
        UserError: where not even its bucket is there.
        StorageError: where it is out of reach: nothing is known about the file then.
    """
    filesystem, path = resolve(uri)
    try:
        found = filesystem.get_file_info(path)
    except OSError as error:
        raise StorageError(_explain(uri, error)) from error
    if found.type != fs.FileType.File:
        _refuse_missing_bucket(uri, filesystem, path)
        raise _missing(uri)
    return found.size


def write_bytes(uri: str, content: bytes) -> None:
    """Write a whole file: a reader sees the old content or the new, never a part.

    Local files are written beside and renamed; object stores show an object only once it is whole.

    Raises:
        UserError: where it can't be written.
    """
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        with explaining(uri):
            _write_local(path, content)
        return
    # Any exception that closes a stream of pyarrow makes an object of what it holds, be it nothing.
    # In a thread of its own no interrupt can come between the first byte and the last.
    with explaining(uri), ThreadPoolExecutor(1) as uploader:
        uploader.submit(_upload, filesystem, path, memoryview(content)).result()


def can_append(uri: str) -> bool:
    """Whether `append_bytes` works there: object stores hold whole objects only."""
    return isinstance(resolve(uri)[0], fs.LocalFileSystem)


def append_bytes(uri: str, content: bytes) -> None:
    """Add to the end of a local file that is there; what can't be added whole is taken back.

    Raises:
        UserError: where it can't be written.
    """
    _, path = resolve(uri)
    with explaining(uri), open(path, "r+b", buffering=0) as stream:
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
    filesystem, path = resolve(uri)
    with explaining(uri):
        below = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in below)


def delete_folder(uri: str) -> None:
    """Delete a folder and everything below it, if it exists."""
    filesystem, path = resolve(uri)
    with explaining(uri):
        if filesystem.get_file_info(path).type == fs.FileType.Directory:
            filesystem.delete_dir(path)


def delete_file(uri: str) -> None:
    """Delete a file, if it exists."""
    filesystem, path = resolve(uri)
    with explaining(uri):
        if filesystem.get_file_info(path).type == fs.FileType.File:
            filesystem.delete_file(path)
