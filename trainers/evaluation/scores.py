"""Scores of a classifier, exact over any number of ranks: totals of a fixed size on the device.

B images, K classes, M bins of confidence, N totals kept. Shares are from 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from datasets.plan import IGNORE_INDEX

NUM_BINS = 15  # as Guo et al. 2017, and most papers since


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """What all images of all ranks together say.

    A share of nothing (the precision of a class that was never predicted, the recall of one without
    images) is NaN here; means over classes are over those that have images.
    """

    confusion_KK: np.ndarray
    """Counts, int64: a row per true class, a column per predicted one."""
    bin_count_M: np.ndarray
    """Images by the probability of the predicted class; bin m is (m/M, (m+1)/M]."""
    bin_confidence_M: np.ndarray
    """Mean of that probability in each bin, NaN in an empty one."""
    bin_accuracy_M: np.ndarray
    """Share of correct predictions in each bin, NaN in an empty one."""
    loss: float
    """Cross-entropy without label smoothing, nats per image."""
    top5: float
    num_unreadable: int
    """Images that could not be read; they count nowhere else."""

    @property
    def num_images(self) -> int:
        return int(self.confusion_KK.sum())

    @property
    def top1(self) -> float:
        return float(self.confusion_KK.trace() / max(1, self.num_images))

    @property
    def support_K(self) -> np.ndarray:
        """Images of each class."""
        return self.confusion_KK.sum(1)

    @property
    def precision_K(self) -> np.ndarray:
        return _share(self.confusion_KK.diagonal(), self.confusion_KK.sum(0))

    @property
    def recall_K(self) -> np.ndarray:
        return _share(self.confusion_KK.diagonal(), self.support_K)

    @property
    def f1_K(self) -> np.ndarray:
        """Harmonic mean of precision and recall: 0 where a class has images and no hit."""
        return _share(2 * self.confusion_KK.diagonal(), self.support_K + self.confusion_KK.sum(0))

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
        """Expected calibration error: how far confidence and accuracy lie apart, mean over images.

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

    def most_confused(self, limit: int) -> list[tuple[int, int]]:
        """Return pairs (true, predicted) by falling count, then by falling share of the class."""
        mistakes_KK = self.confusion_KK * ~np.eye(len(self.confusion_KK), dtype=bool)
        true, predicted = np.nonzero(mistakes_KK)
        order = np.lexsort((self.support_K[true], -mistakes_KK[true, predicted]))[:limit]
        return [(int(true[at]), int(predicted[at])) for at in order]


class Scores:
    """Totals from which all measures follow, kept on the device: adding waits for nothing.

    They have the same size on every rank, whatever it has seen, and add up over ranks. How images
    were spread over ranks and batches changes no count and no bin: float64 holds whole numbers up
    to 2**53, and adds half a million float32 confidences (at least 1/K each, K up to 1,000) to a
    bin without rounding.
    """

    def __init__(self, num_classes: int, device: torch.device | str) -> None:
        self.num_classes = num_classes
        sizes = [num_classes**2, NUM_BINS, NUM_BINS, NUM_BINS, 3]
        self.totals_N = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        self._sizes = sizes

    @torch.no_grad()
    def add(self, logits_BK: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch; images labelled IGNORE_INDEX are counted as lost and nowhere else.

        Returns:
            predicted_B and confidence_B, the probability of that class, on the device.
        """
        labels_B = labels_B.long()
        confusion, bin_count, bin_confidence, bin_correct, sums = self.totals_N.split(self._sizes)
        known_B = (labels_B != IGNORE_INDEX).double()
        top_Bk = logits_BK.topk(min(5, self.num_classes)).indices
        predicted_B = top_Bk[:, 0]
        confidence_B = logits_BK.float().softmax(1).amax(1).double()
        bin_B = ((confidence_B * NUM_BINS).ceil().long() - 1).clamp(0, NUM_BINS - 1)
        # Lost images add zeros: leaving them out would wait for the device to count them.
        cell_B = labels_B.clamp(min=0) * self.num_classes + predicted_B
        confusion.index_add_(0, cell_B, known_B)
        bin_count.index_add_(0, bin_B, known_B)
        bin_confidence.index_add_(0, bin_B, known_B * confidence_B)
        bin_correct.index_add_(0, bin_B, (predicted_B == labels_B).double())
        loss_B = F.cross_entropy(
            logits_BK.float(), labels_B, ignore_index=IGNORE_INDEX, reduction="none"
        ).double()
        top5 = (top_Bk == labels_B[:, None]).sum()
        sums += torch.stack([loss_B.sum(), top5.double(), (1 - known_B).sum()])
        return predicted_B, confidence_B

    def reduce(self, world_size: int = 1) -> Measures:
        """Turn the totals of all ranks into measures: one all_reduce, one wait for the device."""
        totals_N = self.totals_N.clone()
        if world_size > 1:
            distributed.all_reduce(totals_N)
        parts = np.split(totals_N.cpu().numpy(), np.cumsum(self._sizes)[:-1])
        confusion, bin_count_M, confidence_sum_M, correct_M, (loss_sum, top5_sum, lost) = parts
        num_images = max(1.0, confusion.sum())
        return Measures(
            confusion_KK=confusion.astype(np.int64).reshape(self.num_classes, self.num_classes),
            bin_count_M=bin_count_M.astype(np.int64),
            bin_confidence_M=_share(confidence_sum_M, bin_count_M),
            bin_accuracy_M=_share(correct_M, bin_count_M),
            loss=float(loss_sum / num_images),
            top5=float(top5_sum / num_images),
            num_unreadable=int(lost),
        )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN where the whole is nothing."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted mean of the values that have a weight; 0 where none has."""
    some = weights > 0
    return float(np.average(values[some], weights=weights[some])) if some.any() else 0.0


def _plain(values: np.ndarray) -> list[Any]:
    return [
        None if value != value else value for value in values.tolist()
    ]  # NaN alone is not itself


def _rows(keys: Sequence[str], columns: list[list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
