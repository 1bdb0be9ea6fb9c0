"""Which networks to combine, chosen on validation images: pure functions.

M members, N images, K classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """Larger is better: the higher accuracy, then the lower loss."""

    top1: float
    minus_loss: float


def score(log_NK: np.ndarray, labels_N: np.ndarray) -> Score:
    """Return the score of log probabilities."""
    of_label_N = np.take_along_axis(log_NK, labels_N[:, None], 1)[:, 0]
    return Score(float((log_NK.argmax(1) == labels_N).mean()), float(of_label_N.mean()))


def mix(log_MNK: np.ndarray) -> np.ndarray:
    """Return the log of the members' mean probability, log_NK."""
    return np.logaddexp.reduce(log_MNK) - np.log(len(log_MNK))


def choose_soup(
    num_candidates: int, best: Score, evaluate: Callable[[list[int]], Score | None]
) -> list[int]:
    """Return the members of a greedy soup: each candidate, in order, stays if that is better.

    Args:
        best: of candidate 0 alone.
        evaluate: returns the score of the average of some candidates; None ends the search.
    """
    chosen = [0]
    for candidate in range(1, num_candidates):
        found = evaluate([*chosen, candidate])
        if found is None:
            break
        if found > best:
            chosen, best = [*chosen, candidate], found
    return chosen


def choose_ensemble(log_MNK: Sequence[np.ndarray], labels_N: np.ndarray) -> int:
    """Return how many of the best networks, in order, make the best ensemble: 1 for none."""
    scores = [
        score(mix(np.stack(log_MNK[:number])), labels_N) for number in range(1, len(log_MNK) + 1)
    ]
    return 1 + max(range(len(scores)), key=lambda index: (scores[index], -index))
