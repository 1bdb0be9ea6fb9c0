"""Classes from the paths of images, by a regular expression: `beagle_12.jpg`. Pure."""

import re
import shlex
from collections.abc import Iterable

from datasets.prepare.folders.layout import NO_CLASS, Layout, Placed
from datasets.prepare.names import find_system_name, is_other_file
from datasets.prepare.splits import split_of_path

NO_MATCH = "has no class by class_by"


def arrange_by_name(files: Iterable[str], pattern: re.Pattern[str]) -> Layout:
    """Take the text that a pattern finds in the path of each image as its class; a folder above it
    that has the name of a split tells the split, else it trains."""
    rule = f"classes from {shlex.quote(pattern.pattern)} in paths"
    layout, classes = Layout(rule=rule), dict[str, None]()
    for path in sorted(files):
        reason = find_system_name(path.split("/"))
        if reason is None and is_other_file(path):
            reason = NO_CLASS
        name = find_class(pattern, path)
        if reason is not None or name is None:
            layout.unused.append((path, reason or NO_MATCH))
            continue
        classes[name] = None
        layout.images.append(Placed(path, split_of_path(path) or "train", name))
    layout.classes.extend(classes)
    return layout


def find_class(pattern: re.Pattern[str], path: str) -> str | None:
    """Return what the groups of a pattern match, or else all that it matches; None without."""
    if (found := pattern.search(path)) is None:
        return None
    name = " ".join(filter(None, found.groups())) if pattern.groups else found[0]
    return name.strip() or None
