"""The pictures and tables of an evaluation, K classes."""

from collections.abc import Sequence

import numpy as np

from cluster.io.tables import to_csv
from trainers.evaluation import pictures
from trainers.evaluation.levels import group_classes
from trainers.evaluation.measures import ConfusedPair, Measures, confusion_matrix, measure
from trainers.inference.hierarchy import Hierarchy
from trainers.run.predictions import Predictions


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
    classes, rows = predictions.classes, measures.per_class(predictions.classes)
    confusion_KK = confusion_matrix(predictions)
    files = {
        "confusion.png": pictures.draw_confusion(confusion_KK, measures, classes),
        "confused_pairs.png": pictures.draw_confused_pairs(pairs, examples),
        "reliability.png": pictures.draw_reliability(
            scaled or measures, before=scaled and measures
        ),
        "confusion.csv": to_csv(
            ["true \\ predicted", *classes],
            zip(classes, *confusion_KK.T.tolist(), strict=True),
        ),
        "per_class.csv": to_csv(rows[0], (row.values() for row in rows)),
    }
    if levels is not None:
        grouped = group_classes(predictions, levels, 0)
        files["confusion_grouped.png"] = pictures.draw_confusion(
            confusion_matrix(grouped), measure(grouped), grouped.classes
        )
    return files
