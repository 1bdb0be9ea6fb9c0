"""The lecture's four quadrants: little or much data, a similar or a different task.

                 similar task                            different task
    little data  a linear classifier on the last layer   linear classifiers at several stages
    much data    fine-tune a few of the last stages      fine-tune many stages

A task is similar to what the network was trained on where what its last stage has learned serves
it: a linear classifier there closes at least half of the gap between chance and 1, and none at an
earlier stage is significantly better. Both are measured on validation images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.io.statistics import SIGNIFICANCE

MIN_GAP_CLOSED = 0.5
FEW, MANY = 1 / 3, 2 / 3
"""Of a network's stages."""
QUADRANTS = {
    (True, True): "a linear classifier on the last layer",
    (True, False): "linear classifiers at several stages",
    (False, True): "fine-tune a few of the last stages",
    (False, False): "fine-tune many stages",
}
"""What the lecture says where data is little, and the task similar."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the frozen network, and the linear classifier on it."""

    name: str
    depth: int
    """Stages up to this one, itself included: the freeze depth that keeps it."""
    num_features: int
    """Of an image, averaged over places."""
    strength: float
    """C of the classifier's regularization."""
    top1: float
    """On validation images."""
    low: float
    high: float
    """Wilson's 95 percent interval."""
    p_better: float
    """How likely it would beat the last stage's by so many images if it were no better: McNemar's
    exact test, one-sided."""
    logme: float
    """On training images: see logme.py."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The place of a data set and a network among the quadrants, and what follows."""

    images_per_class: float
    """Training images of the median class."""
    little_per_class: int
    """Fewer are little data."""
    chance: float
    """What always answering the commonest class reaches on validation images."""
    gap_closed: float
    """By the last stage: 0 is chance, 1 is perfect."""
    rival: str | None
    """The earlier stage that is significantly better than the last; the best one, of several."""
    freeze_depths: tuple[int, ...]
    """The recommended one, then its neighbours."""

    @property
    def is_little(self) -> bool:
        return self.images_per_class < self.little_per_class

    @property
    def is_similar(self) -> bool:
        return self.rival is None and self.gap_closed >= MIN_GAP_CLOSED

    @property
    def advice(self) -> str:
        return QUADRANTS[self.is_little, self.is_similar]

    def describe(self) -> list[str]:
        """Say in two lines what was measured, and what follows from it."""
        size, bound = ("little", "below") if self.is_little else ("much", "not below")
        enough = "at least" if self.gap_closed >= MIN_GAP_CLOSED else "less than"
        return [
            f"{size}: {self.images_per_class:g} training images in the median class, {bound} "
            f"--little-per-class {self.little_per_class}",
            f"{'similar' if self.is_similar else 'different'}: the last stage closes "
            f"{self.gap_closed:.2f} of the gap between chance ({self.chance:.3f}) and 1, {enough} "
            f"{MIN_GAP_CLOSED}; {self.rival or 'no earlier stage'} is significantly better",
        ]


def judge(
    stages: Sequence[Stage], *, chance: float, images_per_class: float, little_per_class: int
) -> Verdict:
    """Find the quadrant by its two rules, and the freeze depths that follow.

    Args:
        stages: from the input on.
    """
    *earlier, last = stages
    # Bonferroni: SIGNIFICANCE of all comparisons with the last stage together.
    rivals = [stage for stage in earlier if stage.p_better < SIGNIFICANCE / len(earlier)]
    rival = max(rivals, key=lambda stage: stage.top1, default=None)
    verdict = Verdict(
        images_per_class=images_per_class,
        little_per_class=little_per_class,
        chance=chance,
        gap_closed=(last.top1 - chance) / (1 - chance),
        rival=rival and rival.name,
        freeze_depths=(),
    )
    best = max(stages, key=lambda stage: (stage.top1, stage.depth))
    depth = recommend(
        len(stages),
        is_little=verdict.is_little,
        is_similar=verdict.is_similar,
        best_depth=best.depth,
    )
    return replace(verdict, freeze_depths=with_neighbours(depth, len(stages)))


def recommend(num_stages: int, *, is_little: bool, is_similar: bool, best_depth: int) -> int:
    """Return the freeze depth of a quadrant.

    Little data can't train much: keep what serves best, all stages, or those up to the one with the
    best linear classifier. Much data trains what the task has use for: the last third of the
    stages, or the last two thirds.
    """
    if is_little:
        return num_stages if is_similar else best_depth
    return num_stages - max(1, round((FEW if is_similar else MANY) * num_stages))


def with_neighbours(depth: int, num_stages: int) -> tuple[int, ...]:
    """Return a freeze depth and the two nearest, that which thaws more first."""
    nearest = sorted(range(num_stages + 1), key=lambda other: (abs(other - depth), other))
    return tuple(nearest[:3])
