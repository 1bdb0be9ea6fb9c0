"""W&B media of a run: tables of predictions, mistakes and confused pairs, augmented images."""

import tempfile
from functools import cache, lru_cache

import pyarrow as pa
import wandb
from PIL import Image

from datasets.config import IngestConfig
from datasets.manifest import Manifest
from datasets.preview import draw_views
from trainers.config import FinetuneConfig
from trainers.evaluation.measures import find_confused_pairs
from trainers.evaluation.split import read_views
from trainers.run.predictions import Predictions, pick_sample

SAMPLE_IMAGES = 64
NUM_MISTAKES = 32
MAX_PAIRS = 10_000
"""Rows of a table that W&B shows."""
COLUMNS = ["row", "label", "predicted", "confidence"]
THUMBNAIL_PX = 128


def predictions_table(predictions: Predictions) -> wandb.Table:
    """Return predictions for a sample of validation images, the same sample in all epochs."""
    sample = predictions.table.select(COLUMNS).take(pick_sample(predictions.label_N, SAMPLE_IMAGES))
    return wandb.Table(
        columns=[*COLUMNS, "correct"],
        data=[[*row.values(), row["label"] == row["predicted"]] for row in sample.to_pylist()],
    )


def mistakes_table(
    config: FinetuneConfig, manifest: Manifest, predictions: Predictions, *, split: str
) -> wandb.Table:
    """Return the mistakes with the highest confidence, with the images as the network saw them.

    Args:
        config: with `data` the data set of the predictions.

    Raises:
        UserError or OSError: where the data set was deleted.
    """
    wrong = predictions.table.select(COLUMNS).filter(pa.array(~predictions.is_correct_N))
    rows = wrong.sort_by([("confidence", "descending")]).slice(0, NUM_MISTAKES).to_pylist()
    table = wandb.Table(columns=["image", *COLUMNS])
    if rows:
        views = read_views(config, manifest, split, [row["row"] for row in rows])
        for view_HWC, row in zip(views, rows, strict=True):
            thumbnail = Image.fromarray(view_HWC)
            thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            table.add_data(wandb.Image(thumbnail, file_type="jpg"), *row.values())
    return table


def confusion_table(predictions: Predictions) -> wandb.Table:
    """Return the confused pairs of classes, the most frequent first."""
    pairs = find_confused_pairs(predictions, MAX_PAIRS)
    return wandb.Table(
        columns=["label", "predicted", "images", "share"],
        data=[[pair.true, pair.predicted, pair.count, pair.share] for pair in pairs],
    )


def augmentation_image(config: FinetuneConfig) -> wandb.Image:
    """Return a sheet of augmented training images, a row for each epoch.

    Raises:
        ValueError or OSError: where the data set was deleted.
    """
    return wandb.Image(_write_sheet(config.data, config.ingest, config.seed))


@lru_cache(maxsize=8)
def _write_sheet(data: str, ingest: IngestConfig, seed: int) -> str:
    """Draw it once for all trials of a sweep: W&B would encode an image again, in 0.2 s, but copies
    a file."""
    handle, path = tempfile.mkstemp(suffix=".png", dir=_temporary_folder().name)
    with open(handle, "wb") as file:
        file.write(draw_views(data, ingest, seed=seed))
    return path


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that ends with this process."""
    return tempfile.TemporaryDirectory(prefix="thaw-media-")
