"""The folders directly in a folder, and which folder classes or splits are in. Pure functions."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from cluster.io.errors import UserError
from datasets.prepare.names import IMAGE_SUFFIXES, is_other_file
from datasets.prepare.splits import split_of_name


class Tops:
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


def find_base(files: Sequence[str], *, several_classes: bool) -> str:
    """Return the folder that splits or classes are in: below folders that hold nothing but one
    folder each, as archives unpack; the root itself where neither is found below such."""
    base = ""
    while True:
        tops = Tops(files, (), base)
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


def find_doubled(tops: Tops, name: str) -> str:
    """Return `train/` where train/ holds nothing but train/, as some archives unpack."""
    inside = ""
    while True:
        below = Tops(tops.files[name], (), inside)
        names = list(below.names)
        if len(names) != 1 or split_of_name(names[0]) != split_of_name(name):
            return inside
        inside = f"{inside}{names[0]}/"


def refuse_classes_in_a_split(tops: Tops, splits: Iterable[str], classes: Sequence[str]) -> None:
    """Refuse `audi/1.jpg` and `bmw/1.jpg` beside `test/audi/2.jpg`: test would be a class.

    Raises:
        UserError: begins after `root is X`.
    """
    for name in splits:
        inside = [sub for sub, has_images in tops.subfolders[name].items() if has_images]
        if set(inside) <= set(classes):
            raise UserError(
                f"{name!r} has folders of the classes beside it ({', '.join(inside[:3])}), so it "
                "is a split; move the others into a folder train beside it, or rename it"
            )


def describe_alike(tops: Tops) -> str | None:
    """Name folders of images that most of the top folders have: `2023/audi`, `2024/audi`."""
    tallies = Counter(
        sub for below in tops.subfolders.values() for sub, has_images in below.items() if has_images
    )
    num_tops = sum(map(tops.has_images, tops.names))
    alike = [sub for sub, number in tallies.items() if number > 1 and 2 * number > num_tops]
    if len(alike) < 2:
        return None
    return (
        f"folders of the same names are in several classes ({', '.join(sorted(alike)[:3])}); "
        "where these are the classes, use --class-depth -1"
    )
