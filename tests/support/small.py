"""Small trainings and networks, and the processes of their workers."""

from collections import OrderedDict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from trainers.config import FinetuneConfig


def small_training(data: str, out: str, **changes: Any) -> "FinetuneConfig":
    """A training at 32 px: each step of 16 images leaves a row, every other one a checkpoint."""
    from datasets.config import IngestConfig
    from trainers.config import ComputeConfig, FinetuneConfig, TrackConfig

    values: dict[str, Any] = {
        "global_batch_size": 16,
        "checkpoint_every_steps": 2,
        "ingest": IngestConfig(size_px=32, policy="light"),
        "track": TrackConfig(log_every_steps=1),
        "compute": ComputeConfig(precision="fp32"),  # on any CPU the same numbers
    }
    return FinetuneConfig(data=data, out=out, **{**values, **changes})


def with_head(head: "nn.Module", stem: "nn.Module | None" = None) -> "nn.Module":
    """A network of the backbone `toy`: a stem, which is its only stage, and a head."""
    from torch import nn

    return nn.Sequential(OrderedDict(stem=stem or nn.Identity(), fc=head))


def join_gloo(rank: int, folder: str, world_size: int = 2) -> None:
    """Meet the other processes in a folder."""
    from torch import distributed

    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=240),
    )


def living_workers() -> list[int]:
    """Processes of Ray Train's workers in the connected cluster."""
    from ray._private.state import actors  # the public API asks the dashboard, if there is one

    found = actors(actor_state_name="ALIVE").values()
    pids = [actor["Pid"] for actor in found if "TrainWorker" in actor["ActorClassName"]]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
