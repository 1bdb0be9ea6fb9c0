"""How many epochs ASHA lets trials have."""

from statistics import fmean

import numpy as np

from tuning.config import TuningConfig
from tuning.search import count_trials
from tuning.sharing.quantiles import quantiles_of_others

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
