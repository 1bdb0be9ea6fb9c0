"""A label file for each image: Pascal VOC's .xml, YOLO's .txt, WebDataset's .cls and .json. Pure.

It has the name of its image, beside it or in the folder that is called `labels` or `annotations`
where the image's is called `images`.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from cluster.io.errors import UserError
from cluster.io.uris import name_of
from datasets.images import BadImage
from datasets.prepare.names import IMAGE_SUFFIXES, find_system_name
from datasets.prepare.tables.rows import Rows, describe_several, read_objects

SUFFIXES = (".cls", ".xml", ".txt", ".json")
"""Of label files, the first one of an image counts."""
TWINS = {"images": ("labels", "annotations"), "jpegimages": ("annotations",)}
"""Folders of images and of their labels, in lower case."""
NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
"""Of the class names that YOLO's numbers mean."""
_OBJECT = re.compile(r"<object>.*?<name>(.*?)</name>", re.DOTALL)
_YOLO = re.compile(r"(\d+)(\s+-?[\d.]+(e-?\d+)?){4,}", re.IGNORECASE)


def find_sidecars(paths: Iterable[str]) -> dict[str, str]:
    """Return the label file of each image that has one."""
    labels, images = dict[str, str](), list[str]()
    for path in paths:
        if find_system_name(path.split("/")) is not None:
            continue
        key, suffix = _split(path)
        if suffix in IMAGE_SUFFIXES:
            images.append(path)
        elif suffix in SUFFIXES:
            other = labels.setdefault(key, path)
            if SUFFIXES.index(suffix) < SUFFIXES.index(_split(other)[1]):
                labels[key] = path
    found = ((image, next(filter(labels.get, _list_keys(image)), None)) for image in images)
    return {image: labels[key] for image, key in found if key is not None}


def find_names(paths: Iterable[str]) -> str | None:
    """Return the file of class names, the one nearest to the top."""
    found = [path for path in paths if name_of(path).casefold() in NAME_FILES]
    return min(found, key=lambda path: (path.count("/"), path), default=None)


def read_sidecars(
    contents: Mapping[str, tuple[str, bytes | BadImage]], names: Mapping[int, str]
) -> Rows:
    """Return the image, its label, and columns of JSON, for each image's label file and content.

    Args:
        names: of the classes, by number, where a file has them.

    Raises:
        UserError: where no file names a class; begins after the root.
    """
    objects, several = [], 0
    for image, (path, content) in contents.items():
        if isinstance(content, BadImage):
            objects.append({"image": image})
            continue
        values, has_several = _parse(path, content, names)
        several += has_several
        objects.append({"image": image} | values | {"image": image})  # JSON may have that key too
    if all(len(values) == 1 for values in objects):
        raise UserError(
            f"none of the {len(objects)} files beside images names a class, such as "
            f"{next(iter(contents.values()))[0]}; use --source table with a table, or class folders"
        )
    rows = read_objects(objects)
    kinds = sorted({_split(path)[1] for path, _ in contents.values()})
    notes = [f"classes from the {' or '.join(kinds)} file of each image"]
    if several:
        notes.append(describe_several(several, "classes"))
    return Rows(columns=rows.columns, nested=rows.nested, notes=tuple(notes))


def read_names(name: str, content: bytes) -> dict[int, str]:
    """Return class names by number, of YOLO's data.yaml or of a text with a name a line.

    Raises:
        UserError: where it can't be read; begins after the root.
    """
    try:
        text = content.decode("utf-8-sig")
        if not name.casefold().endswith((".yaml", ".yml")):
            return dict(enumerate(line.strip() for line in text.splitlines()))
        found = yaml.safe_load(text)
        names = found.get("names") if isinstance(found, dict) else None
        if isinstance(names, dict):
            return {int(number): str(name) for number, name in names.items()}
        return dict(enumerate(map(str, names or ())))
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} can't be read as names of classes ({reason})") from None


def _parse(path: str, content: bytes, names: Mapping[int, str]) -> tuple[dict[str, Any], bool]:
    """Return the columns of an image by its label file, and whether it has several classes."""
    suffix, text = _split(path)[1], content.decode("utf-8-sig", "replace")
    if suffix == ".json":
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return {}, False
        return (found if isinstance(found, dict) else {"label": found}), False
    if suffix == ".cls":
        return ({"label": _name(text.strip(), names)} if text.strip() else {}), False
    if suffix == ".xml":
        found = {html.unescape(name).strip() for name in _OBJECT.findall(text)}
    else:
        lines = (_YOLO.fullmatch(line.strip()) for line in text.splitlines())
        found = {_name(line[1], names) for line in lines if line}
    if len(found) > 1:
        return {"label": None}, True
    return ({"label": found.pop()} if found else {}), False


def _name(number: str, names: Mapping[int, str]) -> str:
    return names.get(int(number), number) if number.isdecimal() else number


def _split(path: str) -> tuple[str, str]:
    """Return a path without its suffix, and the suffix in lower case."""
    folder, slash, name = path.rpartition("/")
    stem, dot, suffix = name.rpartition(".")
    return f"{folder}{slash}{stem}", f"{dot}{suffix}".casefold()


def _list_keys(image: str) -> Iterator[str]:
    key, _ = _split(image)
    yield key
    parts = key.split("/")
    for at, part in enumerate(parts[:-1]):
        for twin in TWINS.get(part.casefold(), ()):
            for spelling in dict.fromkeys((twin, twin.capitalize())):
                yield "/".join([*parts[:at], spelling, *parts[at + 1 :]])
