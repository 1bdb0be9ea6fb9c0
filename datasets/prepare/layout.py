"""The split and class of each file of a folder, from its path alone. Pure functions.

    CLASS/**              all of them train
    SPLIT/CLASS/**        names of splits as in `splits`, doubled folders (train/train) as one
    CLASS/SPLIT/**        where the folders in classes are called train, val or test

What is not used is returned by name, with the reason.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.io.errors import UserError
from datasets.prepare.splits import SPLIT_OF_WORD, split_of_name

SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@synoresource", "@__thumb"),  # NAS
        *("#recycle", "#snapshot", "lost+found"),
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        "__pycache__",
    }
)
"""Files and folders that operating systems and network storage add, in lower case."""
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif"),
    *(".heic", ".heif", ".jfif"),
)
OTHER_SUFFIXES = (
    *(".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".txt", ".md", ".html", ".pdf"),
    *(".mat", ".npy", ".npz", ".pkl", ".xlsx", ".py", ".ipynb", ".sh", ".log", ".zip", ".parquet"),
)
"""Of files that are beside images in data sets: they do not make a folder a class."""
_NO_CLASSES = frozenset(
    {
        *(
            "image",
            "images",
            "img",
            "imgs",
            "jpegimages",
            "jpg",
            "jpeg",
            "png",
            "photos",
            "pictures",
        ),
        *(
            "annotation",
            "annotations",
            "label",
            "labels",
            "mask",
            "masks",
            "segmentation",
            "trimaps",
        ),
    }
)
"""Folders of data sets whose classes are in a table or in file names."""
HIDDEN, SYSTEM = "hidden", "of an operating system or network storage"
NO_CLASS = "in no class folder"
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
    """Folder of a split and the split; empty where class folders are at the top."""
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
    unused, kept = [], dict[str, None]()
    for path in sorted(files):
        parts = path.split("/")
        if reason := find_system_name(parts):
            unused.append((path, reason))
        elif (depth := _find_image_folder(parts[:-1])) is not None:
            unused.append((path, IN_IMAGE_FOLDER))
            kept["/".join(parts[: depth + 1])] = None
        else:
            kept[path] = None
    visible = []
    for path in sorted(folders):
        parts = path.split("/")
        if find_system_name(parts) is None:
            if (depth := _find_image_folder(parts)) is None:
                visible.append(path)
            else:
                kept["/".join(parts[: depth + 1])] = None
    kept = sorted(kept)
    base = _find_base(kept, several_classes=several_classes and class_depth == 1)
    tops = _Tops(kept, visible, base)
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


def find_system_name(parts: Sequence[str]) -> str | None:
    """Return the reason to leave a path out: a part of it is hidden, or of a system."""
    for part in parts:
        if part.startswith("."):
            return HIDDEN
        if part.casefold() in SYSTEM_NAMES:
            return SYSTEM
    return None


def _find_image_folder(folders: Sequence[str]) -> int | None:
    """Return the depth of the first folder below a class that has the name of an image."""
    names = enumerate(folders)
    found = (depth for depth, name in names if depth and name.casefold().endswith(IMAGE_SUFFIXES))
    return next(found, None)


def is_other_file(name: str) -> bool:
    """Whether a name is that of a table, an annotation or a text, by its suffix."""
    return name.casefold().endswith(OTHER_SUFFIXES)


def stands_for_no_class(folder: str) -> bool:
    """Whether a folder is usually one of a split, of all images or of annotations."""
    return folder.casefold() in _NO_CLASSES or split_of_name(folder) is not None


class _Tops:
    """The files below one folder, by the folders directly in it."""

    def __init__(self, files: Sequence[str], folders: Iterable[str], base: str) -> None:
        self.base = base
        self.loose: list[str] = []
        self.files = defaultdict[str, list[str]](list)
        """Paths below each folder."""
        self.subfolders = defaultdict[str, dict[str, bool]](dict)
        """Of each folder, and whether images are in them at any depth."""
        self.names = dict[str, None]()
        for path in files:
            if not path.startswith(base):
                continue
            name, _, rest = path[len(base) :].partition("/")
            if not rest:
                self.loose.append(path)
                continue
            self.names[name] = None
            self.files[name].append(rest)
            sub, _, inside = rest.partition("/")
            if inside:
                below = self.subfolders[name]
                below[sub] = below.get(sub, False) or not is_other_file(inside)
        for path in folders:
            if path.startswith(base):
                name, _, rest = path[len(base) :].partition("/")
                self.names[name] = None
                if rest:
                    self.subfolders[name].setdefault(rest.partition("/")[0], False)

    def path_of(self, name: str, rest: str) -> str:
        return f"{self.base}{name}/{rest}"

    def has_own_images(self, name: str) -> bool:
        return any("/" not in rest and not is_other_file(rest) for rest in self.files[name])

    def has_class_folders(self, name: str) -> bool:
        return any(self.subfolders[name].values())

    def has_images(self, name: str) -> bool:
        return self.has_own_images(name) or self.has_class_folders(name)


def _find_base(files: Sequence[str], *, several_classes: bool) -> str:
    """Return the folder that splits or classes are in: below folders that hold nothing but one
    folder each, as archives unpack; the root itself where neither is found below such."""
    base = ""
    while True:
        tops = _Tops(files, (), base)
        if any(split_of_name(name) and tops.has_class_folders(name) for name in tops.names):
            return base
        with_images = [name for name in tops.names if tops.has_images(name)]
        loose = any(map(_may_be_image, tops.loose))
        if several_classes and not loose and len(with_images) > 1:
            return base
        if loose or len(with_images) != 1 or tops.has_own_images(with_images[0]):
            return ""
        base = f"{base}{with_images[0]}/"


def _may_be_image(path: str) -> bool:
    """Whether a file at the top may be an image: a stray `license.docx` is none."""
    name = path.rpartition("/")[2].casefold()
    return name.endswith(IMAGE_SUFFIXES) or "." not in name


def _choose_splits(tops: _Tops) -> dict[str, str]:
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
        return {}  # `Test car` beside Audi and BMW; `train` beside bus and car, with albums in it
    if all(map(tops.has_own_images, others)) and len(others) > 1:
        name, other = next(iter(divided)), others[0]
        raise UserError(
            f"{name!r} may be a class, as {other!r} is, or the training images; give --root the "
            f"folder {name!r} itself for the latter, or another name to the class"
        )
    return keyed


def _describe_alike(tops: _Tops, limit: int = 3) -> str | None:
    """Name folders of images that most of the top folders have: `2023/audi`, `2024/audi`."""
    tallies = Counter(
        sub for below in tops.subfolders.values() for sub, has_images in below.items() if has_images
    )
    num_tops = sum(map(tops.has_images, tops.names))
    alike = [sub for sub, number in tallies.items() if number > 1 and 2 * number > num_tops]
    if len(alike) < 2:
        return None
    return (
        f"folders of the same names are in several classes ({', '.join(sorted(alike)[:limit])}); "
        "where these are the classes, use --class-depth -1"
    )


def _name_class(path: str, class_depth: int) -> str | None:
    """Return the class of a file by its folders; None where it has too few of them."""
    folders = path.split("/")[:-1]
    if len(folders) < abs(class_depth):
        return None
    return folders[class_depth] if class_depth < 0 else " ".join(folders[:class_depth])


def _arrange_splits(tops: _Tops, splits: dict[str, str], class_depth: int) -> Layout:
    rules = [", ".join(f"{tops.base}{name}/ is {split}" for name, split in splits.items())]
    inside_of = {name: _find_doubled(tops, name) for name in splits}
    if class_depth == 1:
        alike = (_describe_alike(_Tops(tops.files[name], (), inside_of[name])) for name in splits)
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


def _find_doubled(tops: _Tops, name: str) -> str:
    """Return `train/` where train/ holds nothing but train/, as some archives unpack."""
    inside = ""
    while True:
        below = _Tops(tops.files[name], (), inside)
        names = list(below.names)
        if len(names) != 1 or split_of_name(names[0]) != split_of_name(name):
            return inside
        inside = f"{inside}{names[0]}/"


def _arrange_deep_classes(tops: _Tops, class_depth: int) -> Layout:
    """Take folders of another level as classes; all of them train."""
    layout, classes = Layout(), dict[str, None]()
    layout.unused.extend((path, NO_CLASS) for path in tops.loose)
    for name, files in tops.files.items():
        for rest in files:
            path, class_name = tops.path_of(name, rest), _name_class(f"{name}/{rest}", class_depth)
            if class_name is None or is_other_file(rest):
                layout.unused.append((path, NO_CLASS))
            else:
                classes[class_name] = None
                layout.images.append(Placed(path, "train", class_name))
    layout.classes.extend(classes)
    return layout


def _arrange_classes(tops: _Tops) -> Layout:
    """Take the top folders as classes; folders in them belong to them."""
    inner = {
        SPLIT_OF_WORD.get(sub.casefold())
        for name in tops.names
        for sub, has_images in tops.subfolders[name].items()
        if has_images
    }
    by_split = "train" in inner and len(inner - {None}) > 1
    rules = [f"classes are the folders in {tops.base}"] if tops.base else []
    if by_split:
        rules.append("the folders train, val and test in each class are its splits")
    elif alike := _describe_alike(tops):
        rules.append(alike)
    layout = Layout(rule="; ".join(rules))
    layout.unused.extend((path, NO_CLASS) for path in tops.loose)
    for name in tops.names:
        files = tops.files[name]
        if not by_split:
            _refuse_splits_in_a_class(tops, name)
        if files and all(map(is_other_file, files)):
            layout.unused.extend((tops.path_of(name, rest), NO_CLASS) for rest in files)
            continue
        layout.classes.append(name)
        for rest in files:
            sub, slash, _ = rest.partition("/")
            split = SPLIT_OF_WORD.get(sub.casefold()) if by_split and slash else None
            layout.images.append(Placed(tops.path_of(name, rest), split or "train", name))
    return layout


def _refuse_splits_in_a_class(tops: _Tops, name: str) -> None:
    """Refuse `cars/train/audi` and `cars/valid/audi` beside `test/1.jpg`.

    Raises:
        UserError: with the folder to give; begins after `root is X`.
    """
    base = _find_base(tops.files[name], several_classes=False)
    inner = _Tops(tops.files[name], (), base)
    found = {split_of_name(sub): sub for sub in inner.names if inner.has_class_folders(sub)}
    if "train" in found and len(found.keys() - {None}) > 1:
        others = ", ".join(repr(other) for other in tops.names if other != name)
        raise UserError(
            f"{name!r} has splits of its own ({', '.join(found.values())}) beside {others}; give "
            f"--root the folder {f'{tops.base}{name}/{base}'.rstrip('/')!r}"
        )
