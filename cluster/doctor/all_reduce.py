"""How fast two processes add up a tensor, as DDP does after every step."""

import os
import re
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

NUM_FLOATS = 8 * 2**20
NUM_ROUNDS = 5


def time_all_reduce(
    rank: int, world_size: int, address: str, *, use_gpu: bool, timeout_s: float
) -> tuple[float, str | None]:
    """Meet the other ranks at `tcp://address`; return bytes per second, the best of five rounds,
    and NCCL's transport.

    The bytes are those of the tensor, 32 MiB: what DDP would send of a network of 8 million
    parameters. gloo on CPUs, NCCL on GPUs.

    Raises:
        RuntimeError: where the others don't come in time, or the sum is wrong.
    """
    device = torch.device("cuda", 0) if use_gpu else torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "nccl.log")
        if use_gpu:  # a process of Ray's with a GPU runs one task
            os.environ |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": str(log)}
        distributed.init_process_group(
            "nccl" if use_gpu else "gloo",
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        try:
            took_s = min(_time_round(rank, world_size, device) for _ in range(NUM_ROUNDS))
        finally:
            distributed.destroy_process_group()
        transport = find_transport(log.read_text()) if log.exists() else None
    return NUM_FLOATS * 4 / took_s, transport


def find_transport(log: str) -> str | None:
    """Return how NCCL's channels go, by its own log: `P2P/CUMEM`, `SHM/direct`, `NET/Socket/0`."""
    return ", ".join(sorted(set(re.findall(r" via (\S+)", log)))) or None


def _time_round(rank: int, world_size: int, device: torch.device) -> float:
    values_N = torch.full((NUM_FLOATS,), float(rank + 1), device=device)
    distributed.barrier()
    began_s = time.monotonic()
    distributed.all_reduce(values_N)
    total = float(values_N[-1])  # waits for a GPU
    took_s = time.monotonic() - began_s
    if total != world_size * (world_size + 1) / 2:
        raise RuntimeError(f"an all-reduce of {os.getpid()} made {total}, which is not the sum")
    return took_s
