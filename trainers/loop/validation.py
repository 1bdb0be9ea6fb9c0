"""The images of a split, predicted over all ranks, and the metrics of an epoch's predictions."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import distributed, nn

from trainers import metrics
from trainers.evaluation.measures import measure
from trainers.feed import Feed
from trainers.run.predictions import COLUMNS, Predictions, build_predictions
from trainers.step.step import StepSettings, eval_step
from trainers.worker import WorkerContext


def val_metrics(predictions: Predictions) -> dict[str, float]:
    """Return the metrics of an epoch's predictions for the validation images."""
    measures = measure(predictions)
    return {
        metrics.VAL_LOSS: measures.loss,
        metrics.VAL_TOP1: measures.top1,
        metrics.VAL_TOP5: measures.top5,
    }


def predict_feed(
    model: nn.Module,
    feed: Feed,
    settings: StepSettings,
    worker: WorkerContext,
    *,
    classes: Sequence[str],
) -> Predictions:
    """Predict each image of the feed's split once, over all ranks. All ranks must call."""
    model.eval()
    columns_5N = torch.zeros(len(COLUMNS), feed.num_images, device=worker.device)
    row = feed.first_row
    for _ in range(feed.batches_per_epoch):
        columns_5B = eval_step(model, *feed.next(), settings=settings)
        columns_5N[:, row : row + columns_5B.shape[1]] = columns_5B
        row += columns_5B.shape[1]
    if worker.world_size > 1:
        distributed.all_reduce(columns_5N)  # each rank has zeros in place of the others' images
    columns = dict(zip(COLUMNS, columns_5N.cpu().numpy(), strict=True))
    predictions = build_predictions(columns, classes)
    if not predictions.num_unreadable:
        return predictions
    return replace(predictions, unreadable=tuple(feed.take_unreadable()))
