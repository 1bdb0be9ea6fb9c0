"""Label errors, other things and splits that differ, planted among features; and one real audit."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.io.errors import UserError
from cluster.io.statistics import auc
from datasets.prepare.exclude import parse_list
from trainers.__main__ import main
from trainers.audit.folds import FOLDS, draw_folds, predict_held_out
from trainers.audit.labels import check_labels, find_errors
from trainers.audit.outliers import check_outliers, measure_distances
from trainers.audit.splits import MAX_AUC, check_splits
from trainers.networks.backbones import build

CLASSES = ("audi", "bmw", "citroën", "dacia")


def draw_features(
    num_images: int, seed: int = 0, *, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Features around a centre of each class, as float16, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (len(CLASSES), 64))
    labels_N = np.arange(num_images) % len(CLASSES)
    noise = rng.normal(0, spread, (num_images, 64))
    return (centres[labels_N] + noise).astype(np.float16), labels_N


def test_wrong_labels_are_found_and_right_ones_are_not() -> None:
    features_ND, labels_N = draw_features(400, spread=0.5)
    wrong = np.random.default_rng(1).choice(400, 20, replace=False)
    planted_N = labels_N.copy()
    planted_N[wrong] = (labels_N[wrong] + 1) % len(CLASSES)
    rows_N = np.arange(400) + 7  # of a table with other images before them
    check = check_labels(features_ND, planted_N, rows_N, CLASSES)
    found = {suspect.image - 7 for suspect in check.suspects}
    assert found <= set(wrong.tolist()) and len(found) >= 16
    first = check.suspects[0]
    given, likelier = (CLASSES[of[first.image - 7]] for of in (planted_N, labels_N))
    assert f"looks like {likelier}" in first.detail
    assert [name for _, name in first.others] == [given, likelier]
    assert [labels_N[row - 7] for row, _ in first.others] == [
        CLASSES.index(given),
        CLASSES.index(likelier),
    ]
    assert not check.is_fine and check.result == f"{len(found)} images, {len(found) / 400:.1%}"
    assert check_labels(features_ND, labels_N, rows_N, CLASSES).suspects == ()


def test_a_classifier_does_not_judge_images_that_it_was_trained_on() -> None:
    """With labels that have no relation to the features, none is confirmed."""
    features_ND, _ = draw_features(200)
    labels_N = np.random.default_rng(0).permutation(np.arange(200) % 2)
    found_NK = predict_held_out(features_ND, labels_N, strength=1.0)
    assert abs((found_NK.argmax(1) == labels_N).mean() - 0.5) < 0.1
    np.testing.assert_allclose(found_NK.sum(1), 1)


def test_confident_learning_counts_errors_and_the_ratio_ranks_them() -> None:
    """Means of the labels: 0.5 and 0.8. Confidently another class: images 2 and 3, so two errors
    are returned, and those with the largest ratio are 3 and 2; 5 is unsure."""
    of_first = np.array([0.9, 0.9, 0.2, 0.1, 0.55, 0.35, 0.2, 0.2])
    labels_N = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    probabilities_NK = np.stack([of_first, 1 - of_first], 1)
    assert find_errors(probabilities_NK, labels_N) == [(3, 1), (2, 1)]


def test_wrong_labels_are_found_where_a_third_are_wrong() -> None:
    """A classifier of noisy labels gives none a high probability; the thresholds follow it."""
    rng = np.random.default_rng(2)
    labels_N = np.repeat([0, 1], 300)
    features_ND = (rng.normal(0, 0.5, (600, 16)) + 2 * labels_N[:, None]).astype(np.float16)
    wrong_N = rng.random(600) < 0.3
    check = check_labels(features_ND, labels_N ^ wrong_N, np.arange(600), CLASSES)
    found = {suspect.image for suspect in check.suspects}
    assert len(found & set(np.flatnonzero(wrong_N))) > 0.9 * max(len(found), wrong_N.sum())


def test_classifiers_that_know_too_little_accuse_no_label() -> None:
    """Three images of each of 60 classes, and features that say nothing of them."""
    labels_N = np.repeat(np.arange(60), 3)
    features_ND = np.random.default_rng(0).normal(size=(180, 8)).astype(np.float16)
    classes = tuple(map(str, range(60)))
    check = check_labels(features_ND, labels_N, np.arange(180), classes)
    assert check.suspects == () and not check.is_fine
    assert check.result.startswith("not known: the classifiers contradict 1")
    assert "of 180 labels" in check.result


@pytest.mark.parametrize("sizes", [(50, 50), (101, 7), (3, 3), (1, 40)])
def test_the_images_of_a_class_are_spread_over_the_folds(sizes: tuple[int, int]) -> None:
    labels_N = np.random.default_rng(0).permutation(np.repeat(np.arange(2), sizes))
    folds_N = draw_folds(labels_N)
    for label in range(2):
        counts = np.bincount(folds_N[labels_N == label], minlength=FOLDS)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("counts", [(1, 30, 30, 0), (1, 1, 0, 0), (60, 0, 0, 0), (2, 1, 1, 1)])
def test_a_class_of_one_image_is_no_label_error(counts: tuple[int, ...]) -> None:
    labels_N = np.repeat(np.arange(4), counts)
    centres = np.random.default_rng(99).normal(0, 9, (4, 16))
    features_ND = centres[labels_N] + np.random.default_rng(0).normal(0, 0.1, (len(labels_N), 16))
    check = check_labels(features_ND, labels_N, np.arange(len(labels_N)), CLASSES)
    assert [s for s in check.suspects if counts[labels_N[s.image]] == 1] == []


def test_an_image_of_another_thing_is_found() -> None:
    features_ND, _ = draw_features(300, spread=0.5)
    assert check_outliers(features_ND, np.arange(300)).is_fine
    other_ND = np.random.default_rng(5).normal(0, 2, (2, 64)).astype(np.float16)
    check = check_outliers(np.concatenate([other_ND, features_ND]), np.arange(302) + 3)
    assert sorted(suspect.image for suspect in check.suspects) == [3, 4]


def test_an_image_is_not_its_own_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.audit.outliers.NUM_NEIGHBOURS", 2)
    angles = np.radians([0, 10, 30, 90])
    features_ND = np.stack([np.cos(angles), np.sin(angles)], 1)
    expected = [[10, 30], [10, 20], [20, 30], [60, 80]]
    nearest = 1 - np.cos(np.radians(expected)).mean(1)
    np.testing.assert_allclose(measure_distances(features_ND), nearest, atol=1e-5)
    monkeypatch.setattr("trainers.audit.outliers.MAX_REFERENCES", 3)
    assert measure_distances(features_ND).shape == (4,)


def test_few_images_have_no_outlier() -> None:
    assert check_outliers(np.zeros((3, 8)), np.arange(3)).is_fine


def test_splits_of_one_source_are_alike_and_those_of_two_differ() -> None:
    features_ND, _ = draw_features(600)
    splits_N = np.random.default_rng(0).permutation(np.repeat(["train", "val", "test"], 200))
    check = check_splits(features_ND, splits_N.astype(object), np.arange(600))
    assert check.is_fine and check.suspects == ()
    assert (
        check.result.startswith("train and val: AUC 0.") and "train and test: AUC" in check.result
    )
    features_ND[splits_N == "test", :8] += 1.5
    check = check_splits(features_ND, splits_N.astype(object), np.arange(600))
    assert not check.is_fine
    assert {splits_N[suspect.image] for suspect in check.suspects} == {"test"}
    assert not any(suspect.is_excluded for suspect in check.suspects)


def test_test_images_alone_are_compared_with_nothing() -> None:
    features_ND, _ = draw_features(20)
    check = check_splits(features_ND, np.full(20, "test", object), np.arange(20))
    assert check.is_fine and check.result == "one split alone"


def test_auc_is_the_share_of_pairs_in_order() -> None:
    """3 and 1 against 2, 0: three of four pairs. Components 1, 0.5 and 0.5, 1: variance 1/8 / 2."""
    found = auc(np.array([3.0, 1.0]), np.array([2.0, 0.0]))
    assert found.mean == 0.75
    half = 1.959964 * np.sqrt(0.125 / 2 + 0.125 / 2)
    assert (found.low, found.high) == pytest.approx((0.75 - half, 1.0), abs=1e-6)
    assert auc(np.ones(5), np.ones(9)).mean == 0.5
    assert MAX_AUC > 0.5


@pytest.mark.ray
def test_an_audit_writes_a_page_and_lists(
    ray_cluster: str, easy_data: str, tmp_path: Path, one_thread: None, capsys
) -> None:
    torch.manual_seed(0)
    torch.save(build("lenet5", 3).state_dict(), tmp_path / "lenet5.pth")
    out = tmp_path / "audit"
    weights = str(tmp_path / "lenet5.pth")
    main(["audit", "--data", easy_data, "--out", str(out), "--backbone", "lenet5",
          "--init", "file", "--weights", weights, "--size-px", "32"])  # fmt: skip
    printed = capsys.readouterr().out
    names = ("label errors", "other things", "splits that differ", "near duplicates",
             "dark or blank", "tiny", "extreme shapes", "class balance")  # fmt: skip
    assert [name for name in names if f" {name} " not in printed] == []
    assert "Audit of " in (out / "audit.html").read_text()
    with (out / "findings.csv").open() as stream:
        findings = list(csv.DictReader(stream))
    excluded, num_rows = parse_list("exclude.csv", (out / "exclude.csv").read_bytes())
    listed = {row["path"] for row in findings if row["split"] != "test"}
    assert num_rows == len(excluded) and set(excluded) <= listed


def test_a_network_that_is_not_there_is_refused_before_a_cluster_starts(easy_data: str) -> None:
    with pytest.raises(UserError, match=r"weights is .*nowhere\.pth"):
        main(["audit", "--data", easy_data, "--init", "file", "--weights", "nowhere.pth"])
