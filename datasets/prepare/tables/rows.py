"""Rows of a table beside images: CSV, TSV, text, JSON lines, JSON, Parquet; COCO's JSON too."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.io.errors import UserError
from datasets.prepare.names import IMAGE_SUFFIXES

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
Value = int | str | None
_WHOLE = re.compile(r"-?\d+\.0+")
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What JSON of another form raises."""
_GZIP = (OSError, EOFError, zlib.error)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The columns of scalars of one table, all of the same length."""

    columns: dict[str, list[Value]]
    nested: tuple[str, ...] = ()
    """Columns that are left out, as they hold lists or objects."""
    notes: tuple[str, ...] = ()
    """What was assumed to read it."""

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def is_table(name: str) -> bool:
    return name.casefold().removesuffix(".gz").endswith(SUFFIXES)


def read_rows(name: str, content: bytes) -> Rows:
    """Parse a table by the suffix of its name.

    Numbers that are whole become ints; blanks become None.

    Raises:
        UserError: where it can't be parsed; the message begins with the name.
    """
    plain = name.casefold().removesuffix(".gz")
    suffix = plain.rpartition(".")[2]
    try:
        if plain != name.casefold():
            content = gzip.decompress(content)
        if suffix == "parquet":
            return _read_parquet(content)
        # Excel's "Unicode text" begins with a mark of UTF-16.
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
        if "\0" in text:
            raise UnicodeDecodeError("utf-8", content, 0, 1, "it has NUL")
        if suffix in ("jsonl", "ndjson"):
            return read_objects(_read_lines(text))
        if suffix == "json":
            return _from_json(json.loads(text))
        return _read_csv(text, spaced=suffix == "txt")
    except UnicodeDecodeError:
        raise UserError(f"{name}: its text is not UTF-8; save it as CSV in UTF-8") from None
    except (*_DAMAGE, csv.Error, pa.ArrowException, *_GZIP) as error:
        raise UserError(f"{name}: it can't be read as a table ({error}); write it again") from None


def _read_lines(text: str) -> list[Any]:
    """Parse JSON lines; an error names the line."""
    objects = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                objects.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return objects


def _read_parquet(content: bytes) -> Rows:
    file = pq.ParquetFile(io.BytesIO(content))
    columns, nested = list[str](), list[str]()  # what is not read may be pictures, or features
    for column in file.schema_arrow:
        if not pa.types.is_nested(column.type):
            is_bytes = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
            columns += [] if is_bytes else [column.name]
        elif pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
            columns.append(column.name)
        else:
            nested.append(column.name)
    table = file.read(columns)
    found = _from_columns({name: table[name].to_pylist() for name in columns})
    return replace(found, nested=(*nested, *found.nested))


def _read_csv(text: str, *, spaced: bool) -> Rows:
    """`spaced`: fields are separated by blanks, as in `images/1.jpg 3`, unless by a delimiter."""
    first, _, rest = text.lstrip().partition("\n")
    delimiter = max(",;\t|", key=first.count)
    if first.casefold().startswith("sep="):  # Excel's, before the names of columns
        text, delimiter = rest, first.rstrip()[4:] or "\t"
    if spaced and not first.count(delimiter):
        lines = [line.rsplit(maxsplit=1) for line in text.splitlines()]
    else:
        lines = list(csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True))
    lines = [[cell.strip() for cell in line] for line in lines if any(map(str.strip, line))]
    if not lines:
        return Rows(columns={})
    notes, head = (), lines[0]
    if any(cell.casefold().endswith(IMAGE_SUFFIXES) for cell in head):
        head = [str(number) for number in range(1, len(head) + 1)]
        notes = (f"no names of columns; they are numbered {head[0]} to {head[-1]}",)
    else:
        lines = lines[1:]
    if twice := [name for name, number in Counter(head).items() if number > 1]:
        raise ValueError(f"two columns are called {twice[0]!r}")
    for number, line in enumerate(lines, start=1):
        if len(line) != len(head):
            raise ValueError(
                f"row {number} has {len(line)} fields, and there are {len(head)} columns"
            )
    return Rows(
        columns={
            name: _to_values([line[index] for line in lines]) for index, name in enumerate(head)
        },
        notes=notes,
    )


def _from_json(content: Any) -> Rows:
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return _from_coco(content)
    if isinstance(content, dict) and all(k.casefold().endswith(IMAGE_SUFFIXES) for k in content):
        return read_objects(
            [
                {"file_name": name, **(value if isinstance(value, dict) else {"label": value})}
                for name, value in content.items()
            ]
        )
    if isinstance(content, dict) and all(isinstance(v, dict) for v in content.values()):
        # As pandas writes it by default: {column: {index: value}}.
        columns = {name: _to_values(list(values.values())) for name, values in content.items()}
        if len({len(values) for values in columns.values()}) > 1:
            raise ValueError("its columns differ in length")
        return Rows(columns=columns)
    if not isinstance(content, list):
        raise ValueError("it is no list of objects, and not in COCO's format")
    return read_objects(content)


def read_objects(objects: Sequence[Any]) -> Rows:
    """Return the rows of JSON objects.

    Raises:
        ValueError: where one is no object.
    """
    if not all(isinstance(row, dict) for row in objects):
        raise ValueError('each row must be an object, such as {"file_name": "1.jpg"}')
    names = dict.fromkeys(name for row in objects for name in row)
    return _from_columns({name: [row.get(name) for row in objects] for name in names})


def _from_columns(columns: dict[str, list[Any]]) -> Rows:
    """Keep columns of scalars, and of lists of one text each, as some write a label."""
    columns = {name: _unpack(values) for name, values in columns.items()}
    nested = [n for n, values in columns.items() if any(isinstance(v, list | dict) for v in values)]
    return Rows(
        columns={name: _to_values(columns[name]) for name in columns if name not in nested},
        nested=tuple(nested),
    )


def _unpack(values: list[Any]) -> list[Any]:
    lists = [value for value in values if value is not None]
    if not all(isinstance(v, list) and len(v) == 1 and isinstance(v[0], str) for v in lists):
        return values
    return [None if value is None else value[0] for value in values]


def _from_coco(content: dict[str, Any]) -> Rows:
    """Join images and annotations; an image of several categories has no class.

    Raises:
        ValueError: where no annotation has a category, as those of captions.
    """
    categories = {row["id"]: row["name"] for row in content.get("categories", ())}
    found, unlisted = defaultdict[Any, set[str]](set), defaultdict[Any, set[Any]](set)
    for row in content["annotations"]:
        if (category := row.get("category_id")) in categories or not categories:
            found[row["image_id"]] |= (
                set() if category is None else {str(categories.get(category, category))}
            )
        elif category is not None:
            unlisted[row["image_id"]].add(category)
    if content["annotations"] and not any(found.values()):
        raise ValueError("none of its annotations has a category, as those of captions")
    labels = [[*found[row["id"]], *unlisted[row["id"]]] for row in content["images"]]
    columns: dict[str, list[Value]] = {
        "file_name": [row["file_name"] for row in content["images"]],
        "label": [
            names[0] if len(names) == 1 and names[0] in found[row["id"]] else None
            for row, names in zip(content["images"], labels, strict=True)
        ],
    }
    several = sum(len(names) > 1 for names in labels)
    notes = ("in COCO's format; the classes are its categories",)
    if several:
        notes += (describe_several(several, "categories"),)
    if unknown := {str(category) for of_image in unlisted.values() for category in of_image}:
        names = ", ".join(sorted(unknown)[:3])
        notes += (f"its annotations have categories that it does not list ({names})",)
    return Rows(columns=columns, notes=notes)


def describe_several(num_images: int, noun: str) -> str:
    if num_images == 1:
        return f"1 image has several {noun} and is left out"
    return f"{num_images} images have several {noun} and are left out"


def _to_values(values: Sequence[Any]) -> list[Value]:
    """Blanks become None; where all other values are whole numbers, so are the results."""
    texts = [None if value is None else str(value).strip() or None for value in values]
    texts = [None if text is None or text.casefold() == "nan" else text for text in texts]
    kept = [text for text in texts if text is not None]
    if len(kept) < len(texts) and all(map(_WHOLE.fullmatch, kept)):
        texts = [text and text.partition(".")[0] for text in texts]  # pandas: 3.0 beside a blank
        kept = [text for text in texts if text is not None]
    # A leading zero is part of a name: 007.jpg.
    if kept and all(str(_to_int(text)) == text for text in kept):
        return [_to_int(text) if text is not None else None for text in texts]
    return list(texts)


def _to_int(text: str) -> int | None:
    return int(text) if text.lstrip("-").isdecimal() else None
