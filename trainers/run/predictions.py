"""Predictions of a network for the images of a split: one table, from which all measures follow.

    RUN/val_predictions/epoch-00003.parquet      after every epoch of a training
    RUN/evaluation_SPLIT/predictions.parquet     of an evaluation

N images of the split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from cluster.io import storage
from datasets.plan import IGNORE_INDEX
from trainers.run import checkpoint

FOLDER = "val_predictions"
COLUMNS: tuple[str, ...] = ("label", "predicted", "confidence", "loss", "top5")
"""Of each image, as numbers: `step.eval_step` returns them in this order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """One row per readable image, in the stored order of the split."""

    table: pa.Table
    """row (index in the split), label and predicted (class names), confidence (probability of the
    predicted class), loss (cross-entropy, nats), top5 (1 where the label is among the five largest
    logits, else 0). An evaluation adds image_id and path. Files of an older Thaw have neither loss
    nor top5."""
    classes: tuple[str, ...]
    num_unreadable: int = 0
    """Images without a row."""
    unreadable: tuple[str, ...] = ()
    """Their names, with the reason; in training only the first."""

    @cached_property
    def label_N(self) -> np.ndarray:
        """Index of the true class, int64."""
        return self._class_indices("label")

    @cached_property
    def predicted_N(self) -> np.ndarray:
        """Index of the predicted class, int64."""
        return self._class_indices("predicted")

    @property
    def is_correct_N(self) -> np.ndarray:
        return self.label_N == self.predicted_N

    def numbers(self, column: str) -> np.ndarray:
        """Return a column as float64; NaN where the file does not have it."""
        if column not in self.table.column_names:
            return np.full(len(self.table), np.nan)
        return self.table[column].to_numpy().astype(np.float64)

    def _class_indices(self, column: str) -> np.ndarray:
        number_of = {name: number for number, name in enumerate(self.classes)}
        parts = [np.zeros(0, np.int64)]
        for chunk in self.table[column].chunks:
            numbers = np.array([number_of[name] for name in chunk.dictionary.to_pylist()], np.int64)
            parts.append(numbers[chunk.indices.to_numpy()])
        return np.concatenate(parts)


def build_predictions(
    columns: Mapping[str, np.ndarray | pa.Array],
    classes: Sequence[str],
    *,
    unreadable: Sequence[str] = (),
) -> Predictions:
    """Build the table from columns of all images of a split, in stored order.

    Args:
        columns: COLUMNS, and others to keep. Labels and predictions are indices of classes; an
            unreadable image is labelled IGNORE_INDEX.
    """
    label_N = np.asarray(columns["label"]).astype(np.int32)
    is_readable_N = label_N != IGNORE_INDEX
    predicted_N = np.asarray(columns["predicted"]).astype(np.int32)
    values = {
        "row": np.arange(len(label_N), dtype=np.int32),
        **columns,
        "label": _name_classes(label_N, classes),
        "predicted": _name_classes(predicted_N, classes),
        "top5": np.asarray(columns["top5"]).astype(np.int8),
    }
    return Predictions(
        table=pa.table(values).filter(pa.array(is_readable_N)),
        classes=tuple(classes),
        num_unreadable=int((~is_readable_N).sum()),
        unreadable=tuple(unreadable),
    )


def read_table(uri: str) -> Predictions:
    """Read the predictions of a file; raises as `storage.read_parquet`."""
    return from_table(storage.read_parquet(uri))


def from_table(table: pa.Table) -> Predictions:
    """Take the classes from the dictionaries of the columns."""
    columns = [table[name].unify_dictionaries() for name in ("label", "predicted")]
    chunks = [column.chunk(0) for column in columns if column.num_chunks]
    classes = dict.fromkeys(name for chunk in chunks for name in chunk.dictionary.to_pylist())
    return Predictions(table=table, classes=tuple(classes))


def write_predictions(run: str, epoch: int, predictions: Predictions) -> None:
    """Write the predictions for the validation images after an epoch, counted from 1."""
    storage.write_parquet(_uri(run, epoch), predictions.table)


def read_predictions(run: str, epoch: int | None = None) -> Predictions | None:
    """Read the predictions after an epoch, by default the one with the best weights.

    Returns:
        None where the run has validated nothing, or is of an older Thaw.
    """
    if epoch is None:
        progress = checkpoint.latest_progress(run)
        epoch = progress.best_epoch if progress else 0
    uri = _uri(run, epoch)
    return read_table(uri) if storage.exists(uri) else None


def pick_sample(label_N: np.ndarray, size: int) -> np.ndarray:
    """Pick the same images in every epoch: one of each class, then a second one, and so on.

    Args:
        label_N: int, the class of each image.

    Returns:
        Their indices, rising; all where there are fewer than `size`. Where there are more classes
        than that, the images picked are spread evenly over the classes.
    """
    order_N = np.argsort(label_N, kind="stable")
    sorted_N = label_N[order_N]
    _, starts, counts = np.unique(sorted_N, return_index=True, return_counts=True)
    turn_N = np.arange(len(label_N)) - np.repeat(starts, counts)
    by_turn_N = order_N[np.lexsort((sorted_N, turn_N))]
    if len(counts) > size:
        by_turn_N = by_turn_N[np.linspace(0, len(counts) - 1, size).astype(int)]
    return np.sort(by_turn_N[:size])


def _name_classes(index_N: np.ndarray, classes: Sequence[str]) -> pa.DictionaryArray:
    """Turn indices of classes into names; IGNORE_INDEX has none."""
    indices = pa.array(index_N, pa.int32(), mask=index_N == IGNORE_INDEX)
    return pa.DictionaryArray.from_arrays(indices, list(classes))


def _uri(run: str, epoch: int) -> str:
    return storage.join(run, FOLDER, f"epoch-{epoch:05d}.parquet")
