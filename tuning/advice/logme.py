"""LogME: how well a linear model on given features explains labels, without training one.

The logarithm of the maximum evidence of labels under a Bayesian linear model, per image and class
(You et al. 2021, https://arxiv.org/abs/2102.11005, algorithm 2; its fixed point converges: You et
al. 2022, https://arxiv.org/abs/2110.10545). Comparable among features of the same images; larger
is better.

N images, D features, K classes, R directions that the features span.
"""

import numpy as np
from scipy.linalg import eigh

MAX_STEPS = 100
TOLERANCE = 1e-6
"""Of the score: a step that changes it less is the last."""


def measure_logme(features_ND: np.ndarray, labels_N: np.ndarray) -> float:
    """Return the mean over classes of the log evidence per image.

    Args:
        labels_N: class indices; at least two classes.
    """
    num_images = len(labels_N)
    targets_NK = (labels_N[:, None] == np.unique(labels_N)).astype(np.float64)
    variance_R, energy_RK = _project(features_ND.astype(np.float64), targets_NK)
    # What lies outside the span of the features, no weights explain.
    rest_K = np.maximum((targets_NK**2).sum(0) - energy_RK.sum(0), 0.0)
    variance_R1 = variance_R[:, None]
    alpha_K = beta_K = np.ones(targets_NK.shape[1])
    before = -np.inf
    for _ in range(MAX_STEPS):
        ratio_K = alpha_K / beta_K
        share_RK = variance_R1 / (ratio_K + variance_R1)  # that the labels decide, not the prior
        prior_RK = ratio_K / (ratio_K + variance_R1)
        weights_K = (energy_RK * share_RK**2 / variance_R1).sum(0)
        errors_K = (energy_RK * prior_RK**2).sum(0) + rest_K
        alpha_K = share_RK.sum(0) / weights_K
        beta_K = (num_images - len(variance_R) + prior_RK.sum(0)) / errors_K
        evidence_K = 0.5 * (
            len(variance_R) * np.log(alpha_K)
            + num_images * np.log(beta_K / (2 * np.pi))
            - np.log(alpha_K + beta_K * variance_R1).sum(0)
            - beta_K * errors_K
            - alpha_K * weights_K
        )
        score = float(evidence_K.mean() / num_images)
        # Not the ratio: where features explain all labels, it falls forever.
        if abs(score - before) < TOLERANCE:
            break
        before = score
    return before


def _project(features_ND: np.ndarray, targets_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the squared singular values of the features, and the targets' energy along each of
    their left singular vectors, by the smaller of the two Gram matrices."""
    num_images, num_features = features_ND.shape
    if num_features < num_images:
        variance, vectors = eigh(features_ND.T @ features_ND)
        products_RK = vectors.T @ (features_ND.T @ targets_NK)
    else:
        variance, vectors = eigh(features_ND @ features_ND.T)
        products_RK = vectors.T @ targets_NK * np.sqrt(np.maximum(variance, 0.0))[:, None]
    spans = variance > variance[-1] * max(features_ND.shape) * np.finfo(np.float64).eps
    return variance[spans], products_RK[spans] ** 2 / variance[spans, None]
