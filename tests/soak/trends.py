"""Whether a measure grows: a test of its slope after warm-up, which noise alone does not fail."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau, theilslopes

NUM_WINDOWS = 12
"""The samples after warm-up are cut into so many; of each counts the median, as trials come and
go within seconds."""
WARM_UP = 1 / 3
"""Of the time."""
CHANCE = 0.01
"""Of a measure that is flat to be found growing, by Mann and Kendall's test."""
ALLOWED_SHARE = 0.05
"""Growth that is none, of the median; each unit has a number that is none, too."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A measure after warm-up."""

    median: float
    growth: float
    """From the first window to the last, by Theil and Sen's slope."""
    per_hour: float
    allowed: float
    """Growth in that time that is none."""
    chance: float
    """Of such an order of the windows where nothing grows."""

    @property
    def grows(self) -> bool:
        return self.chance < CHANCE and self.growth > self.allowed


def windows_of(times_s: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the median times and values of the windows after warm-up."""
    begin_s, end_s = times_s[0], times_s[-1]
    warm_s = begin_s + WARM_UP * (end_s - begin_s)
    warm = [(at, value) for at, value in zip(times_s, values, strict=True) if at >= warm_s]
    assert len(warm) >= 2 * NUM_WINDOWS, f"{len(warm)} samples are too few"
    windows = np.array_split(np.array(warm), NUM_WINDOWS)
    medians = np.array([np.median(window, axis=0) for window in windows])
    return medians[:, 0], medians[:, 1]


def find_trend(times_s: Sequence[float], values: Sequence[float], allowed: float) -> Trend:
    """Look at the samples after warm-up.

    Args:
        allowed: growth that is none, in the unit of the values.
    """
    at_s, medians = windows_of(times_s, values)
    slopes: Any = theilslopes(medians, at_s)
    order: Any = kendalltau(at_s, medians, alternative="greater")
    slope, chance = float(slopes.slope), float(order.pvalue)
    median = float(np.median(medians))
    return Trend(
        median=median,
        growth=slope * float(at_s[-1] - at_s[0]),
        per_hour=slope * 3600,
        allowed=max(allowed, ALLOWED_SHARE * median),
        chance=1.0 if np.isnan(chance) else chance,  # all windows are the same
    )
