"""W&B media of a run: tables of predictions and mistakes, confusion matrix, augmented images.

N validation images, K classes.
"""

import io
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import wandb
from PIL import Image

from datasets.config import IngestConfig
from datasets.preview import draw_views
from datasets.shards import Manifest
from trainers.config import FinetuneConfig
from trainers.evaluation.answers import read_views
from trainers.run.predictions import pick_sample

SAMPLE_IMAGES = 64
NUM_MISTAKES = 32
MAX_CHART_CLASSES = 100
"""W&B's charts take 10,000 rows, one per pair of classes."""
THUMBNAIL_PX = 128


def predictions_table(predictions: pa.Table) -> wandb.Table:
    """Return predictions for a sample of validation images, the same sample in all epochs."""
    _, label_N = np.unique(_names(predictions, "label"), return_inverse=True)
    rows = predictions.take(pick_sample(label_N, SAMPLE_IMAGES)).to_pylist()
    return wandb.Table(
        columns=["row", "label", "predicted", "confidence", "correct"],
        data=[[*row.values(), row["label"] == row["predicted"]] for row in rows],
    )


def mistakes_table(
    config: FinetuneConfig, manifest: Manifest, predictions: pa.Table, *, split: str
) -> wandb.Table:
    """Return the mistakes with the highest confidence, with the images as the network saw them.

    Args:
        config: with `data` the data set of the predictions.

    Raises:
        ValueError or OSError: where the data set was deleted.
    """
    columns = ["row", "label", "predicted", "confidence"]
    is_wrong_N = _names(predictions, "label") != _names(predictions, "predicted")
    wrong = predictions.select(columns).filter(pa.array(is_wrong_N))
    rows = wrong.sort_by([("confidence", "descending")]).slice(0, NUM_MISTAKES).to_pylist()
    table = wandb.Table(columns=["image", *columns])
    if rows:
        views = read_views(config, manifest, split, [row["row"] for row in rows])
        for view_HWC, row in zip(views, rows, strict=True):
            thumbnail = Image.fromarray(view_HWC)
            thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            table.add_data(wandb.Image(thumbnail, file_type="jpg"), *row.values())
    return table


def confusion(predictions: pa.Table, classes: Sequence[str]) -> object:
    """Return W&B's chart of the confusion matrix; with many classes, the table of its mistakes."""
    pairs = list(zip(*(_names(predictions, name) for name in ("label", "predicted")), strict=True))
    if len(classes) <= MAX_CHART_CLASSES:
        numbers = {name: number for number, name in enumerate(classes)}
        return wandb.plot.confusion_matrix(
            y_true=[numbers[label] for label, _ in pairs],
            preds=[numbers[predicted] for _, predicted in pairs],
            class_names=list(classes),
        )
    mistakes = Counter(pair for pair in pairs if pair[0] != pair[1])
    return wandb.Table(
        columns=["label", "predicted", "images"],
        data=[[*pair, count] for pair, count in mistakes.most_common(MAX_CHART_CLASSES**2)],
    )


def augmentation_image(config: FinetuneConfig) -> wandb.Image:
    """Return a sheet of augmented training images, a row for each epoch.

    Raises:
        ValueError or OSError: where the data set was deleted.
    """
    return wandb.Image(Image.open(io.BytesIO(_sheet(config.data, config.ingest, config.seed))))


def _names(predictions: pa.Table, column: str) -> np.ndarray:
    """Return class names: each dictionary column numbers its classes differently."""
    return np.array(predictions[column].to_pylist(), object)


@lru_cache(maxsize=8)
def _sheet(data: str, ingest: IngestConfig, seed: int) -> bytes:
    """Draw it once for all trials of a sweep."""
    return draw_views(data, ingest, seed=seed)
