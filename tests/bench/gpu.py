"""A step of ours against the plain torch loop on one GPU: python -m tests.bench.gpu.

ResNet50 at 224 px, every parameter trained, by precision, memory format and torch.compile. Both
loops take turns, BLOCK_STEPS at a time; medians over blocks. The limit is the arithmetic of the
network (torch's FLOP counter, forward and backward) at the rate of one large bfloat16 product on
this card: how far a step is from it is its model FLOPs utilization (Chowdhery et al. 2022).
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.report import report, to_row
from tests.bench.steps import NUM_CLASSES, our_step, plain_step, random_batch, training_of
from trainers.config import ComputeConfig, FinetuneConfig
from trainers.feed import WorkerContext
from trainers.networks.backbones import on_meta

BACKBONE, SIZE_PX, BATCH_SIZE = "resnet50", 224, 256
BLOCK_STEPS, NUM_BLOCKS, NUM_WARMUPS = 5, 8, 3
TARGET = 0.95
PRODUCT_SIZE = 8192
COMPUTES = {
    "fp32_nchw": ComputeConfig(precision="fp32", channels_last=False),
    "fp32": ComputeConfig(precision="fp32"),
    "fp16": ComputeConfig(precision="fp16"),
    "bf16_nchw": ComputeConfig(channels_last=False),
    "bf16": ComputeConfig(),
    "bf16_compile": ComputeConfig(compile=True),
}


def time_block(step: Callable[[], object], num_steps: int) -> float:
    """Return the seconds of a step."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(num_steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / num_steps


def flops_per_image() -> int:
    """Count the operations of a forward and a backward pass."""
    model = on_meta(BACKBONE, NUM_CLASSES).train().requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        logits_BK = model(torch.zeros(2, 3, SIZE_PX, SIZE_PX, device="meta"))
        F.cross_entropy(logits_BK, torch.zeros(2, dtype=torch.long, device="meta")).backward()
    return counter.get_total_flops() // 2


def product_rate(device: torch.device) -> float:
    """FLOP/s of a large product in bfloat16."""
    shape = (PRODUCT_SIZE, PRODUCT_SIZE)
    left, right = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [time_block(lambda: left @ right, 10) for _ in range(NUM_BLOCKS)]
    return 2 * PRODUCT_SIZE**3 / statistics.median(seconds[1:])


def bench(name: str, config: FinetuneConfig, device: torch.device, limit: float) -> dict:
    """Return the row of a way to compute; `limit` in images/s."""
    worker = WorkerContext(device=device, threads=1)
    images_BHWC, labels_B = (tensor.to(device) for tensor in random_batch(BATCH_SIZE, SIZE_PX, 0))
    steps = {
        "ours": our_step(config, worker),
        "plain": plain_step(config, device, all_reduce=False),
    }
    warmup_s = {
        key: NUM_WARMUPS * time_block(lambda s=step: s(images_BHWC, labels_B), NUM_WARMUPS)
        for key, step in steps.items()
    }
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(NUM_BLOCKS):
        for key, step in steps.items():
            block = time_block(lambda s=step: s(images_BHWC, labels_B), BLOCK_STEPS)
            seconds[key].append(block)
    ours, plain = (BATCH_SIZE / statistics.median(values) for values in seconds.values())
    print(
        f"{name}: {ours:.0f} images/s, plain {plain:.0f}; the first steps took "
        f"{warmup_s['ours']:.1f} s, plain {warmup_s['plain']:.1f} s; peak memory with both "
        f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB",
        flush=True,
    )
    torch.cuda.reset_peak_memory_stats()
    return to_row(
        f"gpu/train_{name}_vs_plain",
        ours=ours,
        peer=plain,
        limit=limit,
        target=TARGET,
        num_runs=NUM_BLOCKS,
    )


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("error: this process sees no GPU; tests.bench.training measures CPUs")
    device = torch.device("cuda")
    flops, rate = flops_per_image(), product_rate(device)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {flops / 1e9:.1f} GFLOP an "
        f"image, {rate / 1e12:.0f} TFLOP/s in a bfloat16 product",
        flush=True,
    )
    config = training_of(BACKBONE, global_batch_size=BATCH_SIZE)
    report(
        [
            bench(name, replace(config, compute=compute), device, rate / flops)
            for name, compute in COMPUTES.items()
        ]
    )


if __name__ == "__main__":
    main()
