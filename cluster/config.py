"""Where a run executes: facts only, standard library alone."""

from dataclasses import dataclass
from typing import Literal

Device = Literal["auto", "cpu", "gpu"]
MAX_WORKERS = 100_000


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The cluster and the share of it one training takes."""

    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""
    num_workers: int | None = None
    """DDP workers of a training. Default: one per GPU, or one per node without GPUs.
    0 trains in the calling process."""
    min_workers: int | None = None
    """Elastic training: begin, and go on, with as few workers as this while nodes are missing.
    Default: all of them."""
    device: Device = "auto"
    """`auto` uses GPUs where the cluster has them."""
    max_failures: int = 3
    """Worker failures a training survives before it gives up. Nodes that are taken away with a
    notice (preemption) are not counted."""
    hang_timeout_s: float = 600.0
    """A worker that neither answers nor joins its peers for so long has failed: more than a step,
    a first batch, or the longest write of a checkpoint takes."""

    def __post_init__(self) -> None:
        if self.num_workers is not None and not 0 <= self.num_workers <= MAX_WORKERS:
            raise ValueError(
                f"cluster.num_workers is {self.num_workers!r}: use 0 (in process) to {MAX_WORKERS}"
            )
        if self.min_workers is not None and not 1 <= self.min_workers <= (self.num_workers or 0):
            raise ValueError(
                f"cluster.min_workers is {self.min_workers!r}: use 1 up to cluster.num_workers "
                f"({self.num_workers!r})"
            )
        if self.device not in ("auto", "cpu", "gpu"):
            raise ValueError(f"cluster.device is {self.device!r}: choose from auto, cpu, gpu")
        if self.max_failures < 0:
            raise ValueError(f"cluster.max_failures is {self.max_failures!r}: use 0 or more")
        if not 1 <= self.hang_timeout_s < float("inf"):
            raise ValueError(
                f"cluster.hang_timeout_s is {self.hang_timeout_s!r}: use 1 second or more"
            )
