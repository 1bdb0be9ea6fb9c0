"""What the workers of a training use of their machines: rows for W&B, named as its own client does.

W&B's client measures the machine that it runs on, the driver's; the workers are on others. A row
has means over all workers, so that a thousand of them write no more than one.

    system/cpu.cpu_percent          of all CPUs of a worker's node
    system/memory.memory_percent    of its node
    system/proc.memory.rssMB        of its process
    system/gpu.gpu                  percent of the time in which a kernel ran
    system/gpu.memoryAllocated      percent
    system/gpu.powerWatts, system/gpu.temp
    system/gpu.least                `gpu` of the worker whose GPU is least busy
"""

import threading
from collections.abc import Callable

import torch
from torch import distributed

from cluster.ray_internals import open_gpu, read_node_usage
from trainers.metrics import SYSTEM

PERIOD_S = 2.0
"""Between two samples; an epoch has their mean."""
OF_NODE: tuple[str, ...] = ("cpu.cpu_percent", "memory.memory_percent", "proc.memory.rssMB")
OF_GPU: tuple[str, ...] = ("gpu.gpu", "gpu.memoryAllocated", "gpu.powerWatts", "gpu.temp")
LEAST = "gpu.least"


class UsageMeter:
    """Samples in a thread what this worker uses, until `close`."""

    def __init__(self, world_size: int, device: torch.device) -> None:
        self._world_size, self._device = world_size, device
        self._names = OF_NODE
        self._read_gpu: Callable[[], list[float]] = list
        if device.type == "cuda":
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._names += OF_GPU
            self._read_gpu = open_gpu(f"GPU-{uuid}")
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._sums, self._count = [0.0] * len(self._names), 0
        read_node_usage()  # CPU percentages are those since the call before
        threading.Thread(target=self._follow, name="usage", daemon=True).start()

    def take(self) -> dict[str, float]:
        """Return the means of all workers since the last call. All ranks must call."""
        if not self._count:
            self._sample()
        with self._lock:
            means = [value / self._count for value in self._sums]
            self._sums, self._count = [0.0] * len(self._names), 0
        means_N = torch.tensor(means, device=self._device)
        least_N = means_N.clone()
        if self._world_size > 1:
            distributed.all_reduce(means_N)
            means_N /= self._world_size
            distributed.all_reduce(least_N, distributed.ReduceOp.MIN)
        values = dict(zip(self._names, means_N.tolist(), strict=True))
        if not any(values.get(name) for name in OF_GPU):  # the driver of the GPU has not answered
            values = {name: values[name] for name in OF_NODE}
        else:
            values[LEAST] = float(least_N[self._names.index(OF_GPU[0])])
        return {f"{SYSTEM}{name}": value for name, value in values.items()}

    def close(self) -> None:
        self._closed.set()

    def _follow(self) -> None:
        while not self._closed.wait(PERIOD_S):
            self._sample()

    def _sample(self) -> None:
        values = [*read_node_usage(), *self._read_gpu()]
        with self._lock:
            self._sums = [total + value for total, value in zip(self._sums, values, strict=True)]
            self._count += 1
