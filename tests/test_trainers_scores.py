"""Scores equal hand-made numbers, and don't depend on how images are spread over ranks."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from datasets.plan import IGNORE_INDEX
from tests.conftest import join_gloo
from trainers.evaluation.scores import NUM_BINS, Measures, Scores

LABELS = [0, 0, 0, 0, 1, 1, 2]
PREDICTED = [0, 0, 1, 2, 1, 0, 2]


def logits_of(predicted: list[int], confidence: float, num_classes: int) -> Tensor:
    """Logits whose softmax gives `confidence` to one class and the rest evenly to the others."""
    others = (1 - confidence) / (num_classes - 1)
    probabilities_BK = torch.full((len(predicted), num_classes), others)
    probabilities_BK[range(len(predicted)), predicted] = confidence
    return probabilities_BK.log()


def measure(predicted: list[int], labels: list[int], *, num_classes: int) -> Measures:
    scores = Scores(num_classes, "cpu")
    scores.add(logits_of(predicted, 0.7, num_classes), torch.tensor(labels))
    return scores.reduce()


def draw_batch(num_images: int, num_classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(
        -1, num_classes, (num_images,), generator=generator
    )  # some are IGNORE_INDEX
    return 3 * torch.randn(num_images, num_classes, generator=generator), labels_B


def test_scores_of_each_class_and_their_means_equal_those_by_hand():
    measures = measure(PREDICTED, LABELS, num_classes=3)

    assert measures.confusion_KK.tolist() == [[2, 1, 1], [1, 1, 0], [0, 0, 1]]
    assert measures.support_K.tolist() == [4, 2, 1]
    assert measures.precision_K.tolist() == pytest.approx([2 / 3, 1 / 2, 1 / 2])
    assert measures.recall_K.tolist() == pytest.approx([2 / 4, 1 / 2, 1])
    assert measures.f1_K.tolist() == pytest.approx([4 / 7, 1 / 2, 2 / 3])
    assert measures.macro_f1 == pytest.approx((4 / 7 + 1 / 2 + 2 / 3) / 3)
    assert measures.weighted_f1 == pytest.approx((4 * 4 / 7 + 2 * 1 / 2 + 2 / 3) / 7)
    assert measures.balanced_accuracy == pytest.approx(2 / 3)
    assert measures.top1 == pytest.approx(4 / 7)
    assert measures.top5 == 1  # of three classes
    assert measures.loss == pytest.approx(-(4 * math.log(0.7) + 3 * math.log(0.15)) / 7)


def test_the_calibration_error_equals_the_one_by_hand():
    """Ten images at 0.9, eight of them right; five at 0.62, all right."""
    scores = Scores(2, "cpu")
    scores.add(logits_of([1] * 10, 0.9, 2), torch.tensor([1] * 8 + [0] * 2))
    scores.add(logits_of([0] * 5, 0.62, 2), torch.tensor([0] * 5))
    measures = scores.reduce()

    assert measures.ece == pytest.approx((10 * 0.1 + 5 * 0.38) / 15)
    assert measures.mean_confidence == pytest.approx((10 * 0.9 + 5 * 0.62) / 15)
    bins = {at: row for at, row in enumerate(measures.reliability()) if row["images"]}
    assert bins == {  # (0.6, 0.667] and (0.867, 0.933]
        9: {"images": 5, "confidence": pytest.approx(0.62), "accuracy": 1.0},
        13: {"images": 10, "confidence": pytest.approx(0.9), "accuracy": 0.8},
    }


def test_full_confidence_lies_in_the_last_bin():
    scores = Scores(2, "cpu")
    scores.add(torch.tensor([[0.0, 200.0]]), torch.tensor([1]))

    assert scores.reduce().bin_count_M.tolist() == [0] * (NUM_BINS - 1) + [1]


def test_classes_without_images_or_predictions_leave_no_nan_and_no_warning():
    """Class 1 has images and is never predicted, 2 the other way round, 3 is neither."""
    measures = measure([0, 0, 2], [0, 1, 1], num_classes=4)
    rows = json.loads(json.dumps(measures.per_class("abcd"), allow_nan=False))

    assert rows == [
        {"class": "a", "images": 1, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)},
        {"class": "b", "images": 2, "precision": None, "recall": 0.0, "f1": 0.0},
        {"class": "c", "images": 0, "precision": 0.0, "recall": None, "f1": 0.0},
        {"class": "d", "images": 0, "precision": None, "recall": None, "f1": None},
    ]
    assert measures.macro_f1 == pytest.approx((2 / 3 + 0) / 2)  # of the classes that have images
    assert measures.balanced_accuracy == pytest.approx(1 / 2)
    json.dumps([measures.means(), measures.reliability()], allow_nan=False)


def test_lost_images_are_counted_as_lost_and_nowhere_else():
    logits_BK, labels_B = draw_batch(50, 4)
    known_B = labels_B != IGNORE_INDEX
    all_images, known = Scores(4, "cpu"), Scores(4, "cpu")
    all_images.add(logits_BK, labels_B)
    known.add(logits_BK[known_B], labels_B[known_B])

    assert all_images.reduce().num_unreadable == (~known_B).sum() > 0
    all_images.totals_N[-1] = 0
    torch.testing.assert_close(all_images.totals_N, known.totals_N, rtol=0, atol=1e-12)


def test_a_split_that_lost_all_its_images_has_means_of_zero():
    measures = measure([0, 1], [IGNORE_INDEX, IGNORE_INDEX], num_classes=2)

    assert measures.num_images == 0 and measures.num_unreadable == 2
    assert set(measures.means().values()) == {0.0}
    assert measures.most_confused(5) == []


def test_pairs_are_ordered_by_count_and_then_by_share():
    confusion = {(0, 1): 3, (1, 0): 3, (0, 0): 10, (2, 0): 4, (2, 2): 50, (1, 2): 1}
    labels = [true for (true, _), count in confusion.items() for _ in range(count)]
    predicted = [answer for (_, answer), count in confusion.items() for _ in range(count)]
    measures = measure(predicted, labels, num_classes=3)

    assert measures.most_confused(3) == [(2, 0), (1, 0), (0, 1)]  # 3 of 4 before 3 of 13


def test_adding_waits_for_nothing():
    """Meta tensors hold no values: whatever would wait for one raises."""
    predicted_B, confidence_B = Scores(7, "meta").add(
        torch.empty(4, 7, device="meta"), torch.empty(4, dtype=torch.int32, device="meta")
    )
    assert predicted_B.shape == confidence_B.shape == (4,)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_add_up_to_the_same_numbers(num_ranks: int):
    """Bit for bit but for the loss, whose terms are rounded as they add up."""
    logits_BK, labels_B = draw_batch(500, 6)
    one = Scores(6, "cpu")
    one.add(logits_BK, labels_B)
    parts = [Scores(6, "cpu") for _ in range(num_ranks)]
    for part, logits, labels in zip(
        parts, logits_BK.tensor_split(num_ranks), labels_B.tensor_split(num_ranks), strict=True
    ):
        for start in range(0, len(labels), 32):
            part.add(logits[start : start + 32], labels[start : start + 32])
    together = Scores(6, "cpu")
    together.totals_N = torch.stack([part.totals_N for part in parts]).sum(0)

    assert_same(together.reduce(), one.reduce())


def assert_same(found: Measures, wanted: Measures) -> None:
    for name, value in vars(wanted).items():
        if name == "loss":
            assert found.loss == pytest.approx(value, rel=1e-12)
        else:
            np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
    assert found.ece == wanted.ece and found.macro_f1 == wanted.macro_f1


def score_on_rank(rank: int, folder: str) -> None:
    join_gloo(rank, folder)
    scores = Scores(6, "cpu")
    if rank == 0:  # the other has seen nothing, and reduces the same vector
        scores.add(*draw_batch(100, 6))
    torch.save(vars(scores.reduce(2)), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_reduce_to_the_same_numbers(tmp_path: Path):
    spawn(score_on_rank, (str(tmp_path),), nprocs=2)
    one = Scores(6, "cpu")
    one.add(*draw_batch(100, 6))

    for rank in range(2):
        values = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert_same(Measures(**values), one.reduce())
