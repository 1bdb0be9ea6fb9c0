"""Greedy experimental design: the images whose labels tell most about all of them.

Transductive design (Yu, Bi and Tresp 2006) on a kernel K of the images, with labels of noise 1:
each pick i has the largest sum_j K_ji^2 / (K_ii + 1); then K loses K_:i K_i: / (K_ii + 1), which
its label tells. K, of N x N, is never computed: it is G M G^T with a matrix M of D x D, so a pick
needs one pass over G, of N x D.

N images, D features.
"""

import numpy as np

SAME = 0.95
"""Cosine of two images of which one is enough. Of the 1,642 photographs of ../shared/cars no two
have more than 0.89."""
CONSTANT = 1e-6
"""A feature that deviates by less than this share of its mean is rounding."""
BLOCK = 4096
"""Images multiplied by a D x D matrix at once."""


def pick_by_design(features_ND: np.ndarray, weights_N: np.ndarray, num_picks: int) -> list[int]:
    """Return the images to label, the best first; of equals, the first.

    None has nearly the features of an earlier one, so they may be fewer than `num_picks`.

    Args:
        weights_N: how much is unknown of each image; K_ij is the cosine of the standardized
            features times the square root of both weights.
    """
    roots_N = np.sqrt(weights_N).astype(np.float32)
    factors_ND = to_units(features_ND)  # G
    factors_ND *= roots_N[:, None]
    products_DD = (factors_ND.T @ factors_ND).astype(np.float64)
    left_DD = np.eye(len(products_DD))  # M
    gains_N = _sum_squares(factors_ND, products_DD)  # sum_j K_ji^2
    variances_N = np.square(factors_ND).sum(1, dtype=np.float64)  # K_ii
    open_N = np.ones(len(factors_ND), bool)
    picks: list[int] = []
    while len(picks) < num_picks and open_N.any():
        pick = int(np.where(open_N, gains_N / (variances_N + 1), -np.inf).argmax())
        picks.append(pick)
        factor_D = factors_ND[pick].astype(np.float64)
        vector_D = left_DD @ factor_D
        products_D = products_DD @ vector_D
        total = factor_D @ vector_D + 1  # K_ii + 1
        vectors_D3 = np.stack([vector_D, left_DD @ products_D, factor_D], 1)
        results_N3 = factors_ND @ vectors_D3.astype(np.float32)
        column_N, product_N = results_N3[:, 0].astype(np.float64), results_N3[:, 1]  # K_:i, K K_:i
        gains_N += column_N * (column_N * (vector_D @ products_D) / total - 2 * product_N) / total
        variances_N -= column_N**2 / total
        left_DD -= np.outer(vector_D, vector_D / total)
        open_N &= results_N3[:, 2] <= SAME * roots_N * roots_N[pick]
        open_N[pick] = False
    return picks


def to_units(features_ND: np.ndarray) -> np.ndarray:
    """Return float32 features of mean 0 and deviation 1 over the images, each image's scaled to
    length 1."""
    units_ND = features_ND.astype(np.float32)
    means_D = units_ND.mean(0, dtype=np.float64)
    units_ND -= means_D
    deviations_D = np.sqrt(np.square(units_ND).mean(0, dtype=np.float64))
    deviations_D[deviations_D <= CONSTANT * np.abs(means_D)] = np.inf
    units_ND /= deviations_D
    norms_N1 = np.linalg.norm(units_ND, axis=1, keepdims=True)
    units_ND /= np.maximum(norms_N1, 1e-12)
    return units_ND


def _sum_squares(factors_ND: np.ndarray, products_DD: np.ndarray) -> np.ndarray:
    """Return the sum of squares of each row of G G^T."""
    matrix_DD = products_DD.astype(np.float32)
    blocks = [
        np.einsum("nd,nd->n", block_BD @ matrix_DD, block_BD)
        for block_BD in np.split(factors_ND, range(BLOCK, len(factors_ND), BLOCK))
    ]
    return np.concatenate(blocks).astype(np.float64)
