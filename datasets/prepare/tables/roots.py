"""Where tables and the images that they name are.

A value names a file below the table's folder or the root, in full or by its name alone, with or
without suffix; or it is an absolute path or a URI, of any bucket. An absolute path of another
machine is found by its end. A name that leads back below the root is one of its files.
"""

import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
from pyarrow import fs

from cluster.io import filesystems, storage
from cluster.io.errors import UserError
from cluster.io.uris import name_of, parent_of
from datasets.prepare.archives import is_archive
from datasets.prepare.listing import walk
from datasets.prepare.names import find_system_name
from datasets.prepare.splits import split_of_path
from datasets.prepare.tables.matching import Files, find_common_folder, to_slashes
from datasets.prepare.tables.rows import Value, is_table
from datasets.prepare.tables.sidecars import find_sidecars

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Hugging Face's `imagefolder`; https://huggingface.co/docs/datasets/image_dataset"""
ROBOFLOW = ("_classes.csv", "_annotations.coco.json")
"""Its exports, in the folder of each split."""

_ELSEWHERE = "another machine"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A file that a table names."""

    uri: str
    """Of its file system."""
    path: str
    """On it."""
    split: str | None = None
    """Of its folder; outside of the root, of a folder in which the names of the table differ."""
    info: fs.FileInfo | None = None
    """None outside of the root, where nothing is listed."""


@dataclass(kw_only=True)
class Root:
    """A place with tables and images."""

    option: str
    """Of the config: root or test_root."""
    uri: str
    """Of the folder that names are below."""
    tables: tuple[str, ...]
    """Paths below `uri`."""
    is_folder: bool = True
    """The option gives the folder; else the table, whose folder may hold much else."""
    sidecars: dict[str, str] = field(default_factory=dict)
    """The label file of each image, where there is no table."""
    used: set[str] = field(default_factory=set)
    """Files with labels, beside the tables."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Tables that are not used, and why."""
    infos: dict[str, fs.FileInfo] | None = None
    """Files below `uri`; None until a name asks for them, as a table may name URIs alone."""
    common: dict[str, str] = field(default_factory=dict)
    """The folder that all files outside of the root are in, by the scheme of their URIs, and of
    those with the absolute path of another machine."""

    def list_named(self, values: Sequence[Value]) -> None:
        """List the files that `values` may name, unless none names a file here: those in the
        folders with which all of them begin, where the table itself was given."""
        texts = [str(value) for value in values if value is not None]
        names = [name for name in texts if not (self._is_outside(name) or name[:3] == "../")]
        if self.infos is not None or not names:
            return
        tops = {name.removeprefix("./").partition("/")[::2] for name in names}
        folders = {top for top, rest in tops if rest}
        uris = {folder: storage.join(self.uri, folder) for folder in sorted(folders) if folder}
        has_files = len(uris) < len({top for top, _ in tops})
        uris = {folder: uri for folder, uri in uris.items() if storage.exists(uri)}
        if self.is_folder or has_files or not uris:
            uris = {"": self.uri}
        infos: dict[str, fs.FileInfo] = {}
        for folder, uri in uris.items():
            prefix = f"{folder}/" if folder else ""
            infos |= {f"{prefix}{p}": info for p, info in walk(self.option, uri).items()}
        self.infos = keep_files(infos)

    def locate(self, name: str, *, table: str, split: str | None) -> Place | None:
        """Return the place of a file that a table names; None where there is none, or several.

        Args:
            split: of the row, where it is known.

        Raises:
            UserError: for a URI that can't be read.
        """
        folder = table.rpartition("/")[0]
        if self._is_outside(name):
            uri, path = self._resolve(name)
            return self._place(uri, path, self._split_by_difference(_scheme_of(uri), path))
        if name.startswith("../") and not folder:
            path = posixpath.normpath(self.address(name))
            return self._place(self.uri, path, split_of_path(name))
        key = self._files.find(name, below=folder, split=split)
        if key is None or self.infos is None:
            return None
        path = self.infos[key].path
        return self._place(self.uri, path, self._split_by_difference(_ELSEWHERE, to_slashes(name)))

    def compare_outside(self, values: Iterable[Value]) -> str | None:
        """Find the folders in which names outside of the root differ: they may tell splits.

        Args:
            values: of all rows whose split the tables do not tell.

        Returns:
            A note, where the folder that all of them are in has the name of a split.

        Raises:
            UserError: for a URI that can't be read.
        """
        paths = dict[str, list[str]]()
        for name in {str(value) for value in values if value is not None}:
            if self._is_outside(name):
                uri, path = self._resolve(name)
                if self._find_key(uri, path) is None:
                    paths.setdefault(_scheme_of(uri), []).append(path)
            elif (path := to_slashes(name)).startswith("/"):
                paths.setdefault(_ELSEWHERE, []).append(path)
        self.common = {scheme: find_common_folder(some) for scheme, some in paths.items()}
        for scheme, folder in self.common.items():
            is_used = all(self._split_by_difference(scheme, path) for path in paths[scheme])
            if scheme != _ELSEWHERE and split_of_path(folder) and not is_used:
                return (
                    f"all images outside of {self.uri} are in {folder}, which is not taken as a "
                    "split; --split-column or --test-root gives one"
                )
        return None

    def _place(self, uri: str, path: str, split: str | None) -> Place:
        """Return a file, as one of the root where it is below it.

        Args:
            split: where no folder below the root tells one.
        """
        if (key := self._find_key(uri, path)) is None:
            return Place(uri=uri, path=path, split=split)
        info = (self.infos or {}).get(key)
        uri, path = (uri, path) if info is None else (self.uri, info.path)
        return Place(uri=uri, path=path, split=split_of_path(key) or split, info=info)

    def _split_by_difference(self, scheme: str, path: str) -> str | None:
        """Return the split of the folders in which a path differs from the others."""
        folder = self.common.get(scheme)
        return split_of_path(path.removeprefix(folder)) if folder is not None else None

    def _find_key(self, uri: str, path: str) -> str | None:
        """Return the path below the root, or below what the root is a link to; None elsewhere."""
        if _scheme_of(uri) != _scheme_of(self.uri):
            return None
        base = next(filter(path.startswith, self._bases), None)
        return None if base is None else path.removeprefix(base)

    @cached_property
    def _bases(self) -> tuple[str, ...]:
        is_local = _scheme_of(self.uri) == "file"
        return (self._base, f"{os.path.realpath(self._base)}/") if is_local else (self._base,)

    @cached_property
    def _base(self) -> str:
        return f"{filesystems.resolve(self.uri)[1].rstrip('/')}/"

    @cached_property
    def _files(self) -> Files:
        visible = (p for p in self.infos or () if find_system_name(p.split("/")) is None)
        return Files(path for path in visible if path not in self.tables)

    def refer_to(self, paths: Sequence[str]) -> pa.Table:
        """Return references to files below the root, for `read_files`."""
        addresses = list(map(self.address, paths))
        return pa.table(
            {
                "folder": pa.array([self.uri] * len(paths), pa.string()),
                "path": pa.array(addresses, pa.string()),
            }
        )

    def address(self, path: str) -> str:
        """Path on the file system, or in an archive there."""
        if (info := (self.infos or {}).get(path)) is not None:
            return info.path
        return f"{self._base}{path}"

    @staticmethod
    def _is_outside(name: str) -> bool:
        """Whether a name is a URI, or an absolute path that is here; one of another machine is
        looked for below the root."""
        return "://" in name or (os.path.isabs(name) and os.path.exists(name))

    def _resolve(self, name: str) -> tuple[str, str]:
        """Return the URI of the file system, and the path on it, of a name outside of the root."""
        scheme, separator, place = name.partition("://")
        if scheme in ("http", "https", "ftp"):
            raise UserError(
                f"{self.option} is {self.uri!r}: {name} is on the web; download the images first, "
                "to a folder or a bucket"
            )
        uri = f"{scheme}://{place.partition('/')[0]}" if separator and scheme != "file" else "/"
        try:
            return uri, filesystems.resolve(name)[1]
        except UserError as error:
            raise UserError(f"{self.option} is {self.uri!r}: {error}") from None


def _scheme_of(uri: str) -> str:
    """Return the scheme of a URI; `file` for a path."""
    scheme, separator, _ = uri.partition("://")
    return scheme if separator else "file"


def keep_files(infos: dict[str, fs.FileInfo]) -> dict[str, fs.FileInfo]:
    """Leave out folders, and links to folders."""
    others = (fs.FileType.Directory, fs.FileType.Unknown)
    return {path: info for path, info in infos.items() if info.type not in others}


def open_root(option: str, uri: str) -> Root:
    file_system, path = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        info = file_system.get_file_info(path)
    if info.type == fs.FileType.File and is_table(path):
        table = (name_of(uri),)
        return Root(option=option, uri=parent_of(uri), tables=table, is_folder=False)
    if info.type == fs.FileType.File and not is_archive(path):
        raise UserError(
            f"{option} is {uri!r}: it is no table (.csv, .tsv, .txt, .jsonl, .json, .parquet); "
            "save it as CSV in UTF-8"
        )
    infos = keep_files(walk(option, uri))
    tables, skipped = list[str](), dict[str, str]()
    sidecars = find_sidecars(infos)
    of_images = set(sidecars.values())
    for path in filter(is_table, infos):
        is_text = path.casefold().endswith(".txt")
        if path in of_images or is_text or find_system_name(path.split("/")):
            continue  # a text beside images is seldom a table; one can be given by its own name
        if "submission" in name_of(path).casefold():
            skipped[path] = "an example of a submission, by its name"
        else:
            tables.append(path)
    if not tables and not sidecars:
        raise UserError(
            f"{option} is {uri!r}: it has no table (.csv, .tsv, .jsonl, .json, .parquet); give the "
            "table itself, or use --source folder"
        )
    return Root(
        option=option,
        uri=uri,
        tables=tuple(tables),
        sidecars={} if tables else sidecars,
        skipped=skipped,
        infos=infos,
    )


def find_metadata(infos: dict[str, fs.FileInfo]) -> tuple[str, ...]:
    """Return the tables that a folder of images may have by convention."""
    return tuple(
        path
        for path in infos
        if name_of(path).casefold() in (*METADATA, *ROBOFLOW)
        and find_system_name(path.split("/")) is None
    )
