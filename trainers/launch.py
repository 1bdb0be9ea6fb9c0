"""Start one training: the single place that builds a trainer of Ray's."""

import logging
import os
from collections.abc import Callable
from math import ceil
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig

from cluster.config import ClusterConfig
from cluster.environment import WORKER_ENV
from cluster.io import filesystems
from cluster.io.errors import UserError, require
from cluster.scaling import WorkerPlan
from trainers.failures import EndOnUserError, explain_failure, noticing_hangs
from trainers.loop.loop import train, train_loop_per_worker
from trainers.loop.ray_internals import Trainer
from trainers.prepare import Run
from trainers.run.folder import find_result, read_result, remove_result, write_config
from trainers.run.stop import StoppedByUser, is_stop_requested, withdraw_stop
from trainers.worker import WorkerContext

logger = logging.getLogger(__name__)

# An elastic run whose nodes died first tries to start as many workers as before: Ray finds a node
# dead about 10 s after its workers, and counts nodes every 20 s. It continues with fewer after this
# time, which Ray Train reads.
START_TIMEOUT_VAR, ELASTIC_START_TIMEOUT_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"
# Worker groups that may fail to start, in the whole run. Each node that an elastic run loses or
# gains costs one or two.
MAX_FAILED_STARTS, ELASTIC_MAX_FAILED_STARTS = 3, 100


def fit(run: Run) -> dict[str, Any]:
    """Train with DDP on the connected cluster and return result.json.

    A finished run returns at once; an interrupted one resumes from its latest checkpoint. Workers
    that die or hang are restarted up to `cluster.max_failures` times.

    Raises:
        UserError: where the failure budget is used up, the run stops early with an error, or a
            worker meets an error of the user's, which a restart would meet again.
        StoppedByUser: where the run was asked to stop.
        KeyboardInterrupt: at Ctrl-C, once the workers have ended.
        ray.train.TrainingFailedError: where the failure budget is used up by a bug.
    """
    if run.workers.num_workers == 0:
        return fit_in_process(run)
    if run.result is not None:
        return run.result
    _begin(run)
    config, max_failed_starts = run.config, MAX_FAILED_STARTS
    if config.cluster.min_workers is not None:
        max_failed_starts = ELASTIC_MAX_FAILED_STARTS
        _shorten_start_timeout()
    trainer = Trainer(
        train_loop_per_worker,
        train_loop_config={
            "config": config.to_dict(),  # shown in Ray's dashboard
            "run": ray.put(run),
        },
        torch_config=TorchConfig(
            backend="nccl" if run.workers.use_gpu else "gloo",
            timeout_s=ceil(config.cluster.hang_timeout_s),
        ),
        scaling_config=_scaling_config(config.cluster, run.workers),
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=filesystems.escape(config.out),
            failure_config=ray.train.FailureConfig(
                max_failures=config.cluster.max_failures,
                controller_failure_limit=max_failed_starts,
            ),
            callbacks=[EndOnUserError()],
        ),
    )
    try:
        with noticing_hangs(config.cluster.hang_timeout_s):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        if (reason := explain_failure(error, config.cluster, config.out)) is None:
            raise
        raise UserError(reason) from error
    return _read_end(config.out)


def _begin(run: Run) -> None:
    """Write the config that it trains with; the request and the result of an earlier end go."""
    withdraw_stop(run.config.out)
    write_config(run.config)
    remove_result(run.config.out)


def _read_end(run: str) -> dict[str, Any]:
    if find_result(run) is None and is_stop_requested(run):
        raise StoppedByUser
    return read_result(run)


def _scaling_config(cluster: ClusterConfig, workers: WorkerPlan) -> ray.train.ScalingConfig:
    num_workers: int | tuple[int, int] = workers.num_workers
    if cluster.min_workers is not None:
        num_workers = cluster.min_workers, workers.num_workers
    return ray.train.ScalingConfig(
        num_workers=num_workers,
        use_gpu=workers.use_gpu,
        resources_per_worker={
            "CPU": workers.cpus_per_worker,
            **({"GPU": 1} if workers.use_gpu else {}),
        },
        placement_strategy="SPREAD",
    )


def _shorten_start_timeout() -> None:
    if os.environ.get(START_TIMEOUT_VAR) == WORKER_ENV[START_TIMEOUT_VAR]:  # not the user's
        os.environ[START_TIMEOUT_VAR] = ELASTIC_START_TIMEOUT_S


def fit_in_process(
    run: Run, *, report: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Train in this process and return result.json.

    No process has to start, which is most of a head-only trial's time. Resumes as `fit` does.

    Args:
        run: prepared with `here`, or with `cluster.num_workers` 0.
        report: gets each epoch's row once that and the checkpoint are written; without it, no epoch
            waits for the writes of the one before.
    """
    assert run.workers.num_workers == 0, "prepare_run(here=True) plans a training in this process"
    if run.result is not None:
        return run.result
    _begin(run)
    worker = worker_here(run.config.cluster, run.workers)
    train(run, worker, report or (lambda row: None), report_written=report is not None)
    return _read_end(run.config.out)


def worker_here(cluster: ClusterConfig, workers: WorkerPlan) -> WorkerContext:
    """Return the context of this process as the only worker: on a GPU where it sees one.

    Raises:
        UserError: where `cluster.device` asks for a GPU that this process doesn't see.
    """
    gpu = workers.use_gpu and torch.cuda.is_available()
    if workers.use_gpu and not gpu:
        require(
            cluster.device != "gpu",
            "cluster.device",
            cluster.device,
            "the training runs in this process, whose node has no GPU; use --num-workers 1 or more",
        )
        logger.warning("the cluster has GPUs, but this node has none: computing on its CPUs")
    if gpu and workers.gpus_per_worker < 1:
        # Ray divides no memory: who needs more than planned fails, not the others on this GPU.
        torch.cuda.set_per_process_memory_fraction(workers.gpus_per_worker)
    return WorkerContext(
        device=torch.device("cuda" if gpu else "cpu"), threads=workers.threads_per_worker
    )
