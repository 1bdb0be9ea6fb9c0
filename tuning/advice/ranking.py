"""Networks in order of accuracy, and those that no other dominates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A network in the ranking."""

    name: str
    """Of its folder in OUT, which has its advice."""
    backbone: str
    init: str
    weights: str
    """Where they come from."""
    license: str | None
    note: str | None
    """What its license asks of a user."""
    stage: str
    """The one with the best linear classifier."""
    top1: float
    """Of that classifier, on validation images."""
    low: float
    high: float
    """Wilson's 95 percent interval."""
    p_best: float
    """P value that the first of the ranking is better (McNemar, exact, one-sided)."""
    image_ms: float
    """A forward pass of an image: on a GPU where this machine has one."""
    size_mib: float
    """Of its tensors in float32."""
    on_front: bool
    """No other network is both faster and at least as accurate."""


def mark_front(rows: Sequence[Ranked]) -> list[Ranked]:
    """Sort by accuracy, the faster of equals first, and mark those that no other dominates."""
    ranked = sorted(rows, key=lambda row: (-row.top1, row.image_ms))
    front: list[Ranked] = []
    fastest_ms = float("inf")
    for row in ranked:
        front.append(replace(row, on_front=row.image_ms < fastest_ms))
        fastest_ms = min(fastest_ms, row.image_ms)
    return front
