"""The pictures and tables of an evaluation, K classes."""

from collections.abc import Iterable, Sequence

import numpy as np

from cluster.io.tables import to_csv
from trainers.evaluation import pictures
from trainers.evaluation.levels import group_classes
from trainers.evaluation.measures import (
    ConfusedPair,
    Measures,
    confusion_matrix,
    count_confusions,
    measure,
)
from trainers.inference.hierarchy import Hierarchy
from trainers.run.predictions import Predictions

MAX_SQUARE = 1000
"""Classes up to which a confusion matrix has a row and a column for each."""


def draw_files(
    predictions: Predictions,
    measures: Measures,
    scaled: Measures | None,
    pairs: Sequence[ConfusedPair],
    examples: Sequence[np.ndarray],
    levels: Hierarchy | None,
) -> dict[str, bytes]:
    """Return the files by their names, as `evaluate` lists them.

    Args:
        scaled: measures with calibration.
        examples: an image of each pair.
    """
    rows = measures.per_class(predictions.classes)
    files = {
        "confusion.png": _draw_confusion(predictions, measures),
        "confused_pairs.png": pictures.draw_confused_pairs(pairs, examples),
        "reliability.png": pictures.draw_reliability(
            scaled or measures, before=scaled and measures
        ),
        "confusion.csv": to_csv(*_tabulate_confusion(predictions)),
        "per_class.csv": to_csv(rows[0], (row.values() for row in rows)),
    }
    if levels is not None:
        grouped = group_classes(predictions, levels, 0)
        files["confusion_grouped.png"] = _draw_confusion(grouped, measure(grouped))
    return files


def _draw_confusion(predictions: Predictions, measures: Measures) -> bytes:
    group = -(-len(predictions.classes) // MAX_SQUARE)
    confusion_GG = confusion_matrix(predictions, group=group)
    return pictures.draw_confusion(confusion_GG, measures, predictions.classes, group=group)


def _tabulate_confusion(predictions: Predictions) -> tuple[list[str], Iterable[Iterable[object]]]:
    """Return the header and the rows: a column per class, or a row per cell with images."""
    classes = predictions.classes
    if len(classes) <= MAX_SQUARE:
        columns = confusion_matrix(predictions).T.tolist()
        return ["true \\ predicted", *classes], zip(classes, *columns, strict=True)
    true, predicted, counts = count_confusions(predictions)
    names = ([classes[index] for index in indices] for indices in (true, predicted))
    return ["true", "predicted", "images"], zip(*names, counts.tolist(), strict=True)
