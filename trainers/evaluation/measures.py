"""Measures of a classifier, computed from the table of its predictions.

The table has one row per image, so how images were spread over ranks changes nothing.

N images, K classes, M bins of confidence. Shares are from 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.run.predictions import Predictions

NUM_BINS = 15  # as Guo et al. 2017, and most papers since


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """Measures over all images of a split.

    A share of nothing (the precision of a class that was never predicted, the recall of one without
    images) is NaN here; means over classes are over those that have images.
    """

    num_images: int
    """Readable images; the others count nowhere else."""
    num_unreadable: int
    top1: float
    top5: float
    loss: float
    """Cross-entropy without label smoothing, nats per image."""
    support_K: np.ndarray
    """Images of each class."""
    predicted_K: np.ndarray
    """Images predicted as each class."""
    correct_K: np.ndarray
    """Images of each class predicted as that class."""
    bin_count_M: np.ndarray
    """Images by the probability of the predicted class; bin m is (m/M, (m+1)/M]."""
    bin_confidence_M: np.ndarray
    """Mean of that probability in each bin, NaN in an empty one."""
    bin_accuracy_M: np.ndarray
    """Share of correct predictions in each bin, NaN in an empty one."""

    @property
    def precision_K(self) -> np.ndarray:
        return _share(self.correct_K, self.predicted_K)

    @property
    def recall_K(self) -> np.ndarray:
        return _share(self.correct_K, self.support_K)

    @property
    def f1_K(self) -> np.ndarray:
        """Harmonic mean of precision and recall: 0 where a class has images and no hit."""
        return _share(2 * self.correct_K, self.support_K + self.predicted_K)

    @property
    def macro_f1(self) -> float:
        return _mean(self.f1_K, self.support_K > 0)

    @property
    def weighted_f1(self) -> float:
        """Mean F1, each class weighing as much as it has images."""
        return _mean(self.f1_K, self.support_K)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall."""
        return _mean(self.recall_K, self.support_K > 0)

    @property
    def ece(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy, over images.

        Source: Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3.
        """
        return _mean(np.abs(self.bin_accuracy_M - self.bin_confidence_M), self.bin_count_M)

    @property
    def mean_confidence(self) -> float:
        return _mean(self.bin_confidence_M, self.bin_count_M)

    def means(self) -> dict[str, float]:
        names = ("top1", "top5", "loss", "macro_f1", "weighted_f1", "balanced_accuracy", "ece")
        return {name: getattr(self, name) for name in names}

    def per_class(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Return a row per class, fit for JSON: a share of nothing is None."""
        keys = ("class", "images", "precision", "recall", "f1")
        columns = (self.support_K, self.precision_K, self.recall_K, self.f1_K)
        return _rows(keys, [list(classes), *map(_plain, columns)])

    def reliability(self) -> list[dict[str, Any]]:
        """Return a row per bin of confidence, fit for JSON."""
        columns = (self.bin_count_M, self.bin_confidence_M, self.bin_accuracy_M)
        return _rows(("images", "confidence", "accuracy"), [*map(_plain, columns)])


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Images of one class that were predicted as another."""

    true: str
    predicted: str
    count: int
    num_images: int
    """Of the true class, right and wrong."""
    row: int
    """Of the split: the image predicted with the highest confidence."""

    @property
    def share(self) -> float:
        return self.count / self.num_images

    def to_dict(self) -> dict[str, Any]:
        names = ("true", "predicted", "count", "share")
        return {name: getattr(self, name) for name in names}


def measure(predictions: Predictions) -> Measures:
    """Compute all measures. Network outputs that are not finite give a loss that is not finite."""
    num_classes, num_images = len(predictions.classes), len(predictions.table)
    label_N, is_correct_N = predictions.label_N, predictions.is_correct_N
    confidence_N = predictions.numbers("confidence")
    # float64 adds half a million float32 confidences (at least 1/K each) without rounding.
    bin_N = np.ceil(np.nan_to_num(confidence_N) * NUM_BINS).astype(np.int64) - 1
    bin_N = bin_N.clip(0, NUM_BINS - 1)
    bin_count_M = np.bincount(bin_N, minlength=NUM_BINS)
    confidence_sum_M = np.bincount(bin_N, confidence_N, minlength=NUM_BINS)
    return Measures(
        num_images=num_images,
        num_unreadable=predictions.num_unreadable,
        top1=float(is_correct_N.sum() / max(1, num_images)),
        top5=float(predictions.numbers("top5").sum() / max(1, num_images)),
        loss=float(predictions.numbers("loss").sum() / max(1, num_images)),
        support_K=np.bincount(label_N, minlength=num_classes),
        predicted_K=np.bincount(predictions.predicted_N, minlength=num_classes),
        correct_K=np.bincount(label_N[is_correct_N], minlength=num_classes),
        bin_count_M=bin_count_M,
        bin_confidence_M=_share(confidence_sum_M, bin_count_M),
        bin_accuracy_M=_share(np.bincount(bin_N[is_correct_N], minlength=NUM_BINS), bin_count_M),
    )


def confusion_matrix(predictions: Predictions, *, group: int = 1) -> np.ndarray:
    """Count images, int64 `[K, K]`: a row per true class, a column per predicted one; or one for
    each `group` classes that follow each other."""
    label_N, predicted_N = predictions.label_N, predictions.predicted_N
    return count_cells(label_N, predicted_N, len(predictions.classes), group=group)


def count_cells(
    label_N: np.ndarray, predicted_N: np.ndarray, num_classes: int, *, group: int = 1
) -> np.ndarray:
    """Return a confusion matrix of indices of classes."""
    num_groups = -(-num_classes // group)
    cell_N = label_N // group * num_groups + predicted_N // group
    return np.bincount(cell_N, minlength=num_groups**2).reshape(num_groups, num_groups)


def count_confusions(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the true class, the predicted one and the images of each cell of the confusion matrix
    that has any."""
    num_classes = len(predictions.classes)
    cell_N = predictions.label_N * num_classes + predictions.predicted_N
    cells, counts = np.unique(cell_N, return_counts=True)
    return cells // num_classes, cells % num_classes, counts


def find_confused_pairs(predictions: Predictions, limit: int) -> list[ConfusedPair]:
    """Return pairs of classes by falling count, then by falling share of the true class."""
    classes, num_classes = predictions.classes, len(predictions.classes)
    support_K = np.bincount(predictions.label_N, minlength=num_classes)
    by_confidence_N = np.argsort(-predictions.numbers("confidence"), kind="stable")
    wrong_N = by_confidence_N[~predictions.is_correct_N[by_confidence_N]]
    cell_N = predictions.label_N[wrong_N] * num_classes + predictions.predicted_N[wrong_N]
    cells, firsts, counts = np.unique(cell_N, return_index=True, return_counts=True)
    order = np.lexsort((support_K[cells // num_classes], -counts))[:limit]
    row_N = predictions.table["row"].to_numpy()
    return [
        ConfusedPair(
            true=classes[cells[at] // num_classes],
            predicted=classes[cells[at] % num_classes],
            count=int(counts[at]),
            num_images=int(support_K[cells[at] // num_classes]),
            row=int(row_N[wrong_N[firsts[at]]]),
        )
        for at in order
    ]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN where the whole is nothing."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted mean of the values that have a weight; 0 where none has."""
    some = weights > 0
    return float(np.average(values[some], weights=weights[some])) if some.any() else 0.0


def _plain(values: np.ndarray) -> list[Any]:
    return [None if value != value else value for value in values.tolist()]  # NaN becomes None


def _rows(keys: Sequence[str], columns: list[list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
