"""All images of a split through a network, each exactly once, on all workers of the cluster.

Ray Data tasks read and decode; actors, each with the network loaded once, predict. Only one row per
image comes back to the driver. A small split is predicted in this process: actors take seconds to
start. Where frozen stages have been computed for the images, only the stages behind them are.

B images of a batch, H x W pixels, C channels, K classes; N images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from torch import Tensor

from cluster.config import ClusterConfig
from cluster.io import filesystems, storage
from cluster.runtime import find_resources
from datasets.blocks import FEW_IMAGES
from datasets.manifest import Manifest, Split
from datasets.passes.actors import Workers, choose_block_images, run_chunks, run_here
from datasets.plan import IGNORE_INDEX, Chunk, EpochOrder, RowGroups
from datasets.sources import BatchSource, RowSource, ShardSource
from trainers.config import FinetuneConfig
from trainers.inference.actors import CPU_BATCH_SIZE, GPU_BATCH_SIZE, plan_actors
from trainers.inference.compiled import is_compiled
from trainers.inference.forward import ForwardPass
from trainers.inference.hierarchy import Hierarchy
from trainers.inference.inference import Network
from trainers.networks.backbones import find
from trainers.networks.cut import build_suffix
from trainers.networks.precision import inference_precision
from trainers.prepare import PrefixFeatures
from trainers.run.calibration import Calibration, unknown_scores
from trainers.run.predictions import COLUMNS, Predictions, build_predictions
from trainers.step.step import score_logits

FEW_IMAGES_HERE = 2048
"""FEW_IMAGES where this process has the CPUs of the cluster, or computes the head only."""

Describe = Callable[[Tensor, Tensor], dict[str, pa.Array]]
"""logits_NK and labels_N, IGNORE_INDEX where an image is not scored -> further columns."""


class SplitPredictor:
    """Predicts blocks of images on the device of its process."""

    def __init__(
        self,
        *,
        load: Callable[[], Network],
        tta: bool,
        threads: int,
        use_gpu: bool,
        compiled: bool,
        index_K: np.ndarray,
        describe: Describe | None,
    ) -> None:
        """`index_K`: of each class of the data set, the network's."""
        network, self._index_K = load(), torch.tensor(index_K)
        self._forward = ForwardPass(
            network.model, network.config, threads=threads, use_gpu=use_gpu, compiled=compiled
        )
        self._tta = tta
        self._describe = describe

    @torch.no_grad()
    def __call__(self, block: pa.Table) -> pa.Table:
        """Return row, image_id, COLUMNS, those of `describe` and, for an unreadable image, its
        name and the reason."""
        images_NHWC = torch.tensor(block["image"].chunk(0).to_numpy(zero_copy_only=False))
        labels_N = torch.tensor(block["label"].to_numpy()).long()
        # Classes that the network does not have, and unreadable images, are IGNORE_INDEX.
        labels_N = self._index_K[labels_N.clamp(min=0)].where(labels_N >= 0, IGNORE_INDEX)
        if self._tta:
            logits_NK = predict_mirrored(self._forward, images_NHWC)
        else:
            (logits_NK,) = self._forward(images_NHWC)
        columns_5N = score_logits(logits_NK, labels_N)
        return pa.table(
            {
                "row": block["row"],
                "image_id": block["image_id"],
                **dict(zip(COLUMNS, columns_5N.numpy(), strict=True)),
                **(self._describe(logits_NK, labels_N) if self._describe else {}),
                "unreadable": block["read_error"],
            }
        )


def predict_split(
    network: Network,
    manifest: Manifest,
    split: str,
    *,
    index_K: np.ndarray,
    tta: bool = False,
    describe: Describe | None = None,
    prefix: PrefixFeatures | None = None,
    rows_N: np.ndarray | None = None,
) -> Predictions:
    """Predict each image of a split once, none augmented, in batches that are the same anywhere.

    Args:
        index_K: of each class of the data set, the network's, or IGNORE_INDEX: such images have
            no row.
        tta: predict the mean probability of each image and its mirror image.
        describe: returns further columns of the predictions.
        prefix: features of the network's frozen stages, used where they include the split.
        rows_N: of the images to predict, rising; all by default.

    Raises:
        UserError: where `cluster.device` asks for a GPU and there is none.
    """
    config, source = network.config, manifest.split(split)
    rows_N = np.arange(source.num_images) if rows_N is None else rows_N
    images: BatchSource = ShardSource(ingest=config.ingest)
    is_suffix = is_head = False
    if prefix is not None and split in prefix.sources and not tta:
        images, backbone, is_suffix = prefix.sources[split], config.model.backbone, True
        network = replace(network, model=build_suffix(network.model, backbone, prefix.depth))
        is_head = prefix.depth == len(find(backbone).stages)
    resources = find_resources()
    cluster = ClusterConfig(device=config.cluster.device)
    plan = plan_actors(resources, cluster, [config.model.backbone])
    has_cpus = resources.started_here and not plan.use_gpu
    in_process = len(rows_N) <= (FEW_IMAGES_HERE if has_cpus or is_head else FEW_IMAGES)
    use_gpu = plan.use_gpu and (not in_process or torch.cuda.is_available())
    compute = inference_precision(config.compute, use_gpu=use_gpu)
    network = replace(network, config=replace(config, compute=compute))
    batch_size = GPU_BATCH_SIZE if use_gpu else CPU_BATCH_SIZE
    chunks = plan_chunks(config, source, rows_N, batch_size)
    rows, what = RowSource(images), f"Predicting {split}"
    arguments = {
        "tta": tta,
        "threads": int(resources.num_cpus) if in_process and has_cpus else plan.threads_per_worker,
        "use_gpu": use_gpu,
        "compiled": not is_suffix and is_compiled(config, len(rows_N), use_gpu=use_gpu),
        "index_K": index_K,
        "describe": describe,
    }
    if in_process:
        predictor = SplitPredictor(load=lambda: network, **arguments)
        table = run_here(chunks, rows, predictor, what)
    else:
        arguments["load"] = partial(ray.get, ray.put(network))
        table = run_chunks(chunks, rows, SplitPredictor, arguments, Workers.of(plan), what)
    table = table.sort_by("row")
    assert np.array_equal(table["row"].to_numpy(), rows_N), "each image exactly once"
    unreadable = table["unreadable"].drop_null().to_pylist()
    known = ("row", "image_id", *COLUMNS, "unreadable")
    predictions = build_predictions(
        {
            "row": table["row"],
            "image_id": table["image_id"],
            "path": read_paths(config.data, source).take(pa.array(rows_N)),
            **{name: table[name].to_numpy() for name in COLUMNS},
            **{name: table[name] for name in table.column_names if name not in known},
        },
        network.classes,
        unreadable=unreadable,
    )
    return replace(predictions, num_unreadable=len(unreadable))


def plan_chunks(
    config: FinetuneConfig, split: Split, rows_N: np.ndarray, batch_size: int
) -> list[Chunk]:
    """Cut rows of a split, in stored order, into blocks of whole batches."""
    num_images, num_cpus = len(rows_N), int(ray.cluster_resources()["CPU"])
    block_images = choose_block_images(num_images, 3 * config.ingest.size_px**2, num_cpus)
    block_images = -(-block_images // batch_size) * batch_size
    order = _stored_order(config, split)
    return [
        order.chunk(rows_N[start : start + block_images])
        for start in range(0, num_images, block_images)
    ]


def keep_logits(logits_NK: Tensor, labels_N: Tensor) -> dict[str, pa.Array]:
    """Return the column `logits`, lists of K."""
    values = pa.array(logits_NK.numpy().ravel())
    return {"logits": pa.FixedSizeListArray.from_arrays(values, logits_NK.shape[1])}


def describe_answers(
    logits_NK: Tensor,
    labels_N: Tensor,
    *,
    calibration: Calibration | None,
    coverage: float,
    hierarchy: Hierarchy | None,
    least_probability: float,
) -> dict[str, pa.Array]:
    """Return columns of calibrated probabilities: confidence, loss, unknown score, and the size of
    the set of classes that has the true one at a rate of `coverage`; and those of a hierarchy."""
    columns: dict[str, pa.Array] = {}
    scaled_NK = logits_NK / (calibration.temperature if calibration else 1.0)
    probabilities_NK = scaled_NK.softmax(1)
    if calibration is not None:
        _, _, confidence_N, loss_N, _ = score_logits(scaled_NK, labels_N).numpy()
        in_set_NK = probabilities_NK >= calibration.least_probability(coverage)
        columns = {
            "calibrated_confidence": pa.array(confidence_N),
            "calibrated_loss": pa.array(loss_N),
            "unknown_score": pa.array(unknown_scores(logits_NK.numpy())),
            "set_size": pa.array(in_set_NK.sum(1).numpy().astype(np.int32)),
        }
    if hierarchy is not None:
        columns |= hierarchy.describe(probabilities_NK.numpy(), least_probability)
    return columns


def predict_mirrored(
    compute: Callable[[Tensor], tuple[Tensor, ...]], images_NHWC: Tensor
) -> Tensor:
    """Return logits_NK of the mean probability of each image and its mirror image.

    Probabilities rather than logits, as Krizhevsky et al. 2012 average crops and mirror images:
    the scale of logits is arbitrary, and one large logit would outvote the other view.
    """
    (logits_NK,), (mirrored_NK,) = compute(images_NHWC), compute(images_NHWC.flip(2))
    return torch.logaddexp(logits_NK.log_softmax(1), mirrored_NK.log_softmax(1)) - math.log(2)


def read_paths(data: str, split: Split) -> pa.ChunkedArray:
    """Read where each image of a split came from, in stored order."""
    columns = []
    for shard in split.shards:
        filesystem, path = filesystems.resolve(storage.join(data, shard.path))
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
    return read_labelled(config, manifest, split, rows_N)[0]


def read_labelled(
    config: FinetuneConfig, manifest: Manifest, split: str, rows_N: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same, and labels_N; IGNORE_INDEX for an unreadable image."""
    chunk = _stored_order(config, manifest.split(split)).chunk(np.array(rows_N))
    (block,) = ShardSource(ingest=config.ingest).read(chunk)
    images_NHWC = block["image"].chunk(0).to_numpy(zero_copy_only=False)
    return images_NHWC, block["label"].to_numpy()


def _stored_order(config: FinetuneConfig, split: Split) -> EpochOrder:
    return EpochOrder(RowGroups(config.data, split), seed=0, epoch=0, shuffle=False)
