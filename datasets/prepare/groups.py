"""Images that belong together, such as those of one vehicle: they stay in one split.

Pure functions of paths and pairs.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import pyarrow as pa

from cluster.io import filesystems
from cluster.io.errors import UserError
from cluster.io.uris import parent_of
from datasets.prepare.classes import clean
from datasets.prepare.config import PrepareConfig
from datasets.prepare.folders.inner import InnerSplits, list_folders
from datasets.prepare.listing import Listing, describe_source
from datasets.prepare.splits import split_of_name
from datasets.prepare.tables.rows import is_table


def add_groups(config: PrepareConfig, listing: Listing) -> Listing:
    """Return the listing with its groups by `group_by` or `group_depth`, where one is set.

    Raises:
        UserError: where no image is in a group.
    """
    if config.group_by is None and config.group_depth is None:
        return listing
    paths = list_relative(config, listing.references["path"].to_pylist())
    if config.group_by is not None:
        name, value, pattern = "group_by", config.group_by, re.compile(config.group_by)
        groups = [group_by_pattern(pattern, path) for path in paths]
    else:
        assert config.group_depth is not None
        name, value = "group_depth", config.group_depth
        splits = find_split_names(paths, config.class_depth)
        groups = [
            group_by_folder(path, listing.classes[label], config.class_depth, value, splits)
            for path, label in zip(paths, listing.references["label"].to_pylist(), strict=True)
        ]
    if not any(group is not None for group in groups):
        raise UserError(
            f"{name} is {value!r}: no image of {describe_source(config)} is in a group by it; "
            f"their paths are such as {paths[0]!r}"
        )
    column = pa.array(groups, pa.string())
    return replace(listing, references=listing.references.append_column("group", column))


def list_relative(config: PrepareConfig, paths: Sequence[str]) -> list[str]:
    """Return paths below the roots, or the folders of tables, where they are below one."""
    uris = [uri for uri in (config.root, config.test_root) if uri is not None]
    uris += [parent_of(uri) for uri in uris if config.source == "table" and is_table(uri)]
    roots = [f"{filesystems.resolve(uri)[1].rstrip('/')}/" for uri in uris]
    return [
        next((path.removeprefix(root) for root in roots if path.startswith(root)), path)
        for path in paths
    ]


def group_by_pattern(pattern: re.Pattern[str], path: str) -> str | None:
    """Return what the groups of a pattern match, or else all that it matches; None without."""
    if (found := pattern.search(path)) is None:
        return None
    return "/".join(filter(None, found.groups())) if pattern.groups else found[0]


def find_split_names(paths: Iterable[str], class_depth: int) -> Collection[str]:
    """Return the names of the folders of splits below classes."""
    return InnerSplits(map(list_folders, paths), class_depth).names.keys()


def group_by_folder(
    path: str, class_name: str, class_depth: int, depth: int, splits: Collection[str] = ()
) -> str | None:
    """Return the class and the first `depth` folders below its folder; None without any.

    Args:
        splits: names of folders of splits, which are no groups.
    """
    folders = path.split("/")[:-1]
    starts = [
        start + class_depth
        for start in range(len(folders) - class_depth + 1)
        if clean(" ".join(folders[start : start + class_depth])) == class_name
    ]
    if len(starts) > 1 and split_of_name(folders[starts[0] - 1]):  # train/train/1.jpg
        del starts[0]
    below = folders[starts[0] :] if starts else []
    if (at := next((at for at, name in enumerate(below) if name in splits), None)) is not None:
        del below[at]
    return "/".join([class_name, *below[:depth]]) if below else None


def join_groups(groups: Sequence[str | None], pairs: Iterable[tuple[int, int]]) -> list[object]:
    """Return a group for each image such that both images of a pair, and all of their groups, are
    in one; None for an image on its own."""
    parent = dict[object, object]()

    def find(node: object) -> object:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    for index, group in enumerate(groups):
        if group is not None:
            parent[find(index)] = find(group)
    for one, other in pairs:
        parent[find(one)] = find(other)
    return [find(index) if index in parent else None for index in range(len(groups))]
