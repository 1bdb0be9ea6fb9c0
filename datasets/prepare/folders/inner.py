"""Folders of splits below others than the root: `audi/train`, `audi/a4/test_images`. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterable

from datasets.prepare.splits import SPLIT_OF_WORD, split_of_name

_NAMES_SHOWN = 6
Folders = tuple[str, ...]
"""Above a file, from the root."""


class InnerSplits:
    """The folders that are splits.

    Where folders of train and of another split are in one folder, each folder at that depth with
    the name of a split is one.
    """

    def __init__(self, folders: Iterable[Folders], class_depth: int) -> None:
        """`folders` are those above each image. Just below classes, the words of splits alone count
        wherever they are: `audi/train` and `bmw/test`."""
        found = _find_named(folders)
        words = [n for parent, names in found.items() if len(parent) == class_depth for n in names]
        found_words = {SPLIT_OF_WORD.get(name.casefold()) for name in words} - {None}
        self._levels = {class_depth} if _are_splits(found_words) else set[int]()
        for parent in sorted(found, key=len):
            if self.find(parent) is None and _are_splits(set(found[parent].values())):
                self._levels.add(len(parent))
        self.names = dict[str, str]()
        """Of the folders, and their splits."""
        self.first = dict[str, str]()
        """The first folder of each split, and the split."""
        self.other: str | None = None
        """A folder with the name of val or test that is none."""
        self._parents = set[Folders]()
        for parent, names in found.items():
            if self.find(parent) is None:
                self._take(parent, names)

    def _take(self, parent: Folders, names: dict[str, str]) -> None:
        if len(parent) not in self._levels:
            others = (name for name, split in names.items() if split != "train")
            self.other = self.other or next(("/".join([*parent, name]) for name in others), None)
            return
        self._parents.add(parent)
        self.names |= names
        for name, split in names.items():
            if split not in self.first.values():
                self.first["/".join([*parent, name])] = split

    def find(self, folders: Folders) -> int | None:
        """Return the depth of the folder that is a split; None where none is."""
        depths = (at for at in sorted(self._levels) if at < len(folders))
        return next((at for at in depths if split_of_name(folders[at])), None)

    def has_splits(self, folders: Folders) -> bool:
        """Whether folders of splits are in one of these, directly."""
        return any(folders[:depth] in self._parents for depth in range(1, len(folders) + 1))

    def describe(self) -> str | None:
        """Return the rule; None where no folder has the name of a split."""
        if self.names:
            shown = [f"{name}/ is {split}" for name, split in sorted(self.names.items())]
            more = ", ..." if len(shown) > _NAMES_SHOWN else ""
            return f"in classes, {', '.join(shown[:_NAMES_SHOWN])}{more}"
        if self.other is None:
            return None
        return f"{self.other}/ is no split, as no folder for train is beside it"


def list_folders(path: str) -> Folders:
    return tuple(path.split("/")[:-1])


def _find_named(folders: Iterable[Folders]) -> dict[Folders, dict[str, str]]:
    """Return the folders with the name of a split, and their splits, in each folder."""
    found = defaultdict[Folders, dict[str, str]](dict)
    for path in sorted(set(folders)):
        for depth in range(1, len(path)):
            if (split := split_of_name(path[depth])) is not None:
                found[path[:depth]][path[depth]] = split
    return dict(found)


def _are_splits(found: Collection[str | None]) -> bool:
    return "train" in found and len(found) > 1
