"""Properties of a config's fields, said where the field is: `data: Annotated[str, URI]`.

Lists of fields are computed from these, by dotted path; what a section is marked with holds for
every field in it. Standard library only.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints


@dataclass(frozen=True)
class Marker:
    name: str


URI = Marker("uri")
"""A path or URI: made absolute before it leaves the process, refused in a job where it is not."""
OR_NAMES = Marker("or_names")
"""Of a URI: the word NAMES may be there as well, and is no path."""
NAMES = "names"
RESUMABLE = Marker("resumable")
"""May change when a run or sweep is resumed."""
RUN_RESUMABLE = Marker("run_resumable")
"""May change when a run is resumed, but not in a sweep, whose trials are compared."""
NOT_IN_KEY = Marker("not_in_key")
"""Left out of the key that a result is reused by: it decides nothing, or its content is there."""
IN_FINGERPRINT = Marker("in_fingerprint")
"""Decides the pixels of a data set or the order they are read in: part of its fingerprint."""
ON_CARD = Marker("on_card")
"""The model card shows it always; any other field only where it is not the default."""
NOT_ON_CARD = Marker("not_on_card")
"""The model card doesn't show it: it changes no weight, or is shown elsewhere in the card."""
SET_BY_PHASES = Marker("set_by_phases")
"""Not used where `schedule.phases` has any."""

T = TypeVar("T")


@cache
def markers(cls: type[Any]) -> dict[str, frozenset[Marker]]:
    """Return the markers of each field of a config class."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        field.name: frozenset(part for part in get_args(hints[field.name]) if type(part) is Marker)
        for field in fields(cls)
    }


@cache
def marked(cls: type[Any], marker: Marker) -> frozenset[str]:
    """Return the dotted paths of the fields with a marker, those of sections included."""
    return frozenset(path for path, own in _markers_by_path(cls).items() if marker in own)


def _markers_by_path(cls: type[Any]) -> dict[str, frozenset[Marker]]:
    by_path, hints = dict[str, frozenset[Marker]](), get_type_hints(cls)
    for name, own in markers(cls).items():
        if is_dataclass(section := hints[name]):
            assert isinstance(section, type)
            inside = _markers_by_path(section)
            by_path |= {f"{name}.{path}": own | its_own for path, its_own in inside.items()}
        else:
            by_path[name] = own
    return by_path


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name the values of nested objects by their dotted paths."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inside = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{name}.") if inside else {prefix + name: value}
    return flat


def leave_out(
    values: Mapping[str, Any], paths: Collection[str], prefix: str = ""
) -> dict[str, Any]:
    """Return nested objects without the values at dotted paths, and objects left empty by it."""
    kept = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            value = leave_out(value, paths, f"{prefix}{name}.")
            if not value:
                continue
        if prefix + name not in paths:
            kept[name] = value
    return kept


def change_marked(config: T, marker: Marker, change: Callable[[Any, str], Any], at: str = "") -> T:
    """Return a config with `change(value, dotted path)` for each marked value that is not None."""
    changes = {}
    for name, own in markers(type(config)).items():
        value = getattr(config, name)
        if is_dataclass(value):
            changes[name] = change_marked(value, marker, change, f"{at}{name}.")
        elif marker in own and value is not None:
            changes[name] = change(value, at + name)
    return replace(config, **changes)  # pyright: ignore[reportArgumentType] as T is a dataclass


def replace_at(config: T, changes: Mapping[str, Any]) -> T:
    """Return a config with the values at dotted paths replaced, all of a section at once."""
    own: dict[str, Any] = {}
    of_sections: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, _, inside = path.partition(".")
        if inside:
            of_sections.setdefault(name, {})[inside] = value
        else:
            own[name] = value
    for name, values in of_sections.items():
        own[name] = replace_at(getattr(config, name), values)
    return replace(config, **own)  # pyright: ignore[reportArgumentType] as T is a dataclass
