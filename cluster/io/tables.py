"""Tables as text."""

import csv
import io
from collections.abc import Iterable


def to_csv(header: Iterable[object], rows: Iterable[Iterable[object]]) -> bytes:
    """Write a header and rows as CSV; what is None stays empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()
