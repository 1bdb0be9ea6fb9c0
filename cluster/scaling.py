"""How many workers a training gets, and how the CPUs are shared between workers and readers.

Ray Data runs INSIDE the training's workers. Were every CPU reserved by workers, no read task could
ever be scheduled and the stream would hang; so workers reserve half of a training's CPUs at most,
and the other half is left to read tasks. Since no worker reserves more than half of an average
node, a worker group fits on any mix of nodes. Elastic workers on CPUs reserve more: see
`_fill_no_node`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any, TypeVar

import ray

from cluster.config import ClusterConfig
from cluster.entry import ROOT
from cluster.io.errors import UserError
from cluster.runtime import Resources, require_cpus

T = TypeVar("T")

TRIAL_CPUS = 2
"""CPUs that a worker of a sweep's trial computes with: two threads of one training take as many
images/s as two trainings of one thread each, and at the end of a sweep no core is idle."""


@dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """The workers of one training and what each of them reserves."""

    num_workers: int
    """0 trains in the calling process, which then takes one worker's share."""
    use_gpu: bool
    cpus_per_worker: float
    reader_cpus: float
    """What each read task reserves."""
    threads_per_worker: int
    """Threads a worker computes with: workers and readers take turns, so this counts all CPUs."""
    gpus_per_worker: float = 0.0
    """Less than one where a training in the calling process shares a GPU with others."""


def plan_workers(
    resources: Resources, config: ClusterConfig, *, num_concurrent: int = 1
) -> WorkerPlan:
    """Divide the cluster among `num_concurrent` trainings and one of them among its workers.

    Raises:
        UserError: where a GPU is asked and there is none, the workers don't fit, or no CPU is up.
    """
    require_cpus(resources)
    use_gpu = _uses_gpu(resources, config)
    num_workers = config.num_workers
    if num_workers is None:
        num_workers = resources.num_nodes
        if use_gpu:
            num_workers = min(resources.num_gpus, int(resources.num_cpus)) // num_concurrent
        num_workers = max(1, num_workers)
    processes = max(1, num_workers)
    cpus = resources.num_cpus / num_concurrent
    _refuse_too_many(resources, processes, num_concurrent, use_gpu and num_workers > 0)
    node_cpus = resources.num_cpus / max(1, resources.num_nodes)
    share = _round_down(min(cpus / processes, node_cpus) / 2)
    reader_cpus = min(1.0, share) if use_gpu else 0.5
    if config.min_workers is not None and not use_gpu:
        per_node = ceil(processes * num_concurrent / resources.num_nodes)
        share = _fill_no_node(node_cpus, per_node)
        reader_cpus = min(0.5, _round_down(node_cpus - per_node * share))
    return WorkerPlan(
        num_workers=num_workers,
        use_gpu=use_gpu,
        cpus_per_worker=min(1.0, share) if use_gpu else share,
        reader_cpus=reader_cpus,
        threads_per_worker=max(1, floor(min(cpus / processes, node_cpus))),
        gpus_per_worker=_gpu_share(resources, num_workers, num_concurrent) if use_gpu else 0.0,
    )


def compute_once(
    function: Callable[[int, bool], T],
    resources: Resources,
    config: ClusterConfig,
    *,
    here: bool = False,
) -> T:
    """Call `function(threads, use_gpu)` where a worker of a training would compute: in this process
    where it started the cluster for itself, without a GPU; else in a Ray task.

    Args:
        here: in this process on CPUs anyway, as it takes less time than a process to start.
    """
    plan = plan_workers(resources, config)
    if (here or resources.started_here) and not plan.use_gpu:
        return function(int(resources.num_cpus / max(1, resources.num_nodes)), False)
    cpus = 1.0 if plan.use_gpu else plan.cpus_per_worker
    task: Any = ray.remote(num_cpus=cpus, num_gpus=int(plan.use_gpu))(_call)
    return ray.get(task.remote(function, plan.threads_per_worker, plan.use_gpu))


def _call(function: Callable[[int, bool], T], threads: int, use_gpu: bool) -> T:
    # Where another node joins on this machine, Ray replaces the working directory of the job, and
    # older processes are in one that was deleted: torch's compiler can't be imported there.
    os.chdir(ROOT)
    return function(threads, use_gpu)


def max_concurrent_trials(resources: Resources, config: ClusterConfig) -> int:
    """Trainings of a sweep that run side by side without starving each other, at least 1.

    Where `num_workers` is not set, a trial takes one GPU, or TRIAL_CPUS of every node.
    """
    use_gpu = _uses_gpu(resources, config)
    num_workers = config.num_workers
    if num_workers is None:
        num_workers = 1 if use_gpu else resources.num_nodes
    available = resources.num_cpus / TRIAL_CPUS
    if use_gpu:  # each of its workers needs a CPU, too
        available = min(resources.num_gpus, resources.num_cpus)
    return max(1, floor(available / max(1, num_workers)))


def in_process(config: ClusterConfig) -> ClusterConfig:
    """The same config for a training in the calling process."""
    return replace(config, num_workers=0, min_workers=None)


def _uses_gpu(resources: Resources, config: ClusterConfig) -> bool:
    if config.device == "gpu" and resources.num_gpus < 1:
        raise UserError("cluster.device is 'gpu': the cluster has no GPU; use --device cpu or auto")
    return config.device != "cpu" and resources.num_gpus >= 1


def _gpu_share(resources: Resources, num_workers: int, num_concurrent: int) -> float:
    """GPUs of a worker: 1 of several ranks, as NCCL refuses two of them on one GPU; of a training
    in the calling process 1/k, as Ray takes it with four decimals, where k share one."""
    if num_workers > 0:
        return 1.0
    return floor(10_000 / ceil(num_concurrent / resources.num_gpus)) / 10_000


def _refuse_too_many(
    resources: Resources, processes: int, num_concurrent: int, use_gpu: bool
) -> None:
    """A worker needs a CPU (half for itself, half for its reader) and, with GPUs, a GPU."""
    limits = {"CPUs": int(resources.num_cpus)}
    if use_gpu:
        limits["GPUs"] = resources.num_gpus
    for unit, available in limits.items():
        if processes * num_concurrent > available:
            beside = f" in each of {num_concurrent} concurrent trials" if num_concurrent > 1 else ""
            raise UserError(
                f"cluster.num_workers is {processes}{beside}: the cluster has {available} {unit} "
                f"and a worker needs one; use {available // num_concurrent} or fewer"
            )


def _fill_no_node(node_cpus: float, workers_per_node: int) -> float:
    """What a worker reserves where nodes may die: one more would not fit on a node.

    Else the workers of dead nodes would crowd into those that are left, take all their CPUs, and
    hang for want of a read task.
    """
    return _round_down(node_cpus / (workers_per_node + 1)) + 0.01


def _round_down(cpus: float) -> float:
    """Two decimals, never up: rounded up, the last worker would not fit."""
    return floor(cpus * 100) / 100
