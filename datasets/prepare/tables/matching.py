"""The file that a value of a table names: `audi/1.jpg`, `1.jpg`, or `1` for it. Pure."""

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from urllib.parse import unquote

from datasets.prepare.names import IMAGE_SUFFIXES
from datasets.prepare.splits import split_of_path


class Files:
    """Files below a root, found by what a table calls them, in any form of Unicode; where nothing
    is called so, in any case, as on Windows, and with %20 for a blank, as in a URL."""

    def __init__(self, paths: Iterable[str]) -> None:
        """`paths` are below the root, with slashes."""
        self._files = list(paths)
        self._exact = _Index(self._files, _normalize)

    @cached_property
    def _any_case(self) -> "_Index":
        return _Index(self._files, lambda path: _normalize(path).casefold())

    def find(self, value: str, *, below: str = "", split: str | None = None) -> str | None:
        """Return the path that a table means; None where there is none, or several.

        Args:
            below: folder of the table, without a slash at the end; searched first.
            split: of the row; of several files of a name, the one in a folder of this split.
        """
        value = to_slashes(value).removeprefix("./")
        for text in dict.fromkeys((value, unquote(value))):
            found = self._exact.find(text, below, split) or self._any_case.find(text, below, split)
            if found is not None:
                return found
        return None


class _Index:
    """Files by their paths and names."""

    def __init__(self, paths: Sequence[str], normalize: Callable[[str], str]) -> None:
        self._normalize = normalize
        spellings = defaultdict[str, list[str]](list)
        for path in paths:
            spellings[normalize(path)].append(path)
        self._paths = {key: same[0] for key, same in spellings.items() if len(same) == 1}
        self._by_name = defaultdict[str, list[str]](list)
        for path in sorted(self._paths):
            name = path.rpartition("/")[2]
            self._by_name[name].append(path)
            stem, dot, suffix = name.rpartition(".")
            if dot and f".{suffix.casefold()}" in IMAGE_SUFFIXES:
                self._by_name[stem].append(path)

    def find(self, value: str, below: str, split: str | None) -> str | None:
        while value.startswith("../"):
            value, below = value[3:], below.rpartition("/")[0]
        value, below = self._normalize(value), self._normalize(below)
        for path in (f"{below}/{value}" if below else value, value):
            if path in self._paths:
                return self._paths[path]
        if value.startswith("/"):
            return self._find_end(value)
        found = [
            path
            for path in self._by_name.get(value.rpartition("/")[2], ())
            if f"/{path}".endswith(f"/{value}")
            or f"/{path.rpartition('.')[0]}".endswith(f"/{value}")
        ]
        for narrowed in (
            [path for path in found if path.startswith(f"{below}/")] if below else [],
            [path for path in found if split and split_of_path(path) == split],
            found,
        ):
            if len(narrowed) == 1:
                return self._paths[narrowed[0]]
        return None

    def _find_end(self, path: str) -> str | None:
        """Find an absolute path of another machine by the longest end that is a path here."""
        while path:
            path = path.partition("/")[2]
            if path in self._paths:
                return self._paths[path]
        return None


def to_slashes(path: str) -> str:
    """Return a path of Windows as one of other systems."""
    return re.sub("^[A-Za-z]:/", "/", path.replace("\\", "/"))


def find_common_folder(paths: Iterable[str]) -> str:
    """Return the longest folder that all paths are in, with a slash at the end."""
    folders = [path.split("/")[:-1] for path in paths]
    return "".join(f"{part}/" for part in posixpath.commonprefix(folders))


def _normalize(path: str) -> str:
    return unicodedata.normalize("NFC", path)
