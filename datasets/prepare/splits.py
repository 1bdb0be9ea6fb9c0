"""Which split a file, a folder or a row of a table is of, by Hugging Face's documented keywords.

Pure functions.

Source: https://huggingface.co/docs/hub/datasets-file-names-and-splits
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.io.errors import UserError

KEYWORDS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF_WORD = {word: split for split, words in KEYWORDS.items() for word in words}
_SEPARATORS = re.compile(r"[-._ 0-9=]+")  # split=test/, as Hive and Spark name folders
_COLUMNS = frozenset({"split", "subset", "set", "partition", "phase", "usage", "dataset", "ml_use"})
"""Usual names of columns of splits, which may have other values as well, such as `holdout`."""
ONE, ZERO = {"1", "1.0", "true"}, {"0", "0.0", "false"}
"""Values of columns of 0 and 1, in lower case."""
NO_SPLIT = "of no split"
"""Of a row whose split column names none."""
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5,}\.")


def split_of_name(name: str) -> str | None:
    """Return the split whose keyword is in a name, between separators and in any case.

    Dashes, dots, underscores, spaces, digits and equals signs separate. None without a keyword, and
    where the keywords of two splits are in the name.
    """
    words = _SEPARATORS.split(name.casefold())
    found = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
    return found.pop() if len(found) == 1 else None


def split_of_path(path: str) -> str | None:
    """Return the split of the nearest folder that has the name of one."""
    found = find_split_folder(path)
    return found and found[1]


def find_split_folder(path: str) -> tuple[str, str] | None:
    """Return the nearest folder above a path that has the name of a split, and the split."""
    folder = path.rpartition("/")[0]
    while folder:
        if split := split_of_name(folder.rpartition("/")[2]):
            return folder, split
        folder = folder.rpartition("/")[0]
    return None


def split_of_file(parts: Sequence[str]) -> str | None:
    """Return the split of a data file by its path below the root: folders, then its own name.

    The shard pattern `SPLIT-00000-of-00005` of the name is first, as with Hugging Face. Of several
    folders the nearest is used. Train is the default, as long as no name of another split's shards
    is in the way.

    Returns:
        None for the shards of a split of another name, such as `unsupervised-00000-of-00001`.
    """
    name = parts[-1]
    if (shard := _SHARD.match(name)) and (split := split_of_name(shard[1])):
        return split
    for folder in reversed(parts[:-1]):
        if split := split_of_name(folder):
            return split
    if shard:
        return None
    return split_of_name(name) or "train"


def find_split_column(columns: Mapping[str, Sequence[Any]]) -> str | None:
    """Return the column that tells the splits of rows, by its values; None without one.

    All of its values are keywords, train among them, or some are and its name is usual; or it is
    `is_valid`, `is_test` and the like with values of 0 and 1.

    Raises:
        UserError: where several columns do; the message begins after the table's name.
    """
    found = []
    for name, values in columns.items():
        texts = {str(value).casefold() for value in values if value is not None}
        splits = {SPLIT_OF_WORD.get(text) for text in texts}
        is_flag = _split_of_flag(name) is not None and bool(texts) and texts <= ONE | ZERO
        is_usual = is_split_name(name) and any(map(split_of_name, texts))
        if is_flag or is_usual or ("train" in splits and None not in splits):
            found.append(name)
    if len(found) > 1:
        raise UserError(
            f"the columns {' and '.join(found)} name splits; choose one of them by --split-column"
        )
    return found[0] if found else None


def is_split_name(column: str) -> bool:
    """Whether a column has the usual name of one of splits, which its values may contradict."""
    return column.casefold().replace(" ", "") in _COLUMNS


def may_tell_splits(column: str) -> bool:
    """Whether a column has the name of one of splits."""
    return is_split_name(column) or _split_of_flag(column) is not None


def read_splits(name: str, values: Sequence[Any]) -> list[str | None]:
    """Return the split of each row by the value of a column; None of a value that tells none."""
    if (split := _split_of_flag(name)) is None:
        return [split_of_name(str(value)) for value in values]
    other = "test" if split == "train" else "train"
    of_text = dict.fromkeys(ONE, split) | dict.fromkeys(ZERO, other)
    return [of_text.get(str(value).casefold()) for value in values]


def _split_of_flag(column: str) -> str | None:
    """Return the split of `is_valid`, `is_test` and the like."""
    prefix, _, word = column.casefold().replace(" ", "_").partition("_")
    return SPLIT_OF_WORD.get(word) if prefix == "is" else None
