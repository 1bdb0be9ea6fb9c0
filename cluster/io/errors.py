"""The user's errors: one sentence that names the field, the value and the remedy."""

import re
from math import isfinite

MAX_TEXT = 4096
"""Characters of a path in a config, which is Linux's limit."""
_MAX_SHOWN = 300
_CREDENTIALS = re.compile(
    r"://[^/@:]*:(?!\d+(/|$))[^@]*@"  # USER:PASSWORD@, but not HOST:PORT/
    r"|^https?://[^/]*@"
    r"|[?&](x-amz-\w+|sig|signature|\w*token|\w*secret\w*|\w*access_key\w*|password)=",
    re.IGNORECASE,
)


class UserError(ValueError):
    """An error that the user can fix; a command prints it in one sentence and exits with 2."""


class StorageError(OSError):
    """Storage that does not answer: nothing is known about the file. Reported as a UserError is."""


class MissingFileError(StorageError, FileNotFoundError):
    """A file that does not exist, of which storage is sure."""


def require(condition: bool, field: str, value: object, remedy: str) -> None:
    """Raise the user's error: one sentence naming the field, the value and the remedy."""
    if not condition:
        raise UserError(f"{field} is {show(value)}: {remedy}")


def require_at_least(field: str, value: int | None, minimum: int) -> None:
    """Refuse a count below `minimum`; None means 'not set' and passes."""
    require(value is None or value >= minimum, field, value, f"use {minimum} or more")


def require_between(field: str, value: int | None, minimum: int, maximum: int) -> None:
    """Refuse a number out of a range; None means 'not set' and passes."""
    require(
        value is None or minimum <= value <= maximum,
        field,
        value,
        f"use {minimum} to {maximum}",
    )


def require_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices."""
    require(value in choices, field, value, f"choose from {', '.join(choices)}")


def require_positive(field: str, value: float | None) -> None:
    """Refuse a number that is not finite and above zero; None means 'not set' and passes."""
    require(
        value is None or (isfinite(value) and value > 0),
        field,
        value,
        "use a finite number above zero",
    )


def require_share(field: str, value: float | None) -> None:
    """Refuse a share that is not between 0 and 1; None means 'not set' and passes."""
    require(
        value is None or 0 < value < 1, field, value, "use a share between 0 and 1, such as 0.95"
    )


def require_not_negative(field: str, value: float) -> None:
    """Refuse a number that is not finite and at least zero."""
    require(isfinite(value) and value >= 0, field, value, "use a finite number, zero or more")


def holds_credentials(uri: str) -> bool:
    """Whether a URI brings a key, password or signature along."""
    return _CREDENTIALS.search(uri) is not None


def show(value: object) -> str:
    """Write a value into the user's sentence: as Python does, but cut where it is long, huge
    numbers by their size, and credentials not at all."""
    if isinstance(value, int) and abs(value).bit_length() > 256:
        return f"a number of {abs(value).bit_length()} bits"
    if isinstance(value, str):
        if holds_credentials(value[:MAX_TEXT]):
            return "a URI with credentials"
        value = value[: _MAX_SHOWN + 1]
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # numbers in it that Python won't write out
        return f"a {type(value).__name__}"
    if holds_credentials(shown[:MAX_TEXT]):
        return f"a {type(value).__name__} with credentials"
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
