"""Start one training: the single place that builds a TorchTrainer."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import ceil
from operator import attrgetter
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.markers import SET_BY_PHASES, URI, change_marked, marked
from cluster.runtime import WORKER_ENV, Resources, find_resources
from cluster.scaling import WorkerPlan, in_process, plan_workers
from datasets.memory import choose_ingest, open_memory
from datasets.shards import Manifest, read_manifest
from trainers.config import RANDOM, FinetuneConfig, ModelConfig
from trainers.failures import explain_failure, noticing_hangs
from trainers.feed import PrefixFeatures, WorkerContext
from trainers.loop import train, train_loop_per_worker
from trainers.networks.backbones import build, require_size
from trainers.networks.freezing import resolve_depth
from trainers.networks.initializers import initialize, pretrained_available
from trainers.run import checkpoint
from trainers.run.folder import open_run, read_result

logger = logging.getLogger(__name__)

# An elastic run whose nodes died first tries to start as many workers as before: Ray finds a node
# dead about 10 s after its workers, and counts nodes every 20 s. It goes on with fewer after this
# long, read by Ray Train.
START_TIMEOUT_VAR, ELASTIC_START_TIMEOUT_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"
# Worker groups that could not be started, in all of a run. Each node that an elastic run loses or
# gets costs it one or two.
MAX_FAILED_STARTS, ELASTIC_MAX_FAILED_STARTS = 3, 100


def check(config: FinetuneConfig) -> Manifest:
    """Find the user's errors before anything starts: data, network, freeze depth, weights.

    Raises:
        UserError: naming the field, the value and the remedy.
    """
    manifest = read_manifest(config.data)
    for split in ("train", "val"):
        manifest.split(split)
    num_images = manifest.split(config.train_on).num_images
    require(
        config.global_batch_size <= num_images,
        "global_batch_size",
        config.global_batch_size,
        f"there are {num_images} training images; use at most as many",
    )
    for phase in config.phases:
        resolve_depth(config.model.backbone, phase.freeze_depth)
    require_size(
        config.model.backbone, config.ingest.size_px, field="ingest.size_px", training=True
    )
    if config.model.init in RANDOM and config.model.weights is not None:
        logger.warning("model.weights is not used: init %s draws random ones", config.model.init)
    if config.schedule.phases:
        defaults = FinetuneConfig(data="")
        for field in sorted(marked(FinetuneConfig, SET_BY_PHASES)):
            if attrgetter(field)(config) != attrgetter(field)(defaults):
                logger.warning("%s is not used: schedule.phases has its own", field)
    if checkpoint.latest_progress(config.out) is None:  # a resumed run has its weights
        _check_weights(replace(config.model, freeze_depth=0), len(manifest.classes))
    return manifest


@cache
def _check_weights(config: ModelConfig, num_classes: int) -> None:
    """Load pretrained weights once, here, rather than fail in every worker."""
    if config.init in RANDOM:
        return
    if (problem := pretrained_available(config)) is not None:
        raise UserError(problem)
    initialize(build(config.backbone, num_classes), config, seed=0)


def plan_training(
    config: FinetuneConfig, resources: Resources, *, num_concurrent: int = 1
) -> WorkerPlan:
    """Plan the workers; where their number is not set, as many as can share the global batch."""
    plan = plan_workers(resources, config.cluster, num_concurrent=num_concurrent)
    if config.cluster.num_workers is not None:
        return plan
    cluster = replace(config.cluster, num_workers=min(plan.num_workers, config.global_batch_size))
    return plan_workers(resources, cluster, num_concurrent=num_concurrent)


def place_here(
    config: FinetuneConfig, *, num_concurrent: int = 1, prefix: PrefixFeatures | None = None
) -> WorkerContext:
    """Return this process' place, alone: on a GPU where it sees one.

    Raises:
        UserError: where `cluster.device` asks for a GPU that this process doesn't see.
    """
    resources = find_resources()
    plan = plan_workers(resources, in_process(config.cluster), num_concurrent=num_concurrent)
    gpu = plan.use_gpu and torch.cuda.is_available()
    if plan.use_gpu and not gpu:
        require(
            config.cluster.device != "gpu",
            "cluster.device",
            config.cluster.device,
            "this process trains itself and its node has no GPU; use --num-workers 1 or more",
        )
        logger.warning("the cluster has GPUs, but this node has none: computing on its CPUs")
    return WorkerContext(
        device=torch.device("cuda" if gpu else "cpu"),
        **_share(config, resources, plan, num_concurrent, prefix),
    )


def fit(
    config: FinetuneConfig, *, num_concurrent: int = 1, prefix: PrefixFeatures | None = None
) -> dict[str, Any]:
    """Train with DDP on the connected cluster and return result.json.

    The run folder resumes: a finished run returns at once, one that was cut goes on from its latest
    checkpoint. Workers that are killed, or hang, are restarted up to `cluster.max_failures` times.

    Args:
        num_concurrent: trainings that share the cluster; this one takes its part.
        prefix: features to train on instead of images.

    Raises:
        UserError: where the user's config is wrong, or the failure budget is used up.
        ray.train.TrainingFailedError: where it is used up by a bug.
    """
    config = with_absolute_paths(config)
    resources = find_resources()
    plan = plan_training(config, resources, num_concurrent=num_concurrent)
    if plan.num_workers == 0:
        return fit_in_process(config, num_concurrent=num_concurrent, prefix=prefix)
    config = replace(config, cluster=replace(config.cluster, num_workers=plan.num_workers))
    if (result := open_run(config)) is not None:
        return result
    num_workers: int | tuple[int, int] = plan.num_workers
    max_failed_starts = MAX_FAILED_STARTS
    if config.cluster.min_workers is not None:
        num_workers = config.cluster.min_workers, plan.num_workers
        max_failed_starts = ELASTIC_MAX_FAILED_STARTS
        if os.environ.get(START_TIMEOUT_VAR) == WORKER_ENV[START_TIMEOUT_VAR]:  # not the user's
            os.environ[START_TIMEOUT_VAR] = ELASTIC_START_TIMEOUT_S
    share = _share(config, resources, plan, num_concurrent, prefix)
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "config": config.to_dict(),
            "place": share,
        },
        torch_config=TorchConfig(
            backend="nccl" if plan.use_gpu else "gloo",
            timeout_s=ceil(config.cluster.hang_timeout_s),
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=plan.use_gpu,
            resources_per_worker={
                "CPU": plan.cpus_per_worker,
                **({"GPU": 1} if plan.use_gpu else {}),
            },
            placement_strategy="SPREAD",
        ),
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=config.out,
            failure_config=ray.train.FailureConfig(
                max_failures=config.cluster.max_failures,
                controller_failure_limit=max_failed_starts,
            ),
        ),
    )
    try:
        with noticing_hangs(config.cluster.hang_timeout_s):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        if (reason := explain_failure(error, config.cluster, config.out)) is None:
            raise
        raise UserError(reason) from error
    return read_result(config.out)


def fit_in_process(
    config: FinetuneConfig,
    *,
    num_concurrent: int = 1,
    prefix: PrefixFeatures | None = None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Train in this process, reporting each epoch's row, and return result.json.

    No process has to start, which is most of a head-only trial's time. Resumes as `fit` does.
    """
    config = with_absolute_paths(config)
    config = replace(config, cluster=in_process(config.cluster))
    if (result := open_run(config)) is not None:
        return result
    place = place_here(config, num_concurrent=num_concurrent, prefix=prefix)
    train(config, place, report, report_written=True)
    return read_result(config.out)


def plan_ingest(
    config: FinetuneConfig,
    manifest: Manifest,
    resources: Resources,
    plan: WorkerPlan,
    *,
    num_concurrent: int = 1,
) -> tuple[bool, str]:
    """Decide whether decoded images stay in memory of the planned workers, and say why.

    Raises:
        UserError: where `ingest` is memory and they don't fit.
    """
    store_bytes = _store_bytes(resources, plan, num_concurrent)
    remember, why = choose_ingest(
        config.ingest,
        manifest,
        num_epochs=config.num_epochs,
        budget_bytes=config.ingest.memory_share * store_bytes,
    )
    if not remember and plan.num_workers > config.ingest.interleave:
        why += (
            f"; {plan.num_workers} workers share {config.ingest.interleave} lanes: less is read "
            f"with --interleave {plan.num_workers}"
        )
    return remember, why


def _share(
    config: FinetuneConfig,
    resources: Resources,
    plan: WorkerPlan,
    num_concurrent: int,
    prefix: PrefixFeatures | None,
) -> dict[str, Any]:
    """A worker's part of the cluster, as `WorkerContext` takes it."""
    manifest = read_manifest(config.data)
    remember = False
    if prefix is None:
        remember, _ = plan_ingest(config, manifest, resources, plan, num_concurrent=num_concurrent)
    free_share = 0.8 - config.ingest.memory_share if remember else 0.5
    workers_share = 1 / (2 * max(1, plan.num_workers))  # train and val, for every worker
    return {
        "threads": plan.threads_per_worker,
        "reader_cpus": plan.reader_cpus,
        "stream_cpus": _free_cpus(resources, plan, num_concurrent),
        "store_bytes": _store_bytes(resources, plan, num_concurrent) * free_share * workers_share,
        "memory": open_memory(manifest) if remember else {},
        "prefix": prefix,
    }


def _free_cpus(resources: Resources, plan: WorkerPlan, num_concurrent: int) -> float:
    """CPUs that a training leaves to the readers of each of its workers. Both of its streams may
    take them: they are read in turns."""
    processes = max(1, plan.num_workers)
    return resources.num_cpus / num_concurrent / processes - plan.cpus_per_worker


def _store_bytes(resources: Resources, plan: WorkerPlan, num_concurrent: int) -> float:
    """Object store of a training: of the nodes its workers are on, where blocks are made."""
    nodes_share = min(1.0, max(1, plan.num_workers) / max(1, resources.num_nodes))
    return resources.object_store_gib * 2**30 * nodes_share / num_concurrent


def with_absolute_paths(config: FinetuneConfig) -> FinetuneConfig:
    """Workers run in folders of their own: relative paths would mean something else there."""
    return change_marked(config, URI, storage.absolute)
