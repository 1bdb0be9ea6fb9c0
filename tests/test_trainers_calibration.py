"""A calibration makes confidence honest out of sample, and keeps its promises of rates."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.io.errors import UserError
from trainers.evaluation.calibrate import (
    FEWEST_IMAGES,
    MAX_LOGITS,
    calibrated,
    draw_rows,
    fit_calibration,
    fit_temperature,
    measure_calibration,
)
from trainers.evaluation.evaluate import measure_scaled
from trainers.evaluation.measures import measure
from trainers.evaluation.split import describe_answers, keep_logits
from trainers.inference.predict import to_predictions
from trainers.run.calibration import (
    Calibration,
    read_calibration,
    unknown_scores,
    write_calibration,
)
from trainers.run.predictions import COLUMNS, Predictions, build_predictions
from trainers.step.step import score_logits

CLASSES = tuple("abcd")
pytestmark = pytest.mark.usefixtures("one_thread")


def draw(seed: int, *, size: int = 4000, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn with the probabilities that they give before `factor`."""
    generator = torch.Generator().manual_seed(seed)
    logits_NK = 2 * torch.randn(size, len(CLASSES), generator=generator)
    labels_N = logits_NK.softmax(1).multinomial(1, generator=generator)[:, 0]
    return factor * logits_NK, labels_N


def predictions_of(logits_NK: torch.Tensor, labels_N: torch.Tensor, describe) -> Predictions:
    columns = dict(zip(COLUMNS, score_logits(logits_NK, labels_N).numpy(), strict=True))
    return build_predictions({**columns, **describe(logits_NK, labels_N)}, CLASSES)


def calibration_of(factor: float) -> Calibration:
    return fit_calibration(predictions_of(*draw(0, factor=factor), keep_logits), "f")


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_the_temperature_undoes_a_factor_of_all_logits(factor: float) -> None:
    found = calibration_of(factor)

    assert found.temperature == pytest.approx(factor, rel=0.05)
    assert found.ece_after < 0.02 and found.loss_after <= found.loss_before + 1e-3
    assert factor == 1 or found.ece_before > 0.05


def test_rates_hold_on_images_that_did_not_calibrate() -> None:
    found = calibration_of(3.0)
    described = predictions_of(
        *draw(1, factor=3.0),
        lambda x, y: describe_answers(
            x, y, calibration=found, coverage=0.9, hierarchy=None, least_probability=0.9
        ),
    )
    measured = measure_calibration(described, found, coverage=0.9, refused=0.05)

    assert measure(described).ece > 0.1 and measure(calibrated(described)).ece < 0.03
    assert measured["measured_coverage"] == pytest.approx(0.9, abs=0.02)
    assert measured["measured_refused"] == pytest.approx(0.05, abs=0.02)
    assert 1 < measured["set_size"] < len(CLASSES)


def test_a_lent_calibration_is_measured_on_validation_images_as_on_any() -> None:
    own = calibration_of(3.0)
    described = predictions_of(
        *draw(1, factor=3.0),
        lambda x, y: describe_answers(
            x, y, calibration=own, coverage=0.9, hierarchy=None, least_probability=0.9
        ),
    )
    lent = measure_scaled(described, replace(own, origin="runs/length"), "val", own.fingerprint)

    assert lent is not None and lent.ece == measure(calibrated(described)).ece
    assert measure_scaled(described, own, "val", own.fingerprint) is None, "it was fitted on them"
    assert measure_scaled(described, own, "test", own.fingerprint) is not None


def test_images_that_are_all_right_give_a_finite_temperature() -> None:
    labels_N = np.arange(40) % 4

    assert 0.04 < fit_temperature(9.0 * np.eye(4)[labels_N], labels_N) < 1


def test_a_set_has_all_classes_where_there_are_too_few_images_for_its_rate() -> None:
    few = Calibration(
        **{**calibration_of(1.0).to_dict(), "label_distances": tuple(np.linspace(0, 1, 10))}
    )

    assert few.least_probability(0.99) == 0
    assert 0 < few.least_probability(0.5) < 1


def test_the_expected_rate_of_sets_is_that_of_other_splits() -> None:
    rng, base = np.random.default_rng(0), calibration_of(1.0).to_dict()
    for rate in (0.9, 0.95):
        expected, measured = set(), []
        for _ in range(400):  # splits: 60 images calibrate, 200 are measured
            distances_N = np.sort(rng.uniform(size=60)).tolist()
            found = Calibration(**{**base, "label_distances": distances_N})
            expected.add(found.expected_coverage(rate, 200))
            measured.append((1 - rng.uniform(size=200) >= found.least_probability(rate)).mean())
        [(low, high)] = expected
        inside_N = (low <= np.array(measured)) & (np.array(measured) <= high)
        assert 0.92 < inside_N.mean() < 0.99 and low < rate < high
        assert np.mean(measured) == pytest.approx(rate, abs=0.01)
    assert found.expected_coverage(0.99, 200) == (1, 1)  # all classes are in each set


def test_predictions_have_sets_and_say_unknown() -> None:
    found = calibration_of(3.0)
    logits_BK = torch.tensor([[9.0, 0, 0, 0], [-9, -9.0, -9, -9.1]])
    columns = to_predictions(logits_BK, classes=CLASSES, top_k=2, calibration=found, coverage=0.9)
    plain = to_predictions(logits_BK, classes=CLASSES, top_k=2)

    assert columns["unknown"].to_pylist() == [False, True]
    assert columns["class_set"].to_pylist()[0] == ["a"]
    assert columns["probability"][0].as_py() == pytest.approx(
        found.probabilities(logits_BK.numpy())[0, 0], abs=1e-6
    )
    assert columns["unknown_score"].to_pylist() == pytest.approx(
        unknown_scores(logits_BK.numpy()).tolist()
    )
    assert "unknown" not in plain and columns["class"] == plain["class"]


def test_it_is_kept_beside_the_weights_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    found = calibration_of(1.0)
    write_calibration(str(tmp_path), 63, found)
    file = tmp_path / "checkpoints" / "step-00000063" / "calibration.json"

    assert read_calibration(str(tmp_path), 63) == found
    assert read_calibration(str(tmp_path), 64) is None
    file.write_text(json.dumps({**found.to_dict(), "temperature": -1.0}))
    with pytest.raises(UserError, match=r"calibration.json is damaged .*temperature"):
        read_calibration(str(tmp_path), 63)


def test_many_classes_take_little_more_memory_than_their_logits() -> None:
    """With 10,000 classes and 50,000 images it had ended a driver: 50 bytes a logit."""
    num_images, classes = 200, tuple(map(str, range(2000)))
    generator = torch.Generator().manual_seed(0)
    logits_NK = 3 * torch.randn(num_images, len(classes), generator=generator)
    labels_N = logits_NK.softmax(1).multinomial(1, generator=generator)[:, 0]
    columns = dict(zip(COLUMNS, score_logits(logits_NK, labels_N).numpy(), strict=True))
    predictions = build_predictions({**columns, **keep_logits(logits_NK, labels_N)}, classes)
    tracemalloc.start()
    try:
        found = fit_calibration(predictions, "f")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 20 * logits_NK.numel()
    assert found.temperature == pytest.approx(1, abs=0.05) and found.num_images == num_images


def test_enough_images_calibrate() -> None:
    assert draw_rows(50_000, 100).tolist() == list(range(50_000))
    for num_classes, size in ((10_000, MAX_LOGITS // 10_000), (10**6, FEWEST_IMAGES)):
        rows_N = draw_rows(50_000, num_classes)
        assert len(rows_N) == size and (np.diff(rows_N) > 0).all() and rows_N.max() > 40_000
