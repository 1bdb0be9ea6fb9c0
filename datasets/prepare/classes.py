"""Class names: every spelling of a name is one class. Pure functions."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from cluster.io.errors import UserError


def unify(names: Iterable[str]) -> dict[str, str]:
    """Return the class of each spelling of a name: as `clean` has it.

    macOS takes letters and accents apart, so `Citroën` from a zip would be two classes.

    Raises:
        UserError: for a blank name; the message begins after `root is X`.
    """
    class_of = {name: clean(name) for name in names}
    for name, cleaned in class_of.items():
        if not cleaned:
            raise UserError(f"a class has the blank name {name!r}; give it another")
    return class_of


def clean(name: str) -> str:
    """Return a name in one line: control characters and several blanks become one blank."""
    line = "".join(" " if unicodedata.category(char) == "Cc" else char for char in name)
    return " ".join(unicodedata.normalize("NFC", line).split())


def find_similar(name: str, classes: Iterable[str]) -> str | None:
    """Return a class whose name differs in case or width of letters only; None without one."""
    return next((other for other in classes if other != name and _key(other) == _key(name)), None)


def describe_spellings(class_of: dict[str, str]) -> list[str]:
    """Describe names that were taken as one class, and classes that may be meant as one."""
    spellings, similar = defaultdict[str, list[str]](list), defaultdict[str, set[str]](set)
    for name, cleaned in class_of.items():
        spellings[cleaned].append(name)
        similar[_key(cleaned)].add(cleaned)
    lines = [
        f"class {cleaned!r} has {len(names)} spellings ({', '.join(map(ascii, names))})"
        for cleaned, names in spellings.items()
        if len(names) > 1
    ]
    lines += [
        f"classes {' and '.join(map(repr, sorted(names)))} differ in case only, and are kept apart"
        for names in similar.values()
        if len(names) > 1
    ]
    return lines


def _key(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()
