"""Linear probes: the minimum of their loss, and the choice of regularization."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from trainers.inference.probe import HELD_OUT, STRENGTHS, fit_linear, fit_probe, hold_out, predict

pytestmark = pytest.mark.usefixtures("one_thread")

Samples = tuple[np.ndarray, np.ndarray]


def draw(num_images: int, num_features: int, *, distance: float, seed: int = 0) -> Samples:
    """Three Gaussian classes, as float32 features and labels."""
    rng = np.random.default_rng(seed)
    labels_N = np.arange(num_images) % 3
    centers_KD = distance * np.eye(3, num_features)
    features_ND = 2.0 + centers_KD[labels_N] + rng.normal(size=(num_images, num_features))
    return features_ND.astype(np.float32), labels_N


def test_the_classifier_is_at_the_minimum_of_its_loss() -> None:
    """Found by scipy in double precision, from the definition of C."""
    features_ND, labels_N = draw(90, 4, distance=2.0)
    inputs_ND = (features_ND - features_ND.mean(0)) / features_ND.std(0)
    strength = 0.3

    def loss(parameters: np.ndarray) -> float:
        weight_KD, bias_K = parameters[:12].reshape(3, 4), parameters[12:]
        logits_NK = inputs_ND @ weight_KD.T + bias_K
        entropies_N = logsumexp(logits_NK, axis=1) - logits_NK[np.arange(90), labels_N]
        return strength * entropies_N.sum() + 0.5 * (weight_KD**2).sum()

    expected = minimize(loss, np.zeros(15), tol=1e-10)
    found = fit_linear(features_ND, labels_N, strength=strength)[-1]

    assert found.coef_ == pytest.approx(expected.x[:12].reshape(3, 4), abs=2e-3)
    at_found = np.concatenate([found.coef_.ravel(), found.intercept_])
    assert loss(at_found) == pytest.approx(expected.fun, rel=1e-5)


def test_a_probe_generalizes_and_accepts_constant_features() -> None:
    features_ND, labels_N = draw(300, 8, distance=4.0)
    features_ND[:, 5] = 7.0
    probe, _ = fit_probe(features_ND.astype(np.float16), labels_N)
    others_ND, expected_N = draw(300, 8, distance=4.0, seed=1)
    others_ND[:, 5] = 7.0

    assert (predict(probe, others_ND) == expected_N).mean() > 0.95


def test_of_equally_good_strengths_the_strongest_regularization_is_chosen() -> None:
    assert fit_probe(*draw(90, 3, distance=20.0))[1] == STRENGTHS[0]
    features_ND, labels_N = draw(3, 3, distance=20.0)  # of which no class can spare one
    probe, strength = fit_probe(features_ND, labels_N)
    assert strength == STRENGTHS[0] and predict(probe, features_ND).tolist() == [0, 1, 2]


def test_one_image_in_five_of_each_class_chooses_and_never_the_only_one() -> None:
    labels_N = np.array([0] * 12 + [1] * 2 + [2])
    held_N = hold_out(labels_N)

    assert [held_N[labels_N == label].sum() for label in (0, 1, 2)] == [3, 1, 0]
    assert held_N[[1, 1 + HELD_OUT, 1 + 2 * HELD_OUT]].all()
