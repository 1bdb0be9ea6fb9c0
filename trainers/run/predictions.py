"""What a run answers to its validation images, after every epoch: no forward pass of their own.

    RUN/val_predictions/epoch-00003.parquet   row, label, predicted, confidence; a row per image

Dimensions: B images of a batch, N of the validation split; `row` is the place in the split's stored
order. Lost images have no row.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, distributed

from cluster.io import storage
from datasets.plan import IGNORE_INDEX
from trainers.evaluation.answers import name_classes
from trainers.run import checkpoint

FOLDER = "val_predictions"


class EpochPredictions:
    """Answers of all ranks to a split that is evaluated in stored order, kept on the device.

    Args:
        num_images: of the split, over all ranks.
        first_row: of this rank's share, which is one range.
    """

    def __init__(self, num_images: int, first_row: int, device: torch.device) -> None:
        # Label, predicted class, confidence; whole numbers up to 2**24 are exact.
        self._answers_3N = torch.zeros(3, num_images, device=device)
        self._row = first_row

    def add(self, told: dict[str, Tensor]) -> None:
        """Add what `step.eval_step` returned for the next images of this rank."""
        answers_3B = torch.stack(
            [told[name].float() for name in ("labels_B", "predicted_B", "confidence_B")]
        )
        self._answers_3N[:, self._row : self._row + answers_3B.shape[1]] = answers_3B
        self._row += answers_3B.shape[1]

    def reduce(self, world_size: int, classes: Sequence[str]) -> pa.Table:
        """Return the answers of all ranks as the columns of the file. All ranks must call."""
        if world_size > 1:
            distributed.all_reduce(self._answers_3N)
        label_N, predicted_N, confidence_N = self._answers_3N.cpu().numpy()
        label_N = label_N.astype(np.int32)
        table = pa.table(
            {
                "row": np.arange(len(label_N), dtype=np.int32),
                "label": name_classes(label_N, classes),
                "predicted": name_classes(predicted_N.astype(np.int32), classes),
                "confidence": confidence_N,
            }
        )
        return table.filter(pa.array(label_N != IGNORE_INDEX))


def write_predictions(run: str, epoch: int, predictions: pa.Table) -> None:
    """Keep the answers after an epoch, counted from 1."""
    storage.write_parquet(_uri(run, epoch), predictions)


def read_predictions(run: str, epoch: int | None = None) -> pa.Table | None:
    """Read the answers after an epoch, by default the one with the best weights.

    Returns:
        row (int32), label and predicted (class names), confidence (float32); None where the run has
        validated nothing, or is of an older Thaw.
    """
    if epoch is None:
        progress = checkpoint.latest_progress(run)
        epoch = progress.best_epoch if progress else 0
    uri = _uri(run, epoch)
    return storage.read_parquet(uri) if storage.exists(uri) else None


def pick_sample(label_N: np.ndarray, size: int) -> np.ndarray:
    """Pick the same images in every epoch: one of each class, then a second one, and so on.

    Args:
        label_N: int, the class of each image.

    Returns:
        Their indices, rising; all where there are fewer than `size`. Where there are more classes
        than that, those picked lie evenly among them.
    """
    order_N = np.argsort(label_N, kind="stable")
    sorted_N = label_N[order_N]
    _, starts, counts = np.unique(sorted_N, return_index=True, return_counts=True)
    turn_N = np.arange(len(label_N)) - np.repeat(starts, counts)
    by_turn_N = order_N[np.lexsort((sorted_N, turn_N))]
    if len(counts) > size:
        by_turn_N = by_turn_N[np.linspace(0, len(counts) - 1, size).astype(int)]
    return np.sort(by_turn_N[:size])


def _uri(run: str, epoch: int) -> str:
    return storage.join(run, FOLDER, f"epoch-{epoch:05d}.parquet")
