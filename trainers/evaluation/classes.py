"""Matching of the classes of a data set with those of a network, by name.

K classes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.io.errors import UserError, require
from datasets.manifest import Manifest
from datasets.plan import IGNORE_INDEX
from datasets.prepare.classes import clean
from trainers.inference.inference import Network


@dataclass(frozen=True, kw_only=True)
class MatchedClasses:
    """The classes of a data set and those of a network."""

    index_K: np.ndarray
    """Of each class of the data set, the network's; IGNORE_INDEX where it has none."""
    not_scored: dict[str, int]
    """Images of the classes that the network does not have."""


def match_classes(
    manifest: Manifest, split: str, network: Network, renamed: Sequence[str] = ()
) -> MatchedClasses:
    """Match the classes of a data set with a network's by name.

    Raises:
        UserError: where no image of the split is of a class of the network, and for names in
            `renamed` that neither has.
    """
    number_of = {clean(name): number for number, name in enumerate(network.classes)}
    other_name = _read_pairs(renamed, manifest.classes, network.classes)
    names = [other_name.get(clean(name), clean(name)) for name in manifest.classes]
    index_K = np.array([number_of.get(name, IGNORE_INDEX) for name in names], np.int64)
    counts = manifest.split(split).class_counts
    not_scored = {
        name: count
        for name, count, index in zip(manifest.classes, counts, index_K, strict=True)
        if count and index == IGNORE_INDEX
    }
    if sum(not_scored.values()) == sum(counts):
        raise UserError(
            f"run is {network.origin!r}: its checkpoint has {len(network.classes)} classes "
            f"({network.classes[0]} ...), the data set {network.config.data} has "
            f"{len(manifest.classes)} ({manifest.classes[0]} ...), none of them the same; give the "
            "pairs with --map DATA=NETWORK, or evaluate on the data it was trained for"
        )
    return MatchedClasses(index_K=index_K, not_scored=not_scored)


def _read_pairs(
    renamed: Sequence[str], classes: Sequence[str], of_network: Sequence[str]
) -> dict[str, str]:
    """Return the network's name of each class of the data set that `--map` names.

    Raises:
        UserError: for a pair of names that neither has, and for a class with two of them.
    """
    given, names = set(map(clean, classes)), set(map(clean, of_network))
    other_name = dict[str, str]()
    for pair in renamed:
        known = _split_pair(pair, given, names)
        require(
            len(known) == 1,
            "map",
            pair,
            f"use DATA=NETWORK, a class of {', '.join(classes[:3])} ... and one of "
            f"{', '.join(of_network[:3])} ...",
        )
        ((ours, theirs),) = known
        require(
            other_name.get(ours, theirs) == theirs,
            "map",
            pair,
            f"{ours!r} is mapped to {other_name.get(ours)!r} as well: leave one of the two out",
        )
        other_name[ours] = theirs
    return other_name


def _split_pair(
    pair: str, classes: Collection[str], of_network: Collection[str]
) -> list[tuple[str, str]]:
    """Return the ways to read DATA=NETWORK, as a name may have a `=` as well."""
    parts = pair.split("=")
    cuts = range(1, len(parts))
    named = [(clean("=".join(parts[:at])), clean("=".join(parts[at:]))) for at in cuts]
    return [(ours, theirs) for ours, theirs in named if ours in classes and theirs in of_network]
