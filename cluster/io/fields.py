"""Checks of values against the annotations of dataclasses, for the command line and for files.

`check_fields` checks a config, however it was built: numbers must be finite and in range, text
without control characters. `build` makes a dataclass from JSON of any content. Errors name the
dotted field. Standard library only.
"""

import math
import types
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cluster.io.errors import MAX_TEXT, UserError, holds_credentials, show

MAX_COUNT = 2**31 - 1
"""Upper bound of integers in a config: epochs, images, workers, seeds."""
MAX_FLOAT = 3.4e38
"""Upper bound of floats in a config: a float32 is infinite beyond it."""
MAX_STORED = 2**63 - 1
"""Upper bound of integers in a file: int64."""
_CONTROL = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories that would break a path or a log

T = TypeVar("T")


def check_fields(config: Any, section: str = "") -> None:
    """Check every value of a config, and of the configs in it, by its annotation.

    Raises:
        UserError: for a value of another type, a number that is not finite or out of range, and
            text with control characters or credentials.
    """
    for name, hint in _hints(type(config)).items():
        _check(getattr(config, name), hint, f"{section}{name}")


def build(cls: type[T], values: object, section: str = "") -> T:
    """Build a dataclass from JSON: lists become tuples, objects nested dataclasses.

    A missing field has its default: an older Thaw did not have the field.

    Raises:
        UserError: for an unknown or missing key, or a value of another type.
    """
    if not isinstance(values, dict):
        raise _mismatch(section.rstrip(".") or "it", values, "an object")
    hints = _hints(cls)
    for key in values:
        if key not in hints:
            raise UserError(f"{section}{show(key)[1:-1]} is unknown to this version of Thaw")
    for field in fields(cls):  # pyright: ignore[reportArgumentType] as T is a dataclass
        if field.name not in values and field.default is field.default_factory is MISSING:
            raise UserError(f"{section}{field.name} is missing")
    return cls(
        **{key: _take(value, hints[key], f"{section}{key}") for key, value in values.items()}
    )


def take_object(values: object, hints: dict[str, Any], section: str = "") -> dict[str, Any]:
    """Check the keys of a JSON object that are in `hints`; other keys are kept unchecked.

    A key whose annotation allows None may be missing and becomes None. A hint is an annotation, a
    dict of hints for a nested object, or a list of one hint for a list of such values.

    Raises:
        UserError: for a missing key, or a value of another type.
    """
    if not isinstance(values, dict):
        raise _mismatch(section.rstrip(".") or "it", values, "an object")
    taken = {}
    for key, hint in hints.items():
        if key not in values and type(None) not in get_args(hint):
            raise UserError(f"{section}{key} is missing")
        taken[key] = _take(values.get(key), hint, f"{section}{key}")
    return values | taken


def hint_at(cls: type[Any], path: str) -> Any:
    """Return the annotation of the field at a dotted path; None where there is no such field."""
    name, _, inside = path.partition(".")
    hint = _hints(cls).get(name)
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return hint_at(hint, inside) if inside else None
    return None if inside else hint


def read_value(value: object, hint: Any, name: str) -> Any:
    """Convert a value of JSON, or a word of a command line, to the type of the annotation; the
    words `none` and `None` are None.

    Raises:
        UserError: for a value of another type.
    """
    for word in _read_words(value) if isinstance(value, str) else ():
        with suppress(UserError):
            return read_value(word, hint, name)
    taken = _take(value, hint, name)
    _check(taken, hint, name)
    return taken


def _read_words(text: str) -> Iterator[object]:
    words = {"none": None, "None": None, "true": True, "false": False}
    if text in words:
        yield words[text]
    for number in (int, float):
        with suppress(ValueError):
            yield number(text)


def check_text(value: str, name: str) -> None:
    """Check a path, URI or name.

    Raises:
        UserError: naming the field, without showing a secret.
    """
    if len(value) > MAX_TEXT:
        raise UserError(f"{name} is {show(value)}: use {MAX_TEXT} characters or fewer")
    if not value.isprintable() and any(unicodedata.category(c) in _CONTROL for c in value):
        raise UserError(f"{name} is {show(value)}: use text without control characters")
    if holds_credentials(value):
        raise UserError(
            f"{name} holds credentials, which would be written to configs and logs; use a URI such "
            "as s3://BUCKET/PATH, and set the credentials in the environment"
        )


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _take(value: Any, hint: Any, name: str) -> Any:
    """Convert a value of JSON to the type of the annotation."""
    if hint is Any or hint is object:
        return value
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return value if isinstance(value, hint) else build(hint, value, f"{name}.")
    if isinstance(hint, dict):
        return take_object(value, hint, f"{name}.")
    if isinstance(hint, list):
        if not isinstance(value, list):
            raise _mismatch(name, value, "a list")
        return [_take(part, hint[0], name) for part in value]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _take_any(value, arguments, hint, name)
    if origin is Literal:
        fits = any(value == choice and type(value) is type(choice) for choice in arguments)
    elif origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise _mismatch(name, value, describe(hint))
        if origin is list or arguments[-1:] == (...,):
            arguments = arguments[:1] * len(value)
        if len(arguments) != len(value):
            raise _mismatch(name, value, describe(hint))
        return origin(_take(part, of, name) for part, of in zip(value, arguments, strict=True))
    elif origin is dict:
        if not isinstance(value, dict):
            raise _mismatch(name, value, describe(hint))
        return {
            _key(key, name): _take(part, arguments[1], f"{name}.{key}")
            for key, part in value.items()
        }
    elif hint is float:
        fits = isinstance(value, float) or (_is_int(value) and abs(value) <= MAX_STORED)
        value = float(value) if fits else value
    elif hint is int:
        fits = _is_int(value) and abs(value) <= MAX_STORED
    else:
        fits = value is None if hint is types.NoneType else isinstance(value, hint)
    if not fits:
        raise _mismatch(name, value, describe(hint))
    return value


def _take_any(value: Any, options: tuple[Any, ...], whole: Any, name: str) -> Any:
    inside: UserError | None = None
    for option in options:
        try:
            return _take(value, option, name)
        except UserError as error:
            if is_dataclass(option) and isinstance(value, dict):
                inside = error  # more specific than the message below
    raise inside or _mismatch(name, value, describe(whole))


def _check(value: Any, hint: Any, name: str) -> None:
    if is_dataclass(value):
        check_fields(value, f"{name}.")
        return
    if isinstance(value, tuple):
        for part in value:
            _check(part, Any, name)
    elif isinstance(value, float):
        if not math.isfinite(value) or abs(value) > MAX_FLOAT:
            raise UserError(f"{name} is {value!r}: use a finite number")
    elif _is_int(value):
        if abs(value) > MAX_COUNT:
            raise UserError(f"{name} is {show(value)}: use {MAX_COUNT} or less")
    elif isinstance(value, str):
        check_text(value, name)
    if hint is not Any:
        _take(value, hint, name)


def _key(key: Any, name: str) -> str:
    if not isinstance(key, str):
        raise _mismatch(name, key, "text for a key")
    return key


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _mismatch(name: str, value: object, expected: str) -> UserError:
    return UserError(f"{name} is {show(value)}: use {expected}")


def describe(hint: Any) -> str:
    """Describe the values that an annotation allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if origin is Literal:
        return ", ".join(repr(choice) for choice in arguments)
    if origin in (tuple, list):
        parts = arguments[:1] if arguments[-1:] == (...,) else arguments
        return f"a list of {', '.join(map(describe, parts))}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if hint in words:
        return words[hint]
    return "none" if hint is types.NoneType else "an object"


def option(field: str, value: object) -> list[str]:
    """Write a field as the command line takes it."""
    name = field.replace("_", "-")
    match value:
        case bool():
            return [f"--{name}" if value else f"--no-{name}"]
        case tuple():
            parts = [part if isinstance(part, tuple) else (part,) for part in value]
            return [f"--{name}", *(str(word) for part in parts for word in part)]
        case _:
            return [f"--{name}", str(value)]
