"""Labels of several files become classes: by their names, or by their numbers. Pure functions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from cluster.io.errors import UserError
from datasets.prepare.classes import unify


@dataclass(frozen=True, kw_only=True)
class FileLabels:
    """The labels of one file, and what their numbers mean."""

    path: str
    split: str
    values: list[int | str | None]
    names: list[str] | None = None
    """By number, where the file's metadata names them."""


def huggingface_names(schema: pa.Schema, label_column: str, path: str) -> list[str] | None:
    """Class names that Hugging Face writes into the schema's metadata.

    Raises:
        UserError: naming the file, where the metadata has another form.
    """
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", "{}"))
        names = metadata.get("info", {}).get("features", {}).get(label_column, {}).get("names")
        if names is not None and not isinstance(names, list):
            raise TypeError(f"the names are {names!r}")
        return names and [str(name) for name in names]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: its metadata of the library datasets can't be read ({error}); write the file "
            "again"
        ) from None


def index_labels(
    files: Sequence[FileLabels], label_column: str
) -> tuple[tuple[str, ...], list[int]]:
    """Return the classes, and each row's index of them over all files; negative without a label.

    Numbers are matched by the class names of their own file: two files may have them in another
    order. Without names anywhere, the numbers themselves are the classes.

    Raises:
        UserError: where one file numbers classes and another names them.
    """
    values_of = {file.path: _name_values(file, label_column) for file in files}
    numbered, named = (
        next((p for p, vs in values_of.items() if any(isinstance(v, t) for v in vs)), None)
        for t in (int, str)
    )
    if numbered is not None and named is not None:
        raise UserError(
            f"label_column is {label_column!r}: some files hold names, others numbers ({named} and "
            f"{numbered}); use one of the two in all files"
        )
    values = [value for file in files for value in values_of[file.path]]
    if named is None and not any(file.names for file in files):
        ordered = sorted({value for value in values if value is not None})
        label_of = {value: label for label, value in enumerate(ordered)}
        return tuple(map(str, ordered)), [
            -1 if value is None else label_of[value] for value in values
        ]
    by_train = sorted(files, key=lambda file: file.split != "train")
    official = [name for file in by_train for name in file.names or ()]
    given = sorted({str(value) for value in values if value is not None})
    try:
        class_of = unify([*official, *given])
    except UserError as error:
        raise UserError(f"label_column is {label_column!r}: {error}") from None
    classes = tuple(dict.fromkeys(class_of.values()))
    label_of_name = {name: classes.index(cleaned) for name, cleaned in class_of.items()}
    return classes, [-1 if value is None else label_of_name[str(value)] for value in values]


def _name_values(file: FileLabels, label_column: str) -> list[int | str | None]:
    """Return class names where the file has them, else numbers; no value, -1 (Hugging Face) and
    blanks mean no label."""
    values = [
        None if value in (-1, None) or not str(value).strip() else value for value in file.values
    ]
    if file.names is None or any(isinstance(value, str) for value in values):
        return values
    numbers = [value for value in values if isinstance(value, int)]
    if numbers and max(numbers) >= len(file.names):
        raise UserError(
            f"label_column is {label_column!r}: it holds {max(numbers)}, and the file names "
            f"{len(file.names)} classes ({file.path})"
        )
    return [file.names[v] if isinstance(v, int) and v >= 0 else None for v in values]
