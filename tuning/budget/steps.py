"""A trial's training and evaluation step on drawn images or features, to be measured."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from datasets.manifest import Manifest
from trainers.config import FinetuneConfig
from trainers.heads.grouping import can_stack, count_together
from trainers.heads.stack import HeadStack
from trainers.networks.freezing import is_head_only
from trainers.step.settings import train_settings
from trainers.step.state import TrainState
from trainers.step.step import eval_step, train_step
from trainers.worker import WorkerContext
from tuning.sharing.plan import PrefixPlan

NUM_HEADS = 16
"""In a step of heads that train together, at most."""


class Steps(NamedTuple):
    """Take the training steps first: evaluation puts the network in eval mode."""

    train: Callable[[], torch.Tensor]
    evaluate: Callable[[], torch.Tensor]
    num_images: int
    """Of a step, counted once for each of its heads."""


def cost_key(training: FinetuneConfig) -> tuple[Any, ...]:
    """Return what a training's steps cost, beside its frozen stages; weights don't change it."""
    size_px, backbone = training.ingest.size_px, training.model.backbone
    return backbone, size_px, training.compute, training.global_batch_size


def build_steps(
    training: FinetuneConfig,
    manifest: Manifest,
    worker: WorkerContext,
    prefix: PrefixPlan | None,
) -> Steps:
    """Build a trial's network with its optimizer, and a batch.

    Args:
        prefix: whose features the trial trains on instead of images.
    """
    num_classes, size_px = len(manifest.classes), training.ingest.size_px
    state = TrainState(training, num_classes, worker, cut_depth=prefix.depth if prefix else None)
    state.enter(training.phases[0])
    settings = train_settings(training, manifest, worker)
    num_images = training.global_batch_size
    if prefix is None:
        images = torch.randint(0, 255, (num_images, size_px, size_px, 3), dtype=torch.uint8)
    else:
        images = torch.rand(num_images, *prefix.shape).half()
    images, labels_B = images.to(worker.device), torch.zeros(num_images).long().to(worker.device)
    if prefix is not None and is_head_only(training.model) and can_stack(training):
        use_gpu = worker.device.type == "cuda"
        num_heads = min(NUM_HEADS, count_together(training, num_classes, use_gpu=use_gpu))
        stack = HeadStack(state, [training] * num_heads, prefix.depth)
        options = {"settings": settings, "learning_rates": [0.0] * num_heads, "num_updates": 0}
        return Steps(
            lambda: stack.train_step(images, labels_B, **options)["count"],
            lambda: stack.eval_step(images, labels_B, settings),
            num_heads * num_images,
        )

    def train() -> torch.Tensor:
        assert state.optimizer is not None
        sums = train_step(
            state.network, state.optimizer, images, labels_B, settings=settings, scaler=state.scaler
        )
        state.update_average()
        return sums["count"]

    def evaluate() -> torch.Tensor:
        state.evaluated.eval()
        return eval_step(state.evaluated, images, labels_B, settings=settings)

    return Steps(train, evaluate, num_images)
