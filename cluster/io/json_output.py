"""The output of `--json`: one object on stdout, and all that is printed beside it on stderr."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

_stdout: TextIO | None = None
"""Where `print_json` prints while `json_alone` keeps stdout for it."""


@contextmanager
def json_alone() -> Iterator[None]:
    """Let news, warnings and what libraries print go to stderr, from any thread of this process."""
    global _stdout
    _stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdout = None


def print_json(value: Any) -> None:
    """Print the result of a command that was called with `--json`."""
    print(json.dumps(value, indent=1), file=_stdout or sys.stdout, flush=True)
