"""A worker of a training, as the code that runs in it knows it."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """This process among the workers of its training."""

    rank: int = 0
    world_size: int = 1
    device: torch.device
    threads: int
    """CPU threads to compute with."""
