"""The split and class of each file of a folder, from its path alone. Pure functions.

    CLASS/**              all of them train
    SPLIT/CLASS/**        names of splits as in `splits`, doubled folders (train/train) as one
    CLASS/**/SPLIT/**     where folders of train and of another split are in one folder

What is not used is returned by name, with the reason.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.io.errors import UserError
from datasets.prepare.folders.inner import InnerSplits, list_folders
from datasets.prepare.folders.tops import (
    Tops,
    describe_alike,
    find_base,
    find_doubled,
    refuse_classes_in_a_split,
)
from datasets.prepare.names import IMAGE_SUFFIXES, find_system_name, is_other_file
from datasets.prepare.splits import split_of_name

NO_CLASS = "in no class folder"
BESIDE_SPLITS = "in a class, beside its folders of splits"
IN_IMAGE_FOLDER = "in a folder that has the name of an image"


class Placed(NamedTuple):
    """A file of a class folder."""

    path: str
    split: str
    class_name: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a folder holds."""

    images: list[Placed] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    """Names of all class folders, those without files included."""
    unused: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason."""
    splits: dict[str, str] = field(default_factory=dict)
    """Folder of a split and the split; the first one of each where they are in class folders."""
    rule: str = ""
    """How splits were found, in words; empty where there are none."""


def arrange(
    files: Iterable[str],
    folders: Iterable[str] = (),
    *,
    several_classes: bool = True,
    class_depth: int = 1,
) -> Layout:
    """Find split and class of each file.

    Args:
        files: paths below the root, with slashes.
        folders: those that may be empty, in the same way.
        several_classes: there must be, so that a folder around all of them is no class.
        class_depth: as `PrepareConfig.class_depth`.

    Raises:
        UserError: where a folder may be a split or a class; the message begins after `root is X`.
    """
    kept, visible, unused = _leave_out(files, folders)
    base = find_base(kept, several_classes=several_classes and class_depth == 1)
    tops = Tops(kept, visible, base)
    unused += [(path, NO_CLASS) for path in kept if not path.startswith(base)]
    splits = _choose_splits(tops)
    if splits:
        layout = _arrange_splits(tops, splits, class_depth)
    elif class_depth == 1:
        layout = _arrange_classes(tops)
    else:
        layout = _arrange_deep_classes(tops, class_depth)
    layout.unused[:0] = unused
    return layout


def _leave_out(
    files: Iterable[str], folders: Iterable[str]
) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Return files that may be of the data set, such folders, and the other files with a reason.

    A folder that has the name of an image stands for itself among the files.
    """
    unused, kept = list[tuple[str, str]](), dict[str, None]()
    for path in sorted(files):
        parts = path.split("/")
        if reason := find_system_name(parts):
            unused.append((path, reason))
        elif (depth := _find_image_folder(parts[:-1])) is not None:
            unused.append((path, IN_IMAGE_FOLDER))
            kept["/".join(parts[: depth + 1])] = None
        else:
            kept[path] = None
    visible = list[str]()
    for path in sorted(folders):
        parts = path.split("/")
        if find_system_name(parts) is None:
            if (depth := _find_image_folder(parts)) is None:
                visible.append(path)
            else:
                kept["/".join(parts[: depth + 1])] = None
    return sorted(kept), visible, unused


def _find_image_folder(folders: Sequence[str]) -> int | None:
    """Return the depth of the first folder below a class that has the name of an image."""
    names = enumerate(folders)
    found = (depth for depth, name in names if depth and name.casefold().endswith(IMAGE_SUFFIXES))
    return next(found, None)


def _choose_splits(tops: Tops) -> dict[str, str]:
    """Return the folders that are splits, and which; none where they are classes."""
    keyed = {name: split for name in tops.names if (split := split_of_name(name)) is not None}
    divided = {name: split for name, split in keyed.items() if tops.has_class_folders(name)}
    others = [name for name in tops.names if name not in keyed and tops.has_images(name)]
    if not divided:
        return {}
    found = set(divided.values())
    if not others or ("train" in found and len(found) > 1):
        return keyed
    if len(found) > 1:
        raise UserError(
            f"it has folders for {' and '.join(sorted(found))}, none for train, and "
            f"{others[0]!r}; call the folder of training images train"
        )
    (split,) = found
    if split != "train" or any(map(tops.has_own_images, divided)):
        refuse_classes_in_a_split(tops, divided, others)
        return {}  # `Test car` beside Audi and BMW; `train` beside bus and car, with albums in it
    if all(map(tops.has_own_images, others)) and len(others) > 1:
        name, other = next(iter(divided)), others[0]
        raise UserError(
            f"{name!r} may be a class, as {other!r} is, or the folder of training images; for "
            f"training images give --root the folder {name!r} itself, for a class rename it"
        )
    return keyed


def _name_class(path: str, class_depth: int) -> str | None:
    """Return the class of a file by its folders; None where it has too few of them."""
    folders = path.split("/")[:-1]
    if len(folders) < abs(class_depth):
        return None
    return folders[class_depth] if class_depth < 0 else " ".join(folders[:class_depth])


def _arrange_splits(tops: Tops, splits: dict[str, str], class_depth: int) -> Layout:
    rules = [", ".join(f"{tops.base}{name}/ is {split}" for name, split in splits.items())]
    inside_of = {name: find_doubled(tops, name) for name in splits}
    if class_depth == 1:
        alike = (describe_alike(Tops(tops.files[name], (), inside_of[name])) for name in splits)
        rules += [rule for rule in alike if rule is not None][:1]
    layout = Layout(
        splits={f"{tops.base}{name}": split for name, split in splits.items()},
        rule="; ".join(rules),
    )
    layout.unused.extend((path, NO_CLASS) for path in tops.loose)
    classes = dict[str, None]()
    placed = defaultdict[str, list[Placed]](list)
    for name, files in tops.files.items():
        if name not in splits:
            reason = f"in {tops.base}{name}/, which has no split's name"
            layout.unused.extend((tops.path_of(name, rest), reason) for rest in files)
    for name, split in splits.items():
        inside = inside_of[name]
        below = f"{tops.base}{name}/{inside}"
        for rest in tops.files[name]:
            path = tops.path_of(name, rest)
            class_name = _name_class(path[len(below) :], class_depth)
            if not path.startswith(below) or class_name is None:
                layout.unused.append((path, NO_CLASS))
            else:
                placed[class_name].append(Placed(path, split, class_name))
        if not inside and class_depth == 1:
            classes.update(dict.fromkeys(tops.subfolders[name]))
    for class_name, files in placed.items():
        if all(is_other_file(file.path) for file in files):  # labels/ beside images/
            layout.unused.extend((file.path, NO_CLASS) for file in files)
            classes.pop(class_name, None)
        else:
            classes[class_name] = None
            layout.images.extend(files)
    layout.classes.extend(classes)
    return layout


def _arrange_deep_classes(tops: Tops, class_depth: int) -> Layout:
    """Take folders of another level as classes.

    Raises:
        UserError: where these are folders of splits; begins after `root is X`.
    """
    inner = _find_inner_splits(tops, class_depth)
    layout, classes = _begin_layout(tops, inner, []), dict[str, None]()
    for name, files in tops.files.items():
        for rest in files:
            path = f"{name}/{rest}"
            class_name = _name_class(path, class_depth)
            if class_name is None or is_other_file(rest):
                layout.unused.append((f"{tops.base}{path}", NO_CLASS))
                continue
            _refuse_splits_as_classes(inner, path, class_depth)
            classes[class_name] = None
            _place(layout, inner, tops.base, path, class_name)
    layout.classes.extend(classes)
    return layout


def _arrange_classes(tops: Tops) -> Layout:
    """Take the top folders as classes; folders in them belong to them."""
    inner = _find_inner_splits(tops, 1)
    rules = [f"classes are the folders in {tops.base}"] if tops.base else []
    if not inner.names and (alike := describe_alike(tops)):
        rules.append(alike)
    layout = _begin_layout(tops, inner, rules)
    has_several = sum(inner.has_splits((name,)) for name in tops.names) > 1
    for name in tops.names:
        files = tops.files[name]
        if not has_several:
            _refuse_splits_in_a_class(tops, name)
        if files and all(map(is_other_file, files)):
            layout.unused.extend((tops.path_of(name, rest), NO_CLASS) for rest in files)
            continue
        layout.classes.append(name)
        for rest in files:
            _place(layout, inner, tops.base, f"{name}/{rest}", name)
    return layout


def _find_inner_splits(tops: Tops, class_depth: int) -> InnerSplits:
    paths = (f"{name}/{rest}" for name, files in tops.files.items() for rest in files)
    images = (path for path in paths if not is_other_file(path))
    return InnerSplits((list_folders(path) for path in images), class_depth)


def _begin_layout(tops: Tops, inner: InnerSplits, rules: Sequence[str]) -> Layout:
    """Return the layout of class folders, without the files in them."""
    return Layout(
        splits={f"{tops.base}{folder}": split for folder, split in inner.first.items()},
        rule="; ".join(filter(None, [*rules, inner.describe()])),
        unused=[(path, NO_CLASS) for path in tops.loose],
    )


def _place(layout: Layout, inner: InnerSplits, base: str, path: str, class_name: str) -> None:
    """Add a file of a class: it trains, unless folders of splits are beside it or above."""
    folders = list_folders(path)
    depth = inner.find(folders)
    if depth is None and inner.has_splits(folders):
        layout.unused.append((f"{base}{path}", BESIDE_SPLITS))
        return
    split = None if depth is None else split_of_name(folders[depth])
    layout.images.append(Placed(f"{base}{path}", split or "train", class_name))


def _refuse_splits_as_classes(inner: InnerSplits, path: str, class_depth: int) -> None:
    """Refuse classes such as `audi train` and `audi test`.

    Raises:
        UserError: begins after `root is X`.
    """
    folders = list_folders(path)
    depth = inner.find(folders)
    names_class = range(class_depth) if class_depth > 0 else [len(folders) + class_depth]
    if depth is not None and depth in names_class:
        raise UserError(
            f"{'/'.join(folders[: depth + 1])!r} is the folder of a split, and class_depth "
            f"{class_depth} makes it one of a class; use another --class-depth"
        )


def _refuse_splits_in_a_class(tops: Tops, name: str) -> None:
    """Refuse `cars/train/audi` and `cars/valid/audi` beside `test/1.jpg`.

    Raises:
        UserError: with the folder to give; begins after `root is X`.
    """
    base = find_base(tops.files[name], several_classes=False)
    inner = Tops(tops.files[name], (), base)
    found = {split_of_name(sub): sub for sub in inner.names if inner.has_class_folders(sub)}
    if "train" in found and len(found.keys() - {None}) > 1:
        others = ", ".join(repr(other) for other in tops.names if other != name)
        raise UserError(
            f"{name!r} has splits of its own ({', '.join(found.values())}) beside {others}; give "
            f"--root the folder {f'{tops.base}{name}/{base}'.rstrip('/')!r}"
        )
