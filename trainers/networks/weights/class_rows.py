"""Carries a head between lists of classes: its rows follow the names. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from datasets.prepare.classes import clean

NAMES_SHOWN = 4


class MatchedHead(NamedTuple):
    tensors: dict[str, Tensor]
    kept: tuple[str, ...]
    """Classes that both have."""
    drawn: tuple[str, ...]
    """Those that the weights don't have: their rows are initialized."""

    def describe(self) -> str:
        """Return which rows follow class names, for the user."""
        kept, drawn = describe_names(self.kept), describe_names(self.drawn)
        if not self.kept:
            return f"head: initialized, as the weights have none of the classes {drawn}"
        initialized = f", {drawn} initialized" if self.drawn else ""
        return f"head: rows follow class names: {kept} kept{initialized}"


def match_head(
    given: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    source: Sequence[str],
    target: Sequence[str],
) -> MatchedHead:
    """Return head tensors for the target's classes: rows by name from `given`, the rest `fresh`.

    Tensors that have no row per class, such as a normalization of the features, are those given.
    """
    row_of = {clean(name): row for row, name in enumerate(source)}
    pairs = [(row, row_of[clean(name)]) for row, name in enumerate(target) if clean(name) in row_of]
    tensors = {}
    for name, tensor in fresh.items():
        have = given[name]
        if have.shape[:1] != (len(source),) or tensor.shape[:1] != (len(target),):
            if have.shape == tensor.shape:
                tensors[name] = have
            continue
        if have.shape[1:] == tensor.shape[1:]:
            rows = tensor.clone()
            for ours, theirs in pairs:
                rows[ours] = have[theirs].to(rows.dtype)
            tensors[name] = rows
    known = {ours for ours, _ in pairs}
    return MatchedHead(
        tensors,
        kept=tuple(target[row] for row in sorted(known)),
        drawn=tuple(name for row, name in enumerate(target) if row not in known),
    )


def same_classes(source: Sequence[str], target: Sequence[str]) -> bool:
    """Whether two lists name the same classes in the same order."""
    return list(map(clean, source)) == list(map(clean, target))


def describe_names(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
