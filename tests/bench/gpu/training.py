"""A step of ours against the plain torch loop on one GPU, every parameter trained.

By precision, memory format and torch.compile; in small batches against a step captured as a CUDA
graph; in DDP over NCCL with one worker; and the test that a step waits for nothing. Loops take
turns. The limit is the arithmetic of the network (torch's FLOP counter, forward and backward) at
the rate of one large bfloat16 product on this card: how far a step is from it is its model FLOPs
utilization (Chowdhery et al. 2022).
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import distributed
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.gpu.sizes import Sizes, find_device, synchronize, time_block, time_in_turns
from tests.bench.report import to_row
from tests.bench.steps import (
    NUM_CLASSES,
    Step,
    our_step,
    plain_step,
    random_batch,
    training_of,
)
from trainers.config import ComputeConfig
from trainers.networks.backbones import on_meta
from trainers.worker import WorkerContext

TARGET = 0.95
GRAPH_TARGET = 0.8
COMPUTES = {
    "bf16": ComputeConfig(precision="bf16"),
    "bf16_nchw": ComputeConfig(precision="bf16", channels_last=False),
    "fp16": ComputeConfig(precision="fp16"),
    "fp32": ComputeConfig(precision="fp32"),
    "fp32_nchw": ComputeConfig(precision="fp32", channels_last=False),
    "bf16_compile": ComputeConfig(precision="bf16", compile=True),
}


@cache
def images_per_s_limit(backbone: str, size_px: int, product_size: int) -> float:
    """Images/s of a step that does its arithmetic at the rate of a large product, bfloat16."""
    model = on_meta(backbone, NUM_CLASSES).train().requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        logits_BK = model(torch.zeros(2, 3, size_px, size_px, device="meta"))
        F.cross_entropy(logits_BK, torch.zeros(2, dtype=torch.long, device="meta")).backward()
    flops, device, shape = counter.get_total_flops() // 2, find_device(), (product_size,) * 2
    left, right = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
    time_block(lambda: left @ right, 3, device)
    rate = 2 * product_size**3 / time_block(lambda: left @ right, 30, device)
    print(
        f"{backbone} at {size_px} px: {flops / 1e9:.3g} GFLOP per image, "
        f"{rate / 1e12:.3g} TFLOP/s in a bfloat16 product of {product_size}",
        flush=True,
    )
    return rate / flops


def bench_precisions(sizes: Sizes, folder: Path) -> Iterator[dict]:
    """Yield a row for each way to compute."""
    for name, compute in COMPUTES.items():
        yield _bench_precision(name, compute, sizes)


def _bench_precision(name: str, compute: ComputeConfig, sizes: Sizes) -> dict:
    device = find_device()
    config = replace(training_of(sizes.backbone, global_batch_size=sizes.batch_size),
                     compute=compute)  # fmt: skip
    batch = [tensor.to(device) for tensor in random_batch(sizes.batch_size, sizes.size_px, 0)]
    steps = {
        "ours": partial(our_step(config, WorkerContext(device=device, threads=1)), *batch),
        "plain": partial(plain_step(config, device, all_reduce=False), *batch),
    }
    warmup_s = {key: time_block(step, 1, device) for key, step in steps.items()}
    seconds = time_in_turns(steps, sizes, device)
    peak_gib = _take_peak_gib(device)
    ours, plain = (sizes.batch_size / value for value in seconds.values())
    print(
        f"{name}: {ours:.0f} images/s, plain {plain:.0f}; the first step took "
        f"{warmup_s['ours']:.1f} s, plain {warmup_s['plain']:.1f} s; peak memory with both "
        f"{peak_gib:.1f} GiB",
        flush=True,
    )
    return to_row(
        f"gpu/train_{name}_vs_plain",
        ours=ours,
        peer=plain,
        limit=images_per_s_limit(sizes.backbone, sizes.size_px, sizes.product_size),
        target=TARGET,
        num_runs=sizes.num_blocks,
    ) | {"first_step_s": warmup_s["ours"], "peak_gib": peak_gib}


def _take_peak_gib(device: torch.device) -> float:
    if device.type != "cuda":
        return 0.0
    peak_gib = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak_gib


def bench_small_batches(sizes: Sizes, folder: Path) -> Iterator[dict]:
    """Yield a row per batch size: our step against the plain one captured as a CUDA graph.

    Launching kernels takes most of a small step; a graph launches all of them at once. The limit
    is that step.
    """
    device = find_device()
    for batch_size in sizes.small_batches:
        config = training_of(sizes.backbone, global_batch_size=batch_size)
        batch = [tensor.to(device) for tensor in random_batch(batch_size, sizes.size_px, 0)]
        plain = plain_step(config, device, all_reduce=False, capturable=device.type == "cuda")
        seconds = time_in_turns(
            {
                "ours": partial(our_step(config, WorkerContext(device=device, threads=1)), *batch),
                "plain": partial(plain_step(config, device, all_reduce=False), *batch),
                "graph": capture(plain, batch, device),
            },
            sizes,
            device,
        )
        ours, eager, graph = (batch_size / value for value in seconds.values())
        row = to_row(
            f"gpu/train_batch_{batch_size}_vs_cuda_graph",
            ours=ours,
            peer=graph,
            limit=graph,
            target=GRAPH_TARGET,
            num_runs=sizes.num_blocks,
        )
        yield row | {"plain_eager": eager}


def capture(step: Step, batch: list[torch.Tensor], device: torch.device) -> Callable[[], object]:
    """Return a replay of a step as a CUDA graph; on a CPU, which has none, the step itself."""
    if device.type != "cuda":
        return partial(step, *batch)
    # As torch's documentation captures a whole network: warmed up on a stream of its own.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(*batch)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*batch)
    return graph.replay


def bench_ddp(sizes: Sizes, folder: Path) -> Iterator[dict]:
    """Yield the row of a DDP step with one worker, over NCCL on a GPU, against plain DDP.

    The limit is the plain step without DDP.
    """
    device = find_device()
    config = training_of(sizes.backbone, global_batch_size=sizes.batch_size)
    batch = [tensor.to(device) for tensor in random_batch(sizes.batch_size, sizes.size_px, 0)]
    with tempfile.TemporaryDirectory(dir=folder) as meeting:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{meeting}/meet",
            rank=0,
            world_size=1,
            timeout=timedelta(seconds=120),
        )
        # With a world of two a network is wrapped in DDP; the group that reduces has one rank.
        worker = WorkerContext(world_size=2, device=device, threads=1)
        seconds = time_in_turns(
            {
                "ours": partial(our_step(config, worker), *batch),
                "ddp": partial(plain_step(config, device, all_reduce=True), *batch),
                "alone": partial(plain_step(config, device, all_reduce=False), *batch),
            },
            sizes,
            device,
        )
        distributed.destroy_process_group()
    ours, ddp, alone = (sizes.batch_size / value for value in seconds.values())
    row = to_row(
        "gpu/train_ddp_vs_plain",
        ours=ours,
        peer=ddp,
        limit=alone,
        target=TARGET,
        num_runs=sizes.num_blocks,
    )
    yield row | {"plain_alone": alone}


def bench_waits(sizes: Sizes, folder: Path) -> Iterator[dict]:
    """Run the test that a step on a GPU waits for nothing; its row counts passed tests."""
    from tests.test_trainers_step import test_a_step_on_a_gpu_waits_for_nothing as test

    if find_device().type != "cuda":
        print("step waits for nothing: not checked, torch can tell on a GPU alone", flush=True)
        return
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
            test()
        error = None
    except RuntimeError as failure:  # torch's, of a call that waits
        error = str(failure).splitlines()[0]
    synchronize(find_device())
    passed = float(error is None)
    print(
        f"step waits for nothing: {error or 'passed'}, {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    row = to_row("gpu/step_waits_for_nothing", ours=passed, peer=1, limit=1, target=1, num_runs=1)
    yield row | {"error": error}
