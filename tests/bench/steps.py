"""A step of ours, and the one people write by hand: what the benchmarks of training compare."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from trainers import metrics
from trainers.config import NORMALIZATIONS, FinetuneConfig, ModelConfig, OptimConfig, TrackConfig
from trainers.networks.backbones import build
from trainers.step.optim import set_learning_rate
from trainers.step.settings import step_settings
from trainers.step.state import TrainState, autocast_dtype
from trainers.step.step import train_step
from trainers.worker import WorkerContext

NUM_CLASSES, LEARNING_RATE, CLIPNORM = 196, 1e-4, 1.0
MEAN, STD = NORMALIZATIONS["imagenet"]
Step = Callable[[Tensor, Tensor], object]


def training_of(backbone: str, **values: Any) -> FinetuneConfig:
    """The training both do: AdamW, the gradients clipped together, every parameter trained."""
    optim = OptimConfig(
        optimizer="adamw",
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        global_clipnorm=CLIPNORM,
    )
    model = ModelConfig(backbone=backbone, init="he")
    return FinetuneConfig(
        data="", model=model, optim=optim, track=TrackConfig(wandb="off"), **values
    )


def plain_step(
    config: FinetuneConfig, device: torch.device, *, all_reduce: bool, capturable: bool = False
) -> Step:
    """The loop of torch's DDP and AMP tutorials, with what speeds it up by the same config.

    Args:
        capturable: as a CUDA graph.
    """
    model = build(config.model.backbone, NUM_CLASSES)
    layout = torch.channels_last if config.compute.channels_last else torch.contiguous_format
    model.to(device=device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    network: nn.Module = DistributedDataParallel(model) if all_reduce else model
    if config.compute.compile:
        network.compile()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, capturable=capturable)
    mean_C, std_C = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    dtype = autocast_dtype(config.compute, device)
    scaler = GradScaler(device.type, enabled=dtype is torch.float16)
    network.train()

    def step(images_BHWC: Tensor, labels_B: Tensor) -> None:
        images_BCHW = ((images_BHWC.float() / 255 - mean_C) / std_C).permute(0, 3, 1, 2)
        if not config.compute.channels_last:
            images_BCHW = images_BCHW.contiguous()
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = F.cross_entropy(network(images_BCHW), labels_B)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIPNORM)
        scaler.step(optimizer)
        scaler.update()

    return step


def our_step(config: FinetuneConfig, worker: WorkerContext) -> Step:
    """What `Training._train_epoch` does for a step, telemetry included."""
    state = TrainState(config, NUM_CLASSES, worker)
    state.initialize()
    state.enter(config.phases[0])
    optimizer = state.optimizer
    assert optimizer is not None
    settings = step_settings(config, worker.device)
    sums = metrics.Sums(
        metrics.TRAIN_SUMS,
        worker.device,
        parts={metrics.STAGE_CLIPPING: metrics.stage_metrics(state.stages)},
    )

    def step(images_BHWC: Tensor, labels_B: Tensor) -> None:
        set_learning_rate(optimizer, LEARNING_RATE)
        torch.manual_seed(0)
        sums.add(
            train_step(
                state.network, optimizer, images_BHWC, labels_B,
                settings=settings, scaler=state.scaler,
            )
        )  # fmt: skip
        state.update_average()

    return step


def random_batch(batch_size: int, size_px: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images_BHWC of noise and labels_B."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, size_px, size_px, 3)
    images_BHWC = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images_BHWC, torch.randint(0, NUM_CLASSES, (batch_size,), generator=generator)
