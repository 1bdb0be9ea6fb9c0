"""A step of ours against the plain torch DDP loop: python -m tests.bench.training, `make bench`.

Two processes over gloo, the same network, batch, optimizer and clipping. Both loops live in the
same processes and take turns, BLOCK_STEPS at a time, so that noise hits both; medians over blocks.
The limit is the same step without any all-reduce.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from tests.bench.report import report
from trainers import metrics
from trainers.backbones import build
from trainers.config import (
    NORMALIZATIONS,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    TrackConfig,
)
from trainers.feed import Place
from trainers.optim import set_learning_rate
from trainers.state import TrainState
from trainers.step import StepSettings, train_step

WORLD_SIZE, NUM_CLASSES = 2, 196
BLOCK_STEPS, NUM_BLOCKS = 6, 12
TARGET = 0.95
MEAN, STD = NORMALIZATIONS["imagenet"]
Step = Callable[[Tensor, Tensor], object]


def plain_step(backbone: str, *, all_reduce: bool) -> Step:
    """The loop of torch's DDP tutorial, channels last, its gradients clipped together."""
    model = build(backbone, NUM_CLASSES).to(memory_format=torch.channels_last)  # pyright: ignore
    network: nn.Module = DistributedDataParallel(model) if all_reduce else model
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    mean_C, std_C = torch.tensor(MEAN), torch.tensor(STD)
    network.train()

    def step(images_BHWC: Tensor, labels_B: Tensor) -> None:
        images_BCHW = ((images_BHWC.float() / 255 - mean_C) / std_C).permute(0, 3, 1, 2)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images_BCHW), labels_B)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def our_step(backbone: str, rank: int) -> Step:
    """What `Training._train_epoch` does for a step, telemetry included."""
    config = FinetuneConfig(
        data="",
        model=ModelConfig(backbone=backbone, init="he"),
        optim=OptimConfig(
            optimizer="adamw", learning_rate=1e-4, weight_decay=0.01, global_clipnorm=1.0
        ),
        track=TrackConfig(wandb="off"),
    )
    place = Place(
        rank=rank, world_size=WORLD_SIZE, device=torch.device("cpu"), threads=1, reader_cpus=1
    )
    state = TrainState(config, NUM_CLASSES, place)
    state.initialize()
    state.enter(config.phases[0])
    optimizer = state.optimizer
    assert optimizer is not None
    settings = StepSettings(mean=MEAN, std=STD, optim=config.optim)
    sums = metrics.Sums(
        metrics.TRAIN_SUMS,
        "cpu",
        parts={metrics.STAGE_CLIPPING: metrics.stage_metrics(state.stages)},
    )

    def step(images_BHWC: Tensor, labels_B: Tensor) -> None:
        set_learning_rate(optimizer, 1e-4)
        torch.manual_seed(0)
        sums.add(
            train_step(
                state.network, optimizer, images_BHWC, labels_B,
                settings=settings, scaler=state.scaler,
            )
        )  # fmt: skip
        state.update_average()

    return step


def measure(rank: int, folder: str, backbone: str, size_px: int, batch_size: int) -> None:
    """Time the steps on one rank; rank 0 writes images/s of each."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=WORLD_SIZE,
        timeout=timedelta(seconds=300),
    )
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORLD_SIZE))
    generator = torch.Generator().manual_seed(rank)
    shape = (batch_size, size_px, size_px, 3)
    images_BHWC = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels_B = torch.randint(0, NUM_CLASSES, (batch_size,), generator=generator)
    steps = {
        "ours": our_step(backbone, rank),
        "plain": plain_step(backbone, all_reduce=True),
        "limit": plain_step(backbone, all_reduce=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(NUM_BLOCKS + 1):
        for name, step in steps.items():
            distributed.barrier()
            start = time.perf_counter()
            for _ in range(BLOCK_STEPS):
                step(images_BHWC, labels_B)
            distributed.barrier()
            if block:  # the first warms up
                seconds[name].append((time.perf_counter() - start) / BLOCK_STEPS)
    if rank == 0:
        rates = (WORLD_SIZE * batch_size / statistics.median(values) for values in seconds.values())
        Path(folder, "rates").write_text(" ".join(map(str, rates)))
    distributed.destroy_process_group()


def bench(name: str, backbone: str, size_px: int, batch_size: int) -> dict:
    """Return the row of a network at a size, with `batch_size` images a process."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(measure, (folder, backbone, size_px, batch_size), nprocs=WORLD_SIZE)
        ours, plain, limit = map(float, Path(folder, "rates").read_text().split())
    return {
        "name": name,
        "ours": ours,
        "peer": plain,
        "ratio": ours / plain,
        "target": TARGET,
        "limit_fraction": ours / limit,
        "runs": NUM_BLOCKS,
    }


def main() -> None:
    report(
        [
            bench("train/ddp_vs_plain", "resnet50", 96, 8),
            bench("train/ddp_vs_plain_mobilenet", "mobilenet_v2", 224, 8),
        ]
    )


if __name__ == "__main__":
    main()
