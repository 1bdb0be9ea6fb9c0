"""From the first epochs of several trainings to their last: expected accuracy and regret.

N validation images, T trainings, D draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import log2, sqrt

import numpy as np

SPREAD = 0.05
"""Deviation of val/top1 from the power law after a doubling of the epochs. With it, the deviations
of 60 trainings of MobileNetV2, from a quarter of their epochs on, were as large as expected."""
NUM_DRAWS = 10_000
TIE = 0.01
"""Accuracies that differ by less are equally good."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A normal distribution of an accuracy."""

    top1: float
    deviation: float


def extrapolate(top1s: Sequence[float], num_epochs: int, num_images: int) -> Expected:
    """Expect the best val/top1 of a training that is stopped after its first epochs.

    The best so far counts, as a sweep keeps the best checkpoint. The error falls by a power law:
    each doubling of the epochs multiplies it by what the last one did. The deviation has three
    parts: what is still expected to be gained, SPREAD, and the error of a difference of two
    accuracies on the same `num_images` images, half of whose variance they share.

    Args:
        top1s: val/top1 after each epoch.
        num_epochs: of the whole training.
    """
    best = list(accumulate(top1s, max))
    last, before = best[-1], best[(len(best) - 1) // 2]
    if len(best) == 1:
        before = last / 2  # nothing is known of the curve yet
    doublings = max(0.0, log2(num_epochs / len(best)))
    fall = (1 - last) / (1 - before) if before < 1 else 1.0  # of the error, in the last doubling
    top1 = 1 - (1 - last) * fall**doublings
    noise = sqrt(max(last * (1 - last), 1 / num_images) / (2 * num_images))
    deviation = sqrt(noise**2 + (top1 - last) ** 2 + (SPREAD * doublings) ** 2)
    return Expected(top1=top1, deviation=deviation)


@dataclass(frozen=True, kw_only=True)
class Regret:
    """What is lost where one of several trainings is chosen, and another one is the best."""

    expected: float
    """In val/top1."""
    p_tie: float
    """Chance that it is at most TIE."""


@dataclass(frozen=True, kw_only=True)
class Raced:
    """A freeze depth and the best of its trainings."""

    depth: int
    learning_rate: float
    top1s: tuple[float, ...]
    """val/top1 after each epoch."""
    expected: Expected
    """After all epochs."""
    regret: Regret
    """Against the best depth of the race."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """A finished race."""

    num_epochs: int
    """That the curves are extrapolated to."""
    depths: tuple[Raced, ...]
    """By expected regret."""


def find_regrets(expected: Sequence[Expected]) -> list[Regret]:
    """Return the regret of each training against the best of all."""
    rng = np.random.default_rng(0)
    means_T = np.array([each.top1 for each in expected])
    deviations_T = np.array([each.deviation for each in expected])
    draws_DT = rng.normal(means_T, deviations_T, (NUM_DRAWS, len(expected))).clip(0, 1)
    lost_DT = draws_DT.max(axis=1, keepdims=True) - draws_DT
    return [
        Regret(expected=float(lost_D.mean()), p_tie=float((lost_D <= TIE).mean()))
        for lost_D in lost_DT.T
    ]
