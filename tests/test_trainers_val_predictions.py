"""What a run answers to its validation images."""

from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.predictions import (
    EpochPredictions,
    pick_sample,
    read_predictions,
    write_predictions,
)

CLASSES = ("a", "b", "c")


def told(labels: list[int], predicted: list[int]) -> dict[str, torch.Tensor]:
    return {
        "labels_B": torch.tensor(labels),
        "predicted_B": torch.tensor(predicted),
        "confidence_B": torch.linspace(0.25, 0.75, len(labels)),
    }


def test_each_rank_adds_its_range_and_lost_images_have_no_row() -> None:
    answers = EpochPredictions(5, 1, torch.device("cpu"))  # rows 1 to 4; another rank has row 0
    answers.add(told([0, -1], [2, 1]))
    answers.add(told([2, 1], [2, 0]))
    table = answers.reduce(1, CLASSES).to_pylist()

    assert [row["row"] for row in table] == [0, 1, 3, 4]
    assert table[1] == {"row": 1, "label": "a", "predicted": "c", "confidence": 0.25}
    assert [row["predicted"] for row in table[2:]] == ["c", "a"]


def test_the_best_epoch_is_read_where_none_is_named(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert read_predictions(run) is None
    for epoch in (1, 2):
        answers = EpochPredictions(1, 0, torch.device("cpu"))
        answers.add(told([0], [epoch]))
        write_predictions(run, epoch, answers.reduce(1, CLASSES))
    checkpoint.save(run, {}, TrainingProgress(epoch=2, best_epoch=1, global_step=4, best_step=2))

    best, last = read_predictions(run), read_predictions(run, 2)
    assert best is not None and best["predicted"].to_pylist() == ["b"]
    assert last is not None and last["predicted"].to_pylist() == ["c"]
    assert read_predictions(run, 3) is None


@pytest.mark.parametrize(
    ("labels", "size", "picked"),
    [
        ([0, 0, 0, 0, 1, 1, 2], 5, [0, 1, 4, 5, 6]),  # one of each class, then a second one
        ([2, 1, 0, 1], 9, [0, 1, 2, 3]),
        ([3, 2, 1, 0, 0, 3], 2, [0, 3]),  # more classes than images: the first and the last
    ],
)
def test_a_sample_has_of_every_class(labels: list[int], size: int, picked: list[int]) -> None:
    assert pick_sample(np.array(labels), size).tolist() == picked
