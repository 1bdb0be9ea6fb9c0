"""Files on local paths, s3://, gs:// and hf:// through one door, written whole or not at all."""

import os
import uuid

import pyarrow as pa
from pyarrow import fs

JOB_ENV_VAR = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of `uri` and the path on it; relative paths are local.

    Raises:
        ValueError: for a scheme neither pyarrow nor fsspec knows.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), os.path.abspath(uri)
    try:
        return fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, ImportError):
        return _resolve_fsspec(uri)
    except OSError as error:
        raise ValueError(f"URI {uri!r} cannot be opened: {error}") from error


def _resolve_fsspec(uri: str) -> tuple[fs.FileSystem, str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise ValueError(f"URI {uri!r} cannot be opened: {error}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def absolute(uri: str, field: str) -> str:
    """Return `uri` such that it means the same in any folder.

    Raises:
        ValueError: for a relative path in a job of `ray job submit`, where it would name a place in
            the job's copy of the working folder, which nobody keeps.
    """
    if "://" in uri or os.path.isabs(uri):
        return uri
    if JOB_ENV_VAR in os.environ:
        raise ValueError(
            f"{field} is {uri!r}: a submitted job runs in a folder that is thrown away; give an "
            "absolute path on shared storage, or a URI such as s3://bucket/folder"
        )
    return os.path.abspath(uri)


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI."""
    return "/".join([uri.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def read_bytes(uri: str) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: where there is none.
    """
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def write_bytes(uri: str, content: bytes) -> None:
    """Write a whole file: a reader sees the old content or the new, never a part.

    Local files are written beside and renamed; object stores show an object only once it is whole.
    """
    filesystem, path = resolve(uri)
    if not isinstance(filesystem, fs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    beside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    with open(beside, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, path)


def list_names(uri: str) -> list[str]:
    """Names directly below a folder, sorted; none where it does not exist."""
    filesystem, path = resolve(uri)
    below = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in below)


def delete_folder(uri: str) -> None:
    """Delete a folder and what lies below it; nothing happens where it does not exist."""
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def delete_file(uri: str) -> None:
    """Delete a file; nothing happens where it does not exist."""
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        filesystem.delete_file(path)
