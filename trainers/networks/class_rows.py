"""Carries a head between lists of classes: its rows follow the names. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from datasets.prepare.classes import clean


class MatchedHead(NamedTuple):
    tensors: dict[str, Tensor]
    kept: tuple[str, ...]
    """Classes that both have."""
    drawn: tuple[str, ...]
    """Those that the weights don't have: their rows are initialized."""


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
