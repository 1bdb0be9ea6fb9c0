"""JSON files that are read back, whatever somebody has put there: a valid value, or one sentence.

A ValueError names the file and what is wrong with it; FileNotFoundError and an OSError of storage
travel, as a caller may know what they mean.
"""

import json
from typing import Any, TypeVar

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.fields import build, take_object

MAX_DEPTH = 50
"""Of lists and objects in each other; ours have a tenth of it."""

T = TypeVar("T")


def read_record(uri: str, cls: type[T]) -> T:
    """Read a dataclass that was written by `asdict`."""
    values = read_json(uri)
    try:
        return build(cls, values)
    except ValueError as error:
        raise damaged(uri, error) from None


def read_object(uri: str, hints: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON object whose keys in `hints` have values that fit; others may be anything."""
    values = read_json(uri)
    try:
        return take_object(values, hints or {})
    except ValueError as error:
        raise damaged(uri, error) from None


def read_json(uri: str) -> Any:
    """Read a JSON file of any content."""
    return parse_json(storage.read_bytes(uri), uri)


def parse_json(content: bytes | str, place: str) -> Any:
    """Parse JSON that stands at `place`."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(place, error) from None
    if _depth(value) > MAX_DEPTH:
        raise damaged(place, f"more than {MAX_DEPTH} lists and objects in each other")
    return value


def _depth(value: Any) -> int:
    """Count how deep lists and objects lie in each other, without recursion."""
    depth, level = 0, [value] if isinstance(value, dict | list) else []
    while level:
        depth += 1
        below = (parent.values() if isinstance(parent, dict) else parent for parent in level)
        level = [child for part in below for child in part if isinstance(child, dict | list)]
    return depth


def damaged(place: str, why: object) -> UserError:
    return UserError(
        f"{place} is damaged, or another program's ({why}); bring it back from a copy, or delete "
        "it and run its command again"
    )
