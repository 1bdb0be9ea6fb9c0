"""What the workers of a training use of their machines: rows for W&B, as its own client names it.

W&B's client measures the machine that it runs on, the driver's; the workers are on others. R is a
worker's rank.

    system/cpu.R.cpu_percent          of all CPUs of its node
    system/memory.R.memory_percent    of its node
    system/proc.R.memory.rssMB        of its process
    system/gpu.R.gpu                  percent of the time in which a kernel ran
    system/gpu.R.memoryAllocated      percent
    system/gpu.R.powerWatts, system/gpu.R.temp
"""

import threading
from collections.abc import Callable

import torch
from torch import distributed

from cluster.ray_internals import open_gpu, read_node_usage
from trainers.metrics import SYSTEM

PERIOD_S = 2.0
"""Between two samples; an epoch has their mean."""
OF_NODE = ("cpu.{}.cpu_percent", "memory.{}.memory_percent", "proc.{}.memory.rssMB")
OF_GPU = ("gpu.{}.gpu", "gpu.{}.memoryAllocated", "gpu.{}.powerWatts", "gpu.{}.temp")


class UsageMeter:
    """Samples in a thread what this worker uses, until `close`."""

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        self._rank, self._world_size, self._device = rank, world_size, device
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
        means_RN = torch.zeros(self._world_size, len(self._names), device=self._device)
        means_RN[self._rank] = torch.tensor(means)
        if self._world_size > 1:
            distributed.all_reduce(means_RN)  # each has zeros in place of the others'
        return {
            f"{SYSTEM}{name.format(rank)}": value
            for rank, values in enumerate(means_RN.tolist())
            for name, value in zip(self._names, values, strict=True)
            if name in OF_NODE or any(values[len(OF_NODE) :])  # the driver has answered
        }

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
