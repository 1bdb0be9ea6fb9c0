"""The quantiles that ASHA compares results with; without torch, which takes 2 s to import."""

import numpy as np


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
