"""The table of predictions, and its files in a run folder."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.io import storage
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.predictions import (
    Predictions,
    build_predictions,
    pick_sample,
    read_predictions,
    read_table,
    write_predictions,
)

CLASSES = ("a", "b", "c")


def predictions_of(labels: list[int], predicted: list[int]) -> Predictions:
    columns = {
        "label": np.array(labels),
        "predicted": np.array(predicted),
        "confidence": np.linspace(0.25, 0.75, len(labels), dtype=np.float32),
        "loss": np.ones(len(labels), np.float32),
        "top5": np.ones(len(labels)),
    }
    return build_predictions(columns, CLASSES)


def test_unreadable_images_have_no_row() -> None:
    predictions = predictions_of([0, -1, 2, 1], [2, 1, 2, 0])
    rows = predictions.table.to_pylist()

    assert [row["row"] for row in rows] == [0, 2, 3] and predictions.num_unreadable == 1
    assert rows[0] == {
        **{"row": 0, "label": "a", "predicted": "c", "confidence": 0.25},
        **{"loss": 1.0, "top5": 1},
    }
    assert [row["predicted"] for row in rows[1:]] == ["c", "a"]
    assert predictions.is_correct_N.tolist() == [False, True, False]


def test_a_file_keeps_the_numbers_of_its_classes(tmp_path: Path) -> None:
    write_predictions(str(tmp_path), 1, predictions_of([2, 0], [2, 2]))
    predictions = read_predictions(str(tmp_path), 1)

    assert predictions is not None and predictions.classes == CLASSES
    assert predictions.label_N.tolist() == [2, 0] and predictions.predicted_N.tolist() == [2, 2]


def test_a_file_of_an_older_thaw_has_neither_loss_nor_top5(tmp_path: Path) -> None:
    uri = str(tmp_path / "epoch-00001.parquet")
    columns = {"row": [0, 1], "confidence": [0.5, 0.75]}
    names = {"label": ["b", "a"], "predicted": ["b", "c"]}
    table = pa.table(
        columns | {name: pa.array(values).dictionary_encode() for name, values in names.items()}
    )
    storage.write_parquet(uri, table)
    predictions = read_table(uri)

    assert predictions.classes == ("b", "a", "c")  # each column numbered them for itself
    assert predictions.is_correct_N.tolist() == [True, False]
    assert np.isnan(predictions.numbers("loss")).all()


def test_the_best_epoch_is_read_where_none_is_named(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert read_predictions(run) is None
    for epoch in (1, 2):
        write_predictions(run, epoch, predictions_of([0], [epoch]))
    checkpoint.save(run, {}, TrainingProgress(epoch=2, best_epoch=1, global_step=4, best_step=2))

    best, last = read_predictions(run), read_predictions(run, 2)
    assert best is not None and best.table["predicted"].to_pylist() == ["b"]
    assert last is not None and last.table["predicted"].to_pylist() == ["c"]
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
