"""A step of ours against the plain torch DDP loop: python -m tests.bench.training, `make bench`.

Two processes over gloo, the same network, batch, optimizer and clipping. Both loops live in the
same processes and take turns, BLOCK_STEPS at a time, so that noise hits both; medians over blocks.
The limit is the same step without any all-reduce.
"""

import os
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from tests.bench.report import report, to_row
from tests.bench.steps import our_step, plain_step, random_batch, training_of
from trainers.worker import WorkerContext

WORLD_SIZE = 2
BLOCK_STEPS, NUM_BLOCKS = 6, 12
TARGET = 0.95


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
    device, config = torch.device("cpu"), training_of(backbone)
    images_BHWC, labels_B = random_batch(batch_size, size_px, seed=rank)
    worker = WorkerContext(rank=rank, world_size=WORLD_SIZE, device=device, threads=1)
    steps = {
        "ours": our_step(config, worker),
        "plain": plain_step(config, device, all_reduce=True),
        "limit": plain_step(config, device, all_reduce=False),
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
    return to_row(name, ours=ours, peer=plain, limit=limit, target=TARGET, num_runs=NUM_BLOCKS)


def main() -> None:
    report(
        [
            bench("train/ddp_vs_plain", "resnet50", 96, 8),
            bench("train/ddp_vs_plain_mobilenet", "mobilenet_v2", 224, 8),
        ]
    )


if __name__ == "__main__":
    main()
