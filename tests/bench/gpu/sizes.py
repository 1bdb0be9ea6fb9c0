"""How large each part measures: as on a GPU, or tiny, so that a test runs all of it on a CPU."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of all parts."""

    backbone: str = "resnet50"
    size_px: int = 224
    batch_size: int = 256
    block_steps: int = 5
    num_blocks: int = 6
    num_warmups: int = 3
    product_size: int = 8192
    """Rows and columns of the product whose rate is the limit of a step."""
    small_batches: tuple[int, ...] = (8, 32)
    num_classes: int = 16
    images_per_class: int = 300
    render_px: int = 256
    num_decoded: int = 1024
    cores: tuple[int, ...] = (16, 8, 4)
    """Ingest is measured on as many, the most first."""
    epochs: int = 10
    """Of a training whose ingest is measured; the first warms up."""
    num_workers: int = 1
    """Of Ray Train; 0 trains in the process of the benchmark."""
    loader_workers: int | None = None
    """Processes of a DataLoader; default: as many as cores."""
    sweep_backbone: str = "mobilenet_v2"
    num_trials: int = 24
    sweep_epochs: int = 10


TINY = Sizes(
    backbone="lenet5",
    size_px=32,
    batch_size=8,
    block_steps=1,
    num_blocks=2,
    num_warmups=1,
    product_size=64,
    small_batches=(2,),
    num_classes=2,
    images_per_class=12,
    render_px=32,
    num_decoded=8,
    cores=(2,),
    epochs=2,
    num_workers=0,
    loader_workers=0,
    sweep_backbone="lenet5",
    num_trials=2,
    sweep_epochs=1,
)


def find_device() -> torch.device:
    """The GPU, or the CPU where this process sees none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def time_block(step: Callable[[], object], num_steps: int, device: torch.device) -> float:
    """Return the seconds of a step."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(num_steps):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / num_steps


def time_in_turns(
    steps: dict[str, Callable[[], object]], sizes: Sizes, device: torch.device
) -> dict[str, float]:
    """Return the median seconds of each step; they take turns, so that noise hits all."""
    for step in steps.values():
        time_block(step, sizes.num_warmups, device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(sizes.num_blocks):
        for name, step in steps.items():
            seconds[name].append(time_block(step, sizes.block_steps, device))
    return {name: statistics.median(values) for name, values in seconds.items()}
