"""Probabilities of linear classifiers for images that they were not trained on.

N images, K classes, D features.
"""

import numpy as np

from trainers.inference.probe import fit_linear

FOLDS = 5


def predict_held_out(
    features_ND: np.ndarray, labels_N: np.ndarray, *, strength: float
) -> np.ndarray:
    """Return probabilities_NK, each by a classifier of the other folds.

    A class without images in the other folds has probability 0.

    Args:
        labels_N: 0 to K - 1.
        strength: C of `fit_linear`.
    """
    probabilities_NK = np.zeros((len(labels_N), int(labels_N.max()) + 1))
    folds_N = draw_folds(labels_N)
    for fold in range(FOLDS):
        held_N = folds_N == fold
        if not held_N.any() or len(np.unique(labels_N[~held_N])) < 2:
            continue
        probe = fit_linear(features_ND[~held_N], labels_N[~held_N], strength=strength)
        predicted = probe.predict_proba(features_ND[held_N].astype(np.float32))
        probabilities_NK[np.ix_(np.flatnonzero(held_N), probe.classes_)] = predicted
    return probabilities_NK


def draw_folds(labels_N: np.ndarray) -> np.ndarray:
    """Return the fold of each image; the images of a class are spread over the folds.

    As scikit-learn's StratifiedKFold, which refuses classes with fewer images than folds.
    """
    random_N = np.random.default_rng(0).permutation(len(labels_N))
    folds_N = np.empty(len(labels_N), np.int64)
    folds_N[np.lexsort((random_N, labels_N))] = np.arange(len(labels_N)) % FOLDS
    return folds_N
