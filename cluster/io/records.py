"""JSON files: reading them back gives a valid value, or a UserError that names the file.

FileNotFoundError and the OSErrors of storage are not caught.
"""

import json
from typing import Any, TypeVar

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.fields import build, take_object

MAX_DEPTH = 50
"""Nesting of lists and objects that is read; our files have a tenth of it."""

T = TypeVar("T")


def read_record(uri: str, cls: type[T]) -> T:
    """Read a dataclass that was written by `asdict`."""
    values = read_json(uri)
    try:
        return build(cls, values)
    except UserError as error:
        raise damaged(uri, error) from None


def read_object(uri: str, hints: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON object and check its keys that are in `hints`, as `take_object` does."""
    values = read_json(uri)
    try:
        return take_object(values, hints or {})
    except UserError as error:
        raise damaged(uri, error) from None


def read_json(uri: str) -> Any:
    """Read a JSON file of any content."""
    return parse_json(storage.read_bytes(uri), uri)


def parse_json(content: bytes | str, source: str) -> Any:
    """Parse JSON; errors name `source`, a file or a line in one."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(source, error) from None
    if _depth(value) > MAX_DEPTH:
        raise damaged(source, f"more than {MAX_DEPTH} nested lists and objects")
    return value


def _depth(value: Any) -> int:
    """Count the levels of nested lists and objects, without recursion."""
    depth, level = 0, [value] if isinstance(value, dict | list) else []
    while level:
        depth += 1
        below = (parent.values() if isinstance(parent, dict) else parent for parent in level)
        level = [child for part in below for child in part if isinstance(child, dict | list)]
    return depth


def damaged(source: str, reason: object) -> UserError:
    return UserError(
        f"{source} is damaged or of another program or version ({reason}); read it with the "
        "version that wrote it, restore it from a copy, or delete it and run its command again"
    )
