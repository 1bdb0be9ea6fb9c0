"""Files in zip and tar archives, listed and read in place.

A file in an archive has the path it would have in a folder of the archive's name:
`photos/cars.zip/audi/1.jpg`.
"""

import io
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from lzma import LZMAError

import pyarrow as pa
from pyarrow import fs

from cluster.io.errors import StorageError, UserError
from datasets.images import BadImage
from datasets.prepare.remote import open_buffered

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError),
    *(EOFError, OSError, pa.ArrowException),
    *(UnicodeError, NotImplementedError),  # names in a zip, and versions of one
)
_ENCRYPTED, _UTF_8 = 0x1, 0x800
"""Flags of a file in a zip."""


def is_archive(name: str) -> bool:
    return name.casefold().endswith(SUFFIXES)


def without_suffix(name: str) -> str:
    """`cars` of `cars.tar.gz`."""
    suffix = max(filter(name.casefold().endswith, SUFFIXES), key=len)
    return name[: -len(suffix)]


def find_archive(file_system: fs.FileSystem, path: str) -> str | None:
    """Return the archive that a path leads into; None where it is a file of a folder."""
    parts = path.split("/")
    for depth, part in enumerate(parts[:-1], start=1):
        if is_archive(part):
            archive = "/".join(parts[:depth])
            if file_system.get_file_info(archive).type == fs.FileType.File:
                return archive
    return None


def list_members(file_system: fs.FileSystem, archive: fs.FileInfo, uri: str) -> list[fs.FileInfo]:
    """List the files of an archive, on the file system of `uri`.

    Raises:
        UserError: where it is damaged or needs a password; the message begins after `root is X`.
        StorageError: where it is out of reach.
    """
    try:
        with open_buffered(file_system, archive.path, uri) as stream:
            sizes = _list_zip(stream) if _is_zip(archive.path) else _list_tar(stream)
    except StorageError:
        raise
    except _DAMAGE as error:
        raise UserError(
            f"{archive.path} can't be read as an archive ({error}); copy it again, or unpack "
            "what can be read"
        ) from error
    if sizes is None:
        raise UserError(f"{archive.path} needs a password; unpack it")
    return [
        fs.FileInfo(
            f"{archive.path}/{name}", fs.FileType.File, size=size, mtime_ns=archive.mtime_ns
        )
        for name, size in sizes.items()
    ]


def read_members(
    file_system: fs.FileSystem, archive: str, names: Sequence[str], *, uri: str, max_bytes: int
) -> Iterator[bytes | BadImage]:
    """Yield the contents of files of an archive, in the order of `names`.

    At most `max_bytes` + 1 of each are read. A compressed tar is read from its start, once, and all
    that it yields is in memory at a time.

    Args:
        uri: of the file system.

    Raises:
        StorageError: where it is out of reach.
    """
    num_yielded = 0
    try:
        with open_buffered(file_system, archive, uri) as stream:
            read = _read_zip if _is_zip(archive) else _read_tar
            for content in read(stream, names, max_bytes + 1):
                yield content
                num_yielded += 1
    except StorageError:
        raise
    except _DAMAGE as error:
        reason = f"unreadable: its archive can't be read ({error})"
        yield from [BadImage(reason)] * (len(names) - num_yielded)


def _is_zip(path: str) -> bool:
    return path.casefold().endswith(".zip")


def _clean(name: str) -> str:
    """Tools write `./audi/1.jpg`, and `audi\\1.jpg`."""
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _name_in_zip(info: zipfile.ZipInfo) -> str:
    """Return a name in a zip: macOS writes UTF-8 without the flag that says so."""
    if info.flag_bits & _UTF_8:
        return _clean(info.filename)
    try:
        return _clean(info.filename.encode("cp437").decode())
    except UnicodeError:  # in the code page of the machine that wrote it
        return _clean(info.filename)


def _name_in_tar(info: tarfile.TarInfo) -> str:
    """Return a name in a tar: an old one is in the encoding of the machine that wrote it."""
    name = info.name
    try:
        name.encode()
    except UnicodeError:
        name = name.encode(errors="surrogateescape").decode("latin-1")
    return _clean(name)


def _list_zip(stream: io.BufferedReader) -> dict[str, int] | None:
    with zipfile.ZipFile(stream) as archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
    if files and all(info.flag_bits & _ENCRYPTED for info in files):
        return None
    return {_name_in_zip(info): info.file_size for info in files}


def _list_tar(stream: io.BufferedReader) -> dict[str, int]:
    with tarfile.open(fileobj=stream, encoding="utf-8") as archive:
        return {_name_in_tar(info): info.size for info in archive if not info.isdir()}


def _read_zip(
    stream: io.BufferedReader, names: Sequence[str], num_bytes: int
) -> Iterator[bytes | BadImage]:
    with zipfile.ZipFile(stream) as archive:
        found = {_name_in_zip(info): info for info in archive.infolist()}
        for name in names:
            info = found.get(name)
            if info is None:
                yield BadImage("missing file")
            else:
                yield _read_zip_member(archive, info, num_bytes)


def _read_zip_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, num_bytes: int
) -> bytes | BadImage:
    try:
        with archive.open(info) as file:
            return file.read(num_bytes)
    except (*_DAMAGE, RuntimeError) as error:  # a password
        return BadImage(f"unreadable: {error}")


def _read_tar(
    stream: io.BufferedReader, names: Sequence[str], num_bytes: int
) -> Iterator[bytes | BadImage]:
    wanted, found = set(names), dict[str, tarfile.TarInfo]()
    contents = dict[str, bytes | BadImage]()
    missing = BadImage("missing file")
    with tarfile.open(fileobj=stream, encoding="utf-8") as archive:
        is_plain = archive.fileobj is stream
        try:
            for info in archive:
                if (name := _name_in_tar(info)) in wanted:
                    found[name] = info
                    if not is_plain:  # only in this order
                        contents[name] = _read_tar_member(archive, info, num_bytes)
        except _DAMAGE as error:
            missing = BadImage(f"unreadable: its archive can't be read ({error})")
        for name in names:
            if is_plain and (info := found.get(name)) is not None:
                yield _read_tar_member(archive, info, num_bytes)
            else:
                yield contents.get(name, missing)


def _read_tar_member(
    archive: tarfile.TarFile, info: tarfile.TarInfo, num_bytes: int
) -> bytes | BadImage:
    try:
        file = archive.extractfile(info)
        return BadImage("a folder, not an image") if file is None else file.read(num_bytes)
    except (KeyError, RecursionError):  # a link to itself
        return BadImage("a link to nothing")
    except _DAMAGE as error:
        return BadImage(f"unreadable: {error}")
