"""Configuration of clusters, the doctor and submitted jobs (standard library only)."""

import re
from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal, get_args

from cluster.io.errors import UserError, require, require_at_least, require_choice, require_positive
from cluster.io.markers import NOT_IN_KEY, URI

Device = Literal["auto", "cpu", "gpu"]
MAX_WORKERS = 100_000

SERVER_MAX_MIB = 512
"""The largest package that Ray's job server accepts."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The Ray cluster, and the part of it that one training uses."""

    address: Annotated[str | None, NOT_IN_KEY] = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""
    num_workers: int | None = None
    """DDP workers of a training. Default: one per GPU that a CPU is left for, or one per node
    without GPUs. 0 trains in the calling process."""
    min_workers: Annotated[int | None, NOT_IN_KEY] = None
    """Elastic training: start and continue with at least this many workers while nodes are missing.
    Default: num_workers."""
    device: Device = "auto"
    """`auto` uses GPUs if the cluster has any."""
    max_failures: Annotated[int, NOT_IN_KEY] = 3
    """Worker failures that a training survives. A preemption with a notice is not counted."""
    hang_timeout_s: Annotated[float, NOT_IN_KEY] = 600.0
    """Seconds until a hanging process counts as failed: a worker that answers no health check or
    joins no collective, or a training in one process that gets no batch. Must be longer than a
    step, a first batch, and two writes of a checkpoint."""

    def __post_init__(self) -> None:
        require(
            self.num_workers is None or 0 <= self.num_workers <= MAX_WORKERS,
            "cluster.num_workers",
            self.num_workers,
            f"use 0 (in process) to {MAX_WORKERS}",
        )
        require(
            self.min_workers is None or 1 <= self.min_workers <= (self.num_workers or 0),
            "cluster.min_workers",
            self.min_workers,
            f"use 1 up to cluster.num_workers ({self.num_workers!r})",
        )
        require_choice("cluster.device", self.device, get_args(Device))
        require_at_least("cluster.max_failures", self.max_failures, 0)
        require(
            1 <= self.hang_timeout_s < inf,
            "cluster.hang_timeout_s",
            self.hang_timeout_s,
            "use 1 second or more",
        )


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Options of `python -m cluster doctor`."""

    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster started on this machine."""
    data: Annotated[str | None, URI] = None
    """URI of a prepared data set that every node must be able to read."""
    out: Annotated[str | None, URI] = None
    """URI of a folder that every node must be able to write to, and where it must see the files of
    the others."""
    json: bool = False
    """Print one JSON object instead of lines."""
    timeout_s: float = 60.0
    """Seconds that a check may take on a node; a check that takes longer fails."""

    def __post_init__(self) -> None:
        require_positive("timeout_s", self.timeout_s)


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """Options of `python -m cluster submit`."""

    address: str | None = None
    """URL of the job server. Default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."""
    submission_id: str | None = None
    """Name of the job. The same command with the same name follows the job and does not run it a
    second time. Default: a new name."""
    wait: bool = True
    """Follow the job's log to its end, and exit with its code; --no-wait only submits."""
    env: tuple[str, ...] = ()
    """Environment variables of every process of the job, as NAME=VALUE. The dashboard shows them,
    so secrets are refused."""
    check_versions: bool = True
    """Refuse to submit if the head has other versions of Python and packages than Thaw needs."""
    max_mib: float = 64.0
    """Refuse to send more MiB than this, packed. The job server takes 512 MiB at most."""
    reconnect_s: float = 300.0
    """Seconds to retry while the job server does not answer, before the log is given up."""

    def __post_init__(self) -> None:
        require_positive("reconnect_s", self.reconnect_s)
        require(
            0 < self.max_mib < SERVER_MAX_MIB,
            "max_mib",
            self.max_mib,
            f"use more than 0 and less than {SERVER_MAX_MIB}, the limit of the job server",
        )
        if self.submission_id is not None and not _NAME.fullmatch(self.submission_id):
            shown = "a URI" if "://" in self.submission_id else repr(self.submission_id)
            raise UserError(f"submission_id is {shown}: use letters, digits, - and _")
        for number, pair in enumerate(self.env, start=1):
            if not _ASSIGNMENT.match(pair):  # it may hold a secret, so it is not shown
                raise UserError(
                    f"env: word {number} is not NAME=VALUE; write one as WANDB_PROJECT=thaw"
                )
