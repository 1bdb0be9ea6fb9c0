"""Which columns of a table are images, classes, splits and groups. Pure functions."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.io.errors import UserError, show
from datasets.prepare.config import PrepareConfig
from datasets.prepare.names import IMAGE_SUFFIXES
from datasets.prepare.splits import ONE, ZERO, find_split_column, is_split_name, read_splits
from datasets.prepare.tables.rows import Rows, Value

IMAGE_NAMES = (
    *("filename", "file", "imageid", "imagename", "imagepath", "imagefile", "img", "path"),
    *("filepath", "uri", "url", "id"),
)
LABEL_NAMES = ("labels", "class", "classname", "labelname", "category", "target", "choice")
"""Usual names of columns, in lower case and without what separates words."""
_SEPARATORS = re.compile(r"[\s_.-]+")
_MIN_ROWS = 3
_WEB = ("http://", "https://", "ftp://")
_OTHER_IMAGES = ("mask", "segment", "trimap", "depth", "thumb")
"""In names of columns of images that are not those to train on."""
INDEX_NAMES = ("", "index", "unnamed: 0")
"""Of the column of row numbers that pandas writes."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The values of each row of a table."""

    images: list[Value]
    labels: list[Value]
    splits: list[str | None] | None = None
    """None of a row whose column tells none."""
    groups: list[Value] | None = None
    rule: str = ""
    """Which columns they are, in words."""
    guessed: str | None = None
    """The column of classes where it is the only other one, of no usual name: to be judged by
    `find_other_values` with all tables."""


def find_columns(rows: Rows, config: PrepareConfig) -> Columns | None:
    """Find the columns that the config names; by default those of usual names.

    Returns:
        None for a table without a column of classes, where the config asks for none by name.

    Raises:
        UserError: where a column that the config names is missing; begins after the table's name.
    """
    names = list(rows.columns)
    if not names:
        raise UserError("it is empty")
    is_default = config.image_column == PrepareConfig.image_column
    image = _find_file_names(rows) if is_default else None
    image = image or _find(names, "image_column", config.image_column, IMAGE_NAMES, default="image")
    if image is None and (image := next(iter(_list_file_names(rows)), None)) is None:
        raise UserError(
            f"it has the columns {', '.join(names)}, and none of images; give it by --image-column"
        )
    split = config.split_column and _require(names, "split_column", config.split_column)
    group = config.group_column and _require(names, "group_column", config.group_column)
    label = _find(names, "label_column", config.label_column, LABEL_NAMES, default="label")
    if split is None:
        kept = {n: rows.columns[n] for n in names if n not in (image, label, group)}
        split = find_split_column(kept)
    used = (image, split, group)
    others = [n for n in names if n not in used and n.casefold() not in INDEX_NAMES]
    guessed = others[0] if label is None and len(others) == 1 else None
    label = label or guessed
    rule = f"classes from {label!r}"
    labels = rows.columns[label] if label is not None else _from_one_hot(rows, others)
    if labels is None:
        return None
    if label is None:
        rule = f"classes from the {len(others)} columns of 0 and 1"
    rule = f"images from {image!r}, {rule}"
    rule += f", splits from {split!r}" if split else ""
    if split is None and (odd := next(filter(is_split_name, others), None)):
        rule += f"; {odd!r} does not name train, val or test, and is not used"
    rule += f", groups from {group!r}" if group else ""
    return Columns(
        images=rows.columns[image],
        labels=labels,
        splits=read_splits(split, rows.columns[split]) if split else None,
        groups=rows.columns[group] if group else None,
        rule=rule,
        guessed=guessed,
    )


def _find(
    names: Sequence[str], field: str, wanted: str, usual: Sequence[str], *, default: str
) -> str | None:
    if wanted != default:
        return _require(names, field, wanted)
    by_key = {_SEPARATORS.sub("", name.casefold()): name for name in reversed(names)}
    return next((by_key[name] for name in (default, *usual) if name in by_key), None)


def find_other_values(name: str, values: Sequence[Value]) -> str | None:
    """Return why a guessed column is captions, prices or keys, not classes: each image of a source
    has another value. None where it may be classes; begins after the table's name."""
    known = [value for value in values if value is not None]
    if len(known) < _MIN_ROWS or len(set(known)) < len(known):
        return None
    return (
        f"it has another {name!r} in each row, such as {show(known[0])}, and no other column "
        f"of classes; --label-column {shlex.quote(name)} takes it where it has them"
    )


def _require(names: Sequence[str], field: str, wanted: str) -> str:
    if wanted not in names:
        raise UserError(f"{field} is {wanted!r}: the table has the columns {', '.join(names)}")
    return wanted


def _find_file_names(rows: Rows) -> str | None:
    """Return the column of names of images, of a usual name where one is: an `id` beside it may be
    the name of another image.

    Raises:
        UserError: where several columns of no usual name may be meant.
    """
    found = [name for name in _list_file_names(rows) if not _is_on_web(rows.columns[name])]
    if usual := _find(found, "image_column", "image", IMAGE_NAMES, default="image"):
        return usual
    found = [name for name in found if not any(word in name.casefold() for word in _OTHER_IMAGES)]
    if len(found) > 1:
        raise UserError(
            f"the columns {' and '.join(found)} hold names of images; choose one of them by "
            "--image-column"
        )
    return found[0] if found else None


def _list_file_names(rows: Rows) -> list[str]:
    """Return the columns all of whose values are names of images."""
    known = {n: [v for v in values if v is not None] for n, values in rows.columns.items()}
    return [
        name
        for name, values in known.items()
        if values and all(str(value).casefold().endswith(IMAGE_SUFFIXES) for value in values)
    ]


def _is_on_web(values: Sequence[Value]) -> bool:
    """Whether images are where none is read from: those that were downloaded have other names."""
    return any(str(value).casefold().startswith(_WEB) for value in values)


def _from_one_hot(rows: Rows, names: Sequence[str]) -> list[Value] | None:
    """Return the name of the column that is 1 in each row; None for rows with none or several."""
    texts = {name: [str(value).casefold() for value in rows.columns[name]] for name in names}
    if len(names) < 2 or not all(set(column) <= ONE | ZERO for column in texts.values()):
        return None
    labels: list[Value] = []
    for row in range(rows.num_rows):
        ones = [name for name, column in texts.items() if column[row] in ONE]
        labels.append(ones[0] if len(ones) == 1 else None)
    return labels
