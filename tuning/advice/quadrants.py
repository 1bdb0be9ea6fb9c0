"""The lecture's four quadrants: little or much data, a similar or a different task.

                 similar task                            different task
    little data  a linear classifier on the last layer   linear classifiers at several stages
    much data    fine-tune a few of the last stages      fine-tune many stages

A task is similar if a linear classifier on the last stage closes at least half of the gap between
chance and 1, and no earlier stage is significantly better. Both are measured on validation images.
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
"""The lecture's advice, by (little data, similar task)."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the frozen network, and the linear classifier on it."""

    name: str
    depth: int
    """The freeze depth that keeps this stage and those before it."""
    num_features: int
    """Per image, averaged over positions."""
    strength: float
    """C of the classifier's regularization."""
    top1: float
    """On validation images."""
    low: float
    high: float
    """Wilson's 95 percent interval."""
    p_better: float
    """P value that this classifier is better than the last stage's (McNemar, exact, one-sided)."""


@dataclass(frozen=True, kw_only=True)
class Quadrant:
    """The measures of a data set and a network, and the quadrant that follows."""

    images_per_class: float
    """Training images of the median class."""
    little_per_class: int
    """Fewer are little data."""
    chance: float
    """Validation accuracy of always predicting the commonest class."""
    gap_closed: float
    """By the last stage: 0 is chance, 1 is perfect; 0 where all validation images are of one class,
    as chance is perfect then."""
    rival: str | None
    """The best earlier stage that is significantly better than the last."""
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
        """Return a line about the data and a line about the task."""
        size, bound = ("little", "below") if self.is_little else ("much", "not below")
        enough = "at least" if self.gap_closed >= MIN_GAP_CLOSED else "less than"
        return [
            f"{size}: {self.images_per_class:g} training images in the median class, {bound} "
            f"--little-per-class {self.little_per_class}",
            f"{'similar' if self.is_similar else 'different'}: the last stage closes "
            f"{self.gap_closed:.2f} of the gap between chance ({self.chance:.3f}) and 1, {enough} "
            f"{MIN_GAP_CLOSED}; {self.rival or 'no earlier stage'} is significantly better",
        ]


def find_best(stages: Sequence[Stage]) -> Stage:
    """Return the stage with the most accurate classifier; of equals, the last."""
    return max(stages, key=lambda stage: (stage.top1, stage.depth))


def find_quadrant(
    stages: Sequence[Stage], *, chance: float, images_per_class: float, little_per_class: int
) -> Quadrant:
    """Apply the two rules, and recommend freeze depths.

    Args:
        stages: in the order of the network.
    """
    *earlier, last = stages
    # Bonferroni: SIGNIFICANCE of all comparisons with the last stage together.
    rivals = [stage for stage in earlier if stage.p_better < SIGNIFICANCE / len(earlier)]
    rival = max(rivals, key=lambda stage: stage.top1, default=None)
    quadrant = Quadrant(
        images_per_class=images_per_class,
        little_per_class=little_per_class,
        chance=chance,
        gap_closed=(last.top1 - chance) / (1 - chance) if chance < 1 else 0.0,
        rival=rival and rival.name,
        freeze_depths=(),
    )
    depth = recommend(
        len(stages),
        is_little=quadrant.is_little,
        is_similar=quadrant.is_similar,
        best_depth=find_best(stages).depth,
    )
    return replace(quadrant, freeze_depths=with_neighbours(depth, len(stages)))


def recommend(num_stages: int, *, is_little: bool, is_similar: bool, best_depth: int) -> int:
    """Return the freeze depth of a quadrant.

    Little data: freeze all stages, or those up to the one with the best linear classifier.
    Much data: train the last third of the stages, or the last two thirds.
    """
    if is_little:
        return num_stages if is_similar else best_depth
    return num_stages - max(1, round((FEW if is_similar else MANY) * num_stages))


def with_neighbours(depth: int, num_stages: int) -> tuple[int, ...]:
    """Return a freeze depth and the two nearest, the smaller of equals first."""
    nearest = sorted(range(num_stages + 1), key=lambda other: (abs(other - depth), other))
    return tuple(nearest[:3])
