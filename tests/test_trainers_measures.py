"""Measures equal numbers computed by hand, however images are spread over ranks."""

import json
import math
import multiprocessing
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from datasets.plan import IGNORE_INDEX
from tests.support.small import join_gloo
from trainers.config import OptimConfig
from trainers.evaluation.measures import (
    NUM_BINS,
    Measures,
    confusion_matrix,
    find_confused_pairs,
    measure,
)
from trainers.loop.validation import predict_feed
from trainers.run.predictions import COLUMNS, Predictions, build_predictions
from trainers.step.step import StepSettings, eval_step
from trainers.worker import WorkerContext

LABELS = [0, 0, 0, 0, 1, 1, 2]
PREDICTED = [0, 0, 1, 2, 1, 0, 2]


def logits_of(predicted: list[int], confidence: float, num_classes: int) -> Tensor:
    """Logits whose softmax gives `confidence` to one class and the rest evenly to the others."""
    others = (1 - confidence) / (num_classes - 1)
    probabilities_BK = torch.full((len(predicted), num_classes), others)
    probabilities_BK[range(len(predicted)), predicted] = confidence
    return probabilities_BK.log()


SETTINGS = StepSettings(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), optim=OptimConfig())


def predict(*batches: tuple[Tensor, Tensor]) -> Predictions:
    """Predictions of a network whose logits are given, batch by batch."""
    columns_5N = torch.cat(
        [
            eval_step(nn.Identity(), logits_BK, labels_B, settings=SETTINGS)
            for logits_BK, labels_B in batches
        ],
        dim=1,
    )
    classes = [f"class {number}" for number in range(batches[0][0].shape[1])]
    return build_predictions(dict(zip(COLUMNS, columns_5N.numpy(), strict=True)), classes)


def predict_as(predicted: list[int], labels: list[int], *, num_classes: int) -> Predictions:
    return predict((logits_of(predicted, 0.7, num_classes), torch.tensor(labels)))


def draw_batch(num_images: int, num_classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(
        -1, num_classes, (num_images,), generator=generator
    )  # some are IGNORE_INDEX
    return 3 * torch.randn(num_images, num_classes, generator=generator), labels_B


def test_measures_of_each_class_and_their_means_equal_those_by_hand():
    predictions = predict_as(PREDICTED, LABELS, num_classes=3)
    measures = measure(predictions)

    assert confusion_matrix(predictions).tolist() == [[2, 1, 1], [1, 1, 0], [0, 0, 1]]
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
    measures = measure(
        predict(
            (logits_of([1] * 10, 0.9, 2), torch.tensor([1] * 8 + [0] * 2)),
            (logits_of([0] * 5, 0.62, 2), torch.tensor([0] * 5)),
        )
    )

    assert measures.ece == pytest.approx((10 * 0.1 + 5 * 0.38) / 15)
    assert measures.mean_confidence == pytest.approx((10 * 0.9 + 5 * 0.62) / 15)
    bins = {at: row for at, row in enumerate(measures.reliability()) if row["images"]}
    assert bins == {  # (0.6, 0.667] and (0.867, 0.933]
        9: {"images": 5, "confidence": pytest.approx(0.62), "accuracy": 1.0},
        13: {"images": 10, "confidence": pytest.approx(0.9), "accuracy": 0.8},
    }


def test_full_confidence_lies_in_the_last_bin():
    measures = measure(predict((torch.tensor([[0.0, 200.0]]), torch.tensor([1]))))

    assert measures.bin_count_M.tolist() == [0] * (NUM_BINS - 1) + [1]


def test_classes_without_images_or_predictions_leave_no_nan_and_no_warning():
    """Class 1 has images and is never predicted, 2 the other way round, 3 is neither."""
    measures = measure(predict_as([0, 0, 2], [0, 1, 1], num_classes=4))
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


def test_unreadable_images_are_counted_and_nowhere_else():
    logits_BK, labels_B = draw_batch(50, 4)
    readable_B = labels_B != IGNORE_INDEX
    found = predict((logits_BK, labels_B))
    readable = predict((logits_BK[readable_B], labels_B[readable_B]))

    assert measure(found).num_unreadable == found.num_unreadable == (~readable_B).sum() > 0
    assert found.table["row"].to_pylist() == readable_B.nonzero()[:, 0].tolist()
    assert_same(replace(measure(found), num_unreadable=0), measure(readable))


def test_a_split_without_readable_images_has_means_of_zero():
    predictions = predict_as([0, 1], [IGNORE_INDEX, IGNORE_INDEX], num_classes=2)
    measures = measure(predictions)

    assert measures.num_images == 0 and measures.num_unreadable == 2
    assert set(measures.means().values()) == {0.0}
    assert find_confused_pairs(predictions, 5) == []


def test_outputs_that_are_not_finite_have_no_finite_loss_and_raise_nothing():
    logits_BK, labels_B = draw_batch(8, 4)
    logits_BK[3] = torch.nan
    measures = measure(predict((logits_BK, labels_B.clamp(min=0))))

    assert math.isnan(measures.loss) and measures.num_images == 8


def test_pairs_are_ordered_by_count_and_then_by_share():
    confusion = {(0, 1): 3, (1, 0): 3, (0, 0): 10, (2, 0): 4, (2, 2): 50, (1, 2): 1}
    labels = [true for (true, _), count in confusion.items() for _ in range(count)]
    predicted = [answer for (_, answer), count in confusion.items() for _ in range(count)]
    pairs = find_confused_pairs(predict_as(predicted, labels, num_classes=3), 3)

    found = [(pair.true, pair.predicted, pair.count, pair.num_images) for pair in pairs]
    assert found == [  # 3 of 4 before 3 of 13
        ("class 2", "class 0", 4, 54),
        ("class 1", "class 0", 3, 4),
        ("class 0", "class 1", 3, 13),
    ]


def test_a_pair_shows_the_mistake_of_highest_confidence():
    batches = [
        (logits_of([1], confidence, 2), torch.tensor([label]))
        for confidence, label in ((0.7, 0), (0.99, 1), (0.8, IGNORE_INDEX), (0.9, 0), (0.6, 0))
    ]
    (pair,) = find_confused_pairs(predict(*batches), 5)

    assert (pair.row, pair.count, pair.share) == (3, 3, 1.0)


def test_predicting_waits_for_nothing():
    """Meta tensors hold no values: whatever would wait for one raises."""
    columns_5B = eval_step(
        nn.Identity(),
        torch.empty(4, 7, device="meta"),
        torch.empty(4, dtype=torch.int32, device="meta"),
        settings=SETTINGS,
        forward=lambda network, logits_BK, settings: logits_BK,
    )
    assert columns_5B.shape == (len(COLUMNS), 4)


@pytest.mark.parametrize("batch_size", [1, 32, 500])
def test_batches_change_no_measure(batch_size: int):
    logits_BK, labels_B = draw_batch(500, 6)
    batches = zip(logits_BK.split(batch_size), labels_B.split(batch_size), strict=True)

    assert_same(measure(predict(*batches)), measure(predict((logits_BK, labels_B))))


def assert_same(found: Measures, wanted: Measures) -> None:
    """Bit for bit, but for the loss of a batch of another size."""
    for name, value in vars(wanted).items():
        if name == "loss":
            assert found.loss == pytest.approx(value, rel=1e-6)
        else:
            np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


class BatchesOfARank:
    """Feeds a rank its range of the images, which may be empty."""

    def __init__(self, rank: int, num_ranks: int) -> None:
        logits_NK, labels_N = draw_batch(101, 6)
        self.num_images = len(labels_N)
        starts = [*[0, 0, 37][:num_ranks], 101]  # rank 0 of several has no image
        self.first_row, end = (starts if num_ranks > 1 else [0, 101])[rank : rank + 2]
        own = slice(self.first_row, end)
        self._batches = list(zip(logits_NK[own].split(8), labels_N[own].split(8), strict=True))
        self.batches_per_epoch = 0 if self.first_row == end else len(self._batches)

    def next(self) -> tuple[Tensor, Tensor]:
        return self._batches.pop(0)

    def take_unreadable(self) -> list[str]:
        return ["an image"]


def predict_on_rank(rank: int, num_ranks: int, folder: str) -> None:
    if num_ranks > 1:
        join_gloo(rank, folder, num_ranks)
    worker = WorkerContext(rank=rank, world_size=num_ranks, device=torch.device("cpu"), threads=1)
    feed: Any = BatchesOfARank(rank, num_ranks)
    network: nn.Module = nn.BatchNorm1d(6)
    if num_ranks > 1:  # its forward would wait for the rank without images
        network = DistributedDataParallel(network)
    predictions = predict_feed(network, feed, SETTINGS, worker, classes="abcdef")
    Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(predictions))
    if num_ranks > 1:
        distributed.destroy_process_group()


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_all_ranks_have_the_predictions_of_one(num_ranks: int, tmp_path: Path):
    # Ranks are forks of one process that has imported what they need, in seconds.
    multiprocessing.set_forkserver_preload([__name__, "torch._dynamo"])
    arguments = num_ranks, str(tmp_path)
    start_processes(predict_on_rank, arguments, nprocs=num_ranks, start_method="forkserver")
    found = [pickle.loads((tmp_path / f"{rank}.pkl").read_bytes()) for rank in range(num_ranks)]
    predict_on_rank(0, 1, str(tmp_path))
    one: Predictions = pickle.loads((tmp_path / "0.pkl").read_bytes())

    assert one.unreadable == ("an image",) and one.num_unreadable > 0
    for predictions in found:
        assert predictions.table.equals(one.table)
        for name, value in vars(measure(one)).items():
            np.testing.assert_array_equal(getattr(measure(predictions), name), value, err_msg=name)
