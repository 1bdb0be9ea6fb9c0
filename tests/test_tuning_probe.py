"""Linear probes and LogME, against other ways to compute them and what must hold of them."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from tuning.advice.logme import measure_logme
from tuning.advice.probe import HELD_OUT, STRENGTHS, fit_linear, fit_probe, hold_out

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
    """As scipy finds it in double precision, by the definition of C."""
    features_ND, labels_N = draw(90, 4, distance=2.0)
    inputs_ND = (features_ND - features_ND.mean(0)) / features_ND.std(0)
    strength = 0.3

    def loss(parameters: np.ndarray) -> float:
        weight_KD, bias_K = parameters[:12].reshape(3, 4), parameters[12:]
        logits_NK = inputs_ND @ weight_KD.T + bias_K
        entropies_N = logsumexp(logits_NK, axis=1) - logits_NK[np.arange(90), labels_N]
        return strength * entropies_N.sum() + 0.5 * (weight_KD**2).sum()

    expected = minimize(loss, np.zeros(15), tol=1e-10)
    found = fit_linear(features_ND, labels_N, 3, strength=strength)

    assert found.weight_KD.numpy() == pytest.approx(expected.x[:12].reshape(3, 4), abs=2e-3)
    at_found = np.concatenate([found.weight_KD.numpy().ravel(), found.bias_K.numpy()])
    assert loss(at_found) == pytest.approx(expected.fun, rel=1e-5)


def test_a_probe_generalizes_and_bears_features_that_never_change() -> None:
    features_ND, labels_N = draw(300, 8, distance=4.0)
    features_ND[:, 5] = 7.0
    probe, _ = fit_probe(features_ND.astype(np.float16), labels_N, 3)
    others_ND, expected_N = draw(300, 8, distance=4.0, seed=1)
    others_ND[:, 5] = 7.0

    assert (probe.predict(others_ND) == expected_N).mean() > 0.95


def test_of_equally_good_strengths_the_strongest_regularization_is_chosen() -> None:
    assert fit_probe(*draw(90, 3, distance=20.0), 3)[1] == STRENGTHS[0]


def test_one_image_in_five_of_each_class_chooses_and_never_the_only_one() -> None:
    labels_N = np.array([0] * 12 + [1] * 2 + [2])
    held_N = hold_out(labels_N)

    assert [held_N[labels_N == label].sum() for label in (0, 1, 2)] == [3, 1, 0]
    assert held_N[[1, 1 + HELD_OUT, 1 + 2 * HELD_OUT]].all()


@pytest.mark.parametrize("num_features", [3, 60], ids=["more images", "more features"])
def test_logme_is_the_maximum_of_the_evidence(num_features: int) -> None:
    """That of y ~ N(0, F F' / alpha + 1 / beta), maximized by scipy class by class."""
    features_ND, labels_N = draw(40, num_features, distance=1.0)
    gram_NN = features_ND.astype(np.float64) @ features_ND.astype(np.float64).T

    def surprise(precisions: np.ndarray, target_N: np.ndarray) -> float:
        alpha, beta = np.exp(precisions)
        covariance = gram_NN / alpha + np.eye(40) / beta
        return -multivariate_normal.logpdf(target_N, cov=covariance)

    evidence = [
        -minimize(surprise, [5.0, 2.0], (1.0 * (labels_N == label),), method="Nelder-Mead").fun
        for label in range(3)
    ]
    assert measure_logme(features_ND, labels_N) == pytest.approx(np.mean(evidence) / 40, abs=1e-3)


def test_logme_prefers_features_that_tell_classes_apart() -> None:
    features_ND, labels_N = draw(120, 6, distance=4.0)
    blurred_ND, _ = draw(120, 6, distance=1.0)
    shuffled_N = np.random.default_rng(1).permutation(labels_N)

    score = measure_logme(features_ND, labels_N)
    assert score > measure_logme(blurred_ND, labels_N) > measure_logme(features_ND, shuffled_N)


def test_logme_looks_neither_at_axes_nor_at_scale_nor_at_the_names_of_classes() -> None:
    features_ND, labels_N = draw(80, 6, distance=2.0)
    rotation_DD, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))
    score = measure_logme(features_ND, labels_N)

    assert measure_logme(features_ND @ rotation_DD, labels_N) == pytest.approx(score, abs=1e-4)
    assert measure_logme(100 * features_ND, labels_N) == pytest.approx(score, abs=1e-4)
    assert measure_logme(features_ND, 7 - 2 * labels_N) == pytest.approx(score, abs=1e-9)
    dead_ND = np.hstack([features_ND, np.zeros((80, 3))])
    assert measure_logme(dead_ND, labels_N) == pytest.approx(score, abs=1e-9)
