"""The file system of a URI, and what the user reads where it fails.

Credentials and endpoints come from environment variables of each process:

    s3://  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION; AWS_ENDPOINT_URL for
           MinIO, Ceph and R2; or what else the AWS SDK knows (profiles, roles of a machine)
    gs://  GOOGLE_APPLICATION_CREDENTIALS; gs://anonymous@BUCKET for public data
    hf://  HF_TOKEN
"""

import errno
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.parse import quote

import fsspec
from pyarrow import fs

from cluster.io.errors import MissingFileError, StorageError, UserError, show
from cluster.io.fields import check_text

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
BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]+")  # pyarrow parses no other host in a URI
LOCAL_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or have the quota raised",
    errno.EROFS: "mount it for writing",
    errno.ENOTDIR: "a folder of the path is a file",
    errno.EISDIR: "it is a folder: give the name of a file",
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
    if not BUCKET_NAME.fullmatch(name):
        raise UserError(
            f"URI {show(uri)} has the bucket {show(name)}: use {scheme}://BUCKET/PATH, where "
            "BUCKET has letters, digits, dots, - and _ alone"
        )
    with explaining(uri):
        filesystem = _open_bucket(scheme, bucket)
    return filesystem, place.removeprefix("anonymous@" if bucket != name else "").rstrip("/")


def escape(uri: str) -> str:
    """Return a URI for those who parse it by `pyarrow.fs.FileSystem.from_uri`, as Ray does: there
    %41 stands for an A and # ends the path, while our names are literal."""
    scheme, separator, place = uri.partition("://")
    if not separator or scheme not in ("file", *BUCKET_OPTIONS):
        return uri
    bucket, slash, path = place.partition("/")
    return f"{scheme}://{bucket}{slash}{quote(path)}"


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
        with explaining(uri):
            filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or error.name
        raise UserError(
            f"URI {uri!r} needs the package {package}: `pip install {package}` on every node"
        ) from error
    except (StorageError, UserError):
        raise
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
        raise missing(uri) from error
    except (OSError, *http_errors()) as error:
        raise UserError(explain(uri, error)) from error
    except UnicodeError as error:
        name = getattr(error, "object", b"")
        name = os.fsencode(name) if isinstance(name, str) else name
        raise UserError(f"URI {uri!r}: {name!r} there is no name in UTF-8; rename it") from None


def http_errors() -> tuple[type[Exception], ...]:
    """Return those of Hugging Face's client that are no OSErrors; it is imported for hf:// only."""
    clients = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return tuple(client.HTTPError for client in clients if client is not None)


def explain(uri: str, error: Exception) -> str:
    """Write what a file system said, and the remedy."""
    number = getattr(error, "errno", None) or 0
    remedy = REMEDIES.get(uri.split("://")[0]) or LOCAL_REMEDIES.get(
        number, "check the path and who may use it"
    )
    return f"URI {uri!r} is out of reach ({textwrap.shorten(str(error), 240)}); {remedy}"


def missing(uri: str) -> MissingFileError:
    return MissingFileError(f"URI {uri!r} does not exist; check the path, or bring the file back")


def refuse_missing_bucket(uri: str, filesystem: fs.FileSystem, path: str) -> None:
    """Refuse a bucket that isn't there: until the first write it looks like a missing file.

    Raises:
        UserError: where it is missing.
    """
    if not isinstance(filesystem, fs.S3FileSystem | fs.GcsFileSystem):
        return
    bucket = path.split("/", 1)[0]
    try:
        is_missing = filesystem.get_file_info(bucket).type == fs.FileType.NotFound
    except OSError:
        return  # some may use its objects without seeing the bucket
    if is_missing:
        where = " and where AWS_ENDPOINT_URL points" if uri.startswith("s3:") else ""
        raise UserError(
            f"URI {uri!r}: there is no bucket {bucket!r}; create it, or check its name{where}"
        )
