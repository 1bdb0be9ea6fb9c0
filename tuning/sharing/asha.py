"""How many epochs ASHA lets trials have."""

from statistics import fmean

import numpy as np

from tuning.config import TuningConfig
from tuning.search import count_trials

NUM_SIMULATED = 200
"""Random orders of results that ASHA is simulated with."""


def simulate_epochs(config: TuningConfig, *, together: bool = False) -> float:
    """Return the mean epochs of a trial under ASHA.

    Args:
        together: of heads, each of which is compared with all others (`rounds`). Trials else are
            compared with those before them: early ones have less to be compared with, so more of
            them continue than one of `reduction_factor`.
    """
    rungs, num_trials = config.rungs, count_trials(config)
    share = 1 - 1 / config.reduction_factor
    rng = np.random.default_rng(0)
    totals: list[float] = []
    for _ in range(max(1, NUM_SIMULATED // num_trials)):
        left_N, before = rng.random(num_trials), 0
        total = 0.0
        for rung in [*rungs, config.base.epochs]:
            total += len(left_N) * (rung - before)
            cutoffs_N = quantiles_of_others(left_N, share) if together else _running(left_N, share)
            left_N, before = left_N[left_N >= cutoffs_N], rung
        totals.append(total / num_trials)
    return fmean(totals)


def _running(values_N: np.ndarray, share: float) -> np.ndarray:
    """Return, for each value, the quantile of those before it; -inf for the first."""
    before = (np.quantile(values_N[:number], share) for number in range(1, len(values_N)))
    return np.array([-np.inf, *before])


def quantiles_of_others(values_N: np.ndarray, share: float) -> np.ndarray:
    """Return, for each value, the quantile of all others, interpolated as numpy does; -inf where
    there are none."""
    if len(values_N) < 2:
        return np.full(len(values_N), -np.inf)
    order_N = np.argsort(values_N)
    sorted_N, ranks_N = values_N[order_N], np.argsort(order_N)
    position = share * (len(values_N) - 2)  # among the others
    low = int(position)
    high = min(low + 1, len(values_N) - 2)
    low_N, high_N = (sorted_N[place + (place >= ranks_N)] for place in (low, high))
    return low_N + (position - low) * (high_N - low_N)
