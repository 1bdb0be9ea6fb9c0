"""A split through a network in its stored order: what it answers to each image, exactly once.

B images of a batch, H x W pixels, C channels, K classes; N images of the split.
"""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from cluster.io import storage
from cluster.io.terminal import count
from datasets.epochs import stream
from datasets.plan import IGNORE_INDEX, EpochOrder, RowGroups, plan_epochs
from datasets.read import read_chunk
from datasets.shards import Manifest, Split
from datasets.sources import ReadLimits, ShardSource
from trainers.config import FinetuneConfig
from trainers.evaluation.scores import Measures, Scores
from trainers.feed import WorkerContext, to_device
from trainers.settings import step_settings
from trainers.step import StepSettings, predict

BATCH_SIZE = 64


def measure(
    model: nn.Module,
    config: FinetuneConfig,
    manifest: Manifest,
    place: WorkerContext,
    limits: ReadLimits,
    *,
    split: str,
    tta: bool = False,
) -> tuple[Measures, pa.Table, list[str]]:
    """Run the model, in eval mode, over a split in stored order.

    Returns:
        The measures; a row per image (its row of the split, image_id, path, label, predicted,
        confidence); the names of lost images, which have no row.
    """
    plan = plan_epochs(
        config.data,
        manifest,
        config.ingest,
        split=split,
        num_epochs=1,
        global_batch_size=BATCH_SIZE,
        seed=config.seed,
        train=False,
    )
    batches = stream(plan, ShardSource(ingest=config.ingest), limits)
    settings, answer = step_settings(config, place.device), predict_mirrored if tta else predict
    scores = Scores(len(manifest.classes), place.device)
    labels, image_ids, answers, unreadable = [], [], [], []
    with count(f"Evaluating {split}", manifest.split(split).num_images, "images") as advance:
        for batch in batches:
            images_BHWC, labels_B = to_device(batch, place.device)
            with torch.no_grad():
                logits_BK = answer(model, images_BHWC, settings)
            answers.append(scores.add(logits_BK, labels_B))
            labels.append(batch["label"])
            image_ids.append(batch["image_id"])
            unreadable += batch["unreadable"]
            advance(len(labels_B))
    label_N = np.concatenate(labels)
    predicted_N, confidence_N = (
        torch.cat(of_batch).cpu() for of_batch in zip(*answers, strict=True)
    )
    table = pa.table(
        {
            "row": np.arange(len(label_N)),
            "image_id": np.concatenate(image_ids),
            "path": read_paths(config.data, manifest.split(split)),
            "label": name_classes(label_N, manifest.classes),
            "predicted": name_classes(predicted_N.numpy(), manifest.classes),
            "confidence": confidence_N.numpy().astype(np.float32),
        }
    )
    return scores.reduce(), table.filter(pa.array(label_N != IGNORE_INDEX)), unreadable


def predict_mirrored(model: nn.Module, images_BHWC: Tensor, settings: StepSettings) -> Tensor:
    """Return logits_BK of the mean probability of each image and its mirror image.

    Probabilities rather than logits, as Krizhevsky et al. 2012 average crops and mirror images:
    the scale of logits is arbitrary, and one large logit would outvote the other view.
    """
    views = (images_BHWC, images_BHWC.flip(2))
    log_BKs = [predict(model, view_BHWC, settings).log_softmax(1) for view_BHWC in views]
    return torch.logaddexp(*log_BKs) - math.log(2)


def name_classes(label_N: np.ndarray, classes: Sequence[str]) -> pa.DictionaryArray:
    """Give labels their names; a lost image has none."""
    indices = pa.array(label_N, pa.int32(), mask=label_N == IGNORE_INDEX)
    return pa.DictionaryArray.from_arrays(indices, list(classes))


def read_paths(data: str, split: Split) -> pa.ChunkedArray:
    """Read where each image of a split came from, in stored order."""
    columns = []
    for shard in split.shards:
        filesystem, path = storage.resolve(storage.join(data, shard.path))
        with filesystem.open_input_file(path) as file:
            columns.append(pq.ParquetFile(file).read(["path"])["path"])
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks])


def read_views(
    config: FinetuneConfig, manifest: Manifest, split: str, rows_N: Sequence[int]
) -> np.ndarray:
    """Read images of a split as the network sees them in evaluation, by their rows.

    Returns:
        uint8 `[N, H, W, 3]`, RGB.
    """
    order = EpochOrder(
        RowGroups(config.data, manifest.split(split)), seed=0, epoch=0, shuffle=False
    )
    (block,) = read_chunk(order.chunk(np.array(rows_N)), ingest=config.ingest, seed=0, train=False)
    return block["image"].chunk(0).to_numpy(zero_copy_only=False)
