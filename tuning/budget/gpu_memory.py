"""How many trials share a GPU, by the memory that real steps of each network take.

Ray's fractional GPUs: a trial with a quarter of one computes in its own process, beside three
others. Ray divides no memory, so a fraction is as large as what its trial takes. A trial of DDP
workers has whole GPUs: NCCL refuses two ranks on one.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cluster.runtime import Resources
from cluster.scaling import compute_once
from datasets.manifest import Manifest
from trainers.config import FinetuneConfig
from trainers.heads.grouping import GPU_BYTES, can_stack
from trainers.networks.freezing import is_head_only
from trainers.step.settings import start_computing
from trainers.worker import WorkerContext
from tuning.budget.steps import build_steps, cost_key
from tuning.config import TuningConfig
from tuning.point import training_of
from tuning.sharing.keys import Key, prefix_key
from tuning.sharing.plan import PrefixPlan, SharingPlan
from tuning.space import corners

NUM_STEPS = 3
"""Of training and of evaluation; the optimizer allocates its state in the first."""
HEADROOM = 1.1
"""Times what was measured: fragmented memory, batches that are being copied."""

MemoryReader = Callable[[], tuple[float, float]]
"""Returns the free and all bytes of this process's GPU."""


def read_memory() -> tuple[float, float]:
    """As MemoryReader. A logical GPU of Ray's, which torch doesn't see, has no free memory."""
    return torch.cuda.mem_get_info() if torch.cuda.is_available() else (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """Memory that trials take of a GPU, with CUDA's context and kernels."""

    used_bytes: dict[Key, float]
    """By network and frozen stages."""
    total_bytes: float

    def count_trials(self, key: Key) -> int:
        """Return how many trials of a network fit on a GPU, one at least."""
        return max(1, int(self.total_bytes / (HEADROOM * self.used_bytes[key])))

    def describe(self) -> str:
        """Write what the steps took in one line."""
        sizes = [f"{size / 2**30:.1f}" for size in sorted(self.used_bytes.values())]
        span = sizes[0] if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
        return f"steps take {span} of {self.total_bytes / 2**30:.1f} GiB"


def measure_gpu_memory(
    config: TuningConfig, manifest: Manifest, sharing: SharingPlan, resources: Resources
) -> GpuMemory:
    """Take some steps of each network of the space, in a Ray task that has a GPU for itself; the
    others are taken to be like it."""
    measure = partial(_measure, config, manifest, sharing, read_memory)
    return compute_once(measure, resources, config.base.cluster)


def _measure(
    config: TuningConfig,
    manifest: Manifest,
    sharing: SharingPlan,
    read: MemoryReader,
    threads: int,
    use_gpu: bool,
) -> GpuMemory:
    start_computing(threads)
    device = torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")
    worker = WorkerContext(device=device, threads=threads)
    used: dict[Key, float] = {}
    known: dict[Any, float] = {}
    for point in corners(config.space):
        training = training_of(config.base, point)
        key, prefix, optim = prefix_key(training), sharing.find(training), training.optim
        depth, averages = training.model.freeze_depth, optim.ema_decay is not None
        same = *cost_key(training), depth, prefix is None, optim.optimizer, averages
        if same not in known:
            known[same] = _measure_steps(training, manifest, worker, prefix, read)
        used[key] = max(used.get(key, 0.0), known[same])
    return GpuMemory(used_bytes=used, total_bytes=read()[1])


def _measure_steps(
    training: FinetuneConfig,
    manifest: Manifest,
    worker: WorkerContext,
    prefix: PrefixPlan | None,
    read: MemoryReader,
) -> float:
    """Return the bytes that are used after some steps: torch keeps what it once took, so this is
    the peak; the whole GPU where that is too small."""
    gc.collect()
    torch.cuda.empty_cache()  # of the network before
    try:
        steps = build_steps(training, manifest, worker, prefix)
        for step in (steps.train, steps.evaluate):
            for _ in range(NUM_STEPS):
                step().cpu()  # waits for the device
    except torch.OutOfMemoryError:
        return read()[1]
    free, total = read()
    stacks = prefix is not None and is_head_only(training.model) and can_stack(training)
    return total - free + (GPU_BYTES if stacks else 0)
