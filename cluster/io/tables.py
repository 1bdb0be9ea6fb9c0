"""Tables as text."""

import csv
import io
import re
from collections.abc import Iterable

_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?", re.IGNORECASE)


def to_csv(header: Iterable[object], rows: Iterable[Iterable[object]]) -> bytes:
    """Write a header and rows as CSV; what is None stays empty.

    Text that a spreadsheet would compute, such as a class called `=1+1`, begins with an apostrophe.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([*map(_quote, row)] for row in [header, *rows])
    return text.getvalue().encode()


def _quote(cell: object) -> object:
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
