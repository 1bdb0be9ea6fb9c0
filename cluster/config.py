"""Where a run executes, and how it gets there: facts only, standard library alone."""

import re
from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

from cluster.io.errors import UserError
from cluster.io.markers import NOT_IN_KEY, URI

Device = Literal["auto", "cpu", "gpu"]
MAX_WORKERS = 100_000

SERVER_MAX_MIB = 512
"""What Ray's job server takes of a packed folder."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The cluster and the share of it one training takes."""

    address: Annotated[str | None, NOT_IN_KEY] = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""
    num_workers: int | None = None
    """DDP workers of a training. Default: one per GPU, or one per node without GPUs.
    0 trains in the calling process."""
    min_workers: Annotated[int | None, NOT_IN_KEY] = None
    """Elastic training: begin, and go on, with as few workers as this while nodes are missing.
    Default: all of them."""
    device: Device = "auto"
    """`auto` uses GPUs where the cluster has them."""
    max_failures: Annotated[int, NOT_IN_KEY] = 3
    """Worker failures a training survives before it gives up. Nodes that are taken away with a
    notice (preemption) are not counted."""
    hang_timeout_s: Annotated[float, NOT_IN_KEY] = 600.0
    """A worker that neither answers nor joins its peers for so long has failed, as has a process
    that trains alone and gets no batch: more than a step, a first batch, or two writes of a
    checkpoint take."""

    def __post_init__(self) -> None:
        if self.num_workers is not None and not 0 <= self.num_workers <= MAX_WORKERS:
            raise UserError(
                f"cluster.num_workers is {self.num_workers!r}: use 0 (in process) to {MAX_WORKERS}"
            )
        if self.min_workers is not None and not 1 <= self.min_workers <= (self.num_workers or 0):
            raise UserError(
                f"cluster.min_workers is {self.min_workers!r}: use 1 up to cluster.num_workers "
                f"({self.num_workers!r})"
            )
        if self.device not in ("auto", "cpu", "gpu"):
            raise UserError(f"cluster.device is {self.device!r}: choose from auto, cpu, gpu")
        if self.max_failures < 0:
            raise UserError(f"cluster.max_failures is {self.max_failures!r}: use 0 or more")
        if not 1 <= self.hang_timeout_s < inf:
            raise UserError(
                f"cluster.hang_timeout_s is {self.hang_timeout_s!r}: use 1 second or more"
            )


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What `python -m cluster doctor` looks at."""

    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster started on this machine."""
    data: Annotated[str | None, URI] = None
    """URI of a prepared data set that every node must be able to read."""
    out: Annotated[str | None, URI] = None
    """URI of a folder that every node must be able to write, and see what the others write."""
    json: bool = False
    """Print one JSON object instead of lines, for machines."""
    timeout_s: float = 60.0
    """Seconds a check may take on a node; what takes longer has failed."""

    def __post_init__(self) -> None:
        require_seconds("timeout_s", self.timeout_s)


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """How a command is handed to a cluster's job server."""

    address: str | None = None
    """URL of the job server. Default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."""
    submission_id: str | None = None
    """Name of the job. The same name and command again is the same job: it is followed, not run a
    second time. Default: a new one."""
    wait: bool = True
    """Follow the job's log to its end, and exit as it did; --no-wait only submits."""
    env: tuple[str, ...] = ()
    """NAME=VALUE for every process of the job. Anyone who may look at the cluster sees them:
    secrets are refused."""
    check_versions: bool = True
    """Ask the head which versions it has, and refuse where they aren't those of this machine."""
    max_mib: float = 64.0
    """Refuse to ship a folder larger than this, packed. The job server takes 512 MiB at most."""
    reconnect_s: float = 300.0
    """Seconds to try again when the job server doesn't answer, before the log is given up."""

    def __post_init__(self) -> None:
        require_seconds("reconnect_s", self.reconnect_s)
        if not 0 < self.max_mib < SERVER_MAX_MIB:
            raise UserError(
                f"max_mib is {self.max_mib!r}: use more than 0 and less than {SERVER_MAX_MIB}, "
                "which the job server takes"
            )
        if self.submission_id is not None and not _NAME.fullmatch(self.submission_id):
            shown = "a URI" if "://" in self.submission_id else repr(self.submission_id)
            raise UserError(f"submission_id is {shown}: use letters, digits, - and _")
        for number, pair in enumerate(self.env, start=1):
            if not _ASSIGNMENT.match(pair):  # it may hold a secret, so it is not shown
                raise UserError(
                    f"env: word {number} is not NAME=VALUE; write one as WANDB_PROJECT=thaw"
                )


def require_seconds(field: str, value: float) -> None:
    if not 0 < value < inf:
        raise UserError(f"{field} is {value!r}: use a finite number above zero")
