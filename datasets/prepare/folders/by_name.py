"""Classes from the paths of images, by a regular expression: `beagle_12.jpg`. Pure."""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from datasets.prepare.folders.layout import Layout, Placed
from datasets.prepare.names import find_system_name, is_other_file
from datasets.prepare.splits import find_split_folder

NO_MATCH, NOT_AN_IMAGE = "has no class by class_by", "not an image"


def arrange_by_name(files: Iterable[str], pattern: re.Pattern[str]) -> Layout:
    """Take the text that a pattern finds in the path of each image as its class; a folder above it
    that has the name of a split tells the split, else it trains."""
    layout, classes = Layout(), dict[str, None]()
    for path in sorted(files):
        reason = find_system_name(path.split("/"))
        if reason is None and is_other_file(path):
            reason = NOT_AN_IMAGE
        name = find_class(pattern, path)
        if reason is not None or name is None:
            layout.unused.append((path, reason or NO_MATCH))
            continue
        classes[name] = None
        folder, split = find_split_folder(path) or (None, "train")
        if folder is not None:
            layout.splits[folder] = split
        layout.images.append(Placed(path, split, name))
    layout.classes.extend(classes)
    rules = [f"classes from {shlex.quote(pattern.pattern)} in paths"]
    return replace(layout, rule="; ".join([*rules, *_describe_splits(layout.splits)]))


def _describe_splits(splits: Mapping[str, str]) -> list[str]:
    """Name the first folder of each split, and count the others."""
    folders = defaultdict[str, list[str]](list)
    for folder, split in splits.items():
        folders[split].append(folder)
    rules = []
    for split, (first, *others) in folders.items():
        rule, are = f"{first}/ is {split}", "folder is" if len(others) == 1 else "folders are"
        rules.append(f"{rule}, and {len(others)} other {are}" if others else rule)
    return rules


def find_class(pattern: re.Pattern[str], path: str) -> str | None:
    """Return what the groups of a pattern match, or else all that it matches; None without."""
    if (found := pattern.search(path)) is None:
        return None
    name = " ".join(filter(None, found.groups())) if pattern.groups else found[0]
    return name.strip() or None
