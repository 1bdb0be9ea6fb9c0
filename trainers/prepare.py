"""Everything that a training needs to know, found once before it starts: `prepare_run`."""

import logging
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.io import storage
from cluster.io.markers import URI, change_marked
from cluster.runtime import Resources, connect
from cluster.scaling import WorkerPlan, in_process, plan_workers
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from datasets.memory import Memory, choose_ingest, open_memory
from datasets.sources import BatchSource, MemorySource, ReadLimits, ShardSource
from trainers.checks import check, check_parts
from trainers.config import FinetuneConfig
from trainers.networks.family import suit
from trainers.networks.precision import choose_precision
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.folder import find_config, find_finished, require_same_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrefixFeatures:
    """The first stages of a network, computed already: features take the place of images."""

    depth: int
    """Stages behind which the network is cut; at most as many as are frozen."""
    sources: dict[str, BatchSource]
    """By split."""
    tensors: str
    """Name of a file with what these stages hold: a checkpoint has only the rest."""


@dataclass(frozen=True, kw_only=True)
class SharedImages:
    """Where trainings get their images from, decided for all of them together."""

    memory: dict[str, Memory] = field(default_factory=dict)
    """By split, where decoded images are kept; empty to decode them every epoch."""
    ingest: str
    """Whether images are streamed or kept in memory, and why."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A checked training; sent to its workers as it is."""

    config: FinetuneConfig
    """Its paths are absolute; `cluster.num_workers` and `compute.precision` are those planned."""
    manifest: Manifest
    workers: WorkerPlan
    limits: ReadLimits = field(default_factory=ReadLimits)
    """Of each stream of batches."""
    memory: dict[str, Memory] = field(default_factory=dict)
    """By split, where decoded images are kept; empty to decode them every epoch."""
    prefix: PrefixFeatures | None = None
    """Features to train on instead of images."""
    ingest: str = ""
    """Whether images are streamed or kept in memory, and why."""
    save_from_s: float | None = None
    """From this time on, in seconds since 1970, each row of metrics comes with a checkpoint."""
    resume: TrainingProgress | None = None
    """Of the latest checkpoint when the run was prepared; None for a new run."""
    result: dict[str, Any] | None = None
    """result.json of a run that has finished already."""

    def source(self, split: str) -> BatchSource:
        """Return where the batches of a split come from."""
        if self.prefix is not None:
            return self.prefix.sources[split]
        facts = {
            "ingest": self.config.ingest,
            "seed": self.config.seed,
            "train": split == self.config.train_on,
        }
        if split in self.memory:
            return MemorySource(**facts, memory=self.memory[split])
        return ShardSource(**facts)


def prepare_run(
    config: FinetuneConfig,
    resources: Resources | None = None,
    *,
    manifest: Manifest | None = None,
    num_concurrent: int = 1,
    prefix: PrefixFeatures | None = None,
    images: SharedImages | None = None,
    lends_images: bool = False,
    here: bool = False,
    save_from_s: float | None = None,
) -> Run:
    """Check a training and find everything it needs: data, workers, ingest, where it resumes.

    The run folder is read, not written. The user's errors are found before a cluster starts.

    Args:
        resources: of the connected cluster; by default connects to `cluster.address`.
        manifest: of the data set, where `check` has passed already.
        num_concurrent: trainings that share the cluster; this one takes its part.
        prefix: features to train on instead of images.
        images: those that trainings share; by default this one has its own.
        lends_images: its own images are kept for trainings that follow.
        here: train in this process, whatever `cluster.num_workers` says.
        save_from_s: as `Run.save_from_s`.

    Raises:
        UserError: naming the field, the value and the remedy.
    """
    config = with_absolute_paths(config)
    before = find_config(config.out)
    config = suit(config, before)
    if here:
        config = replace(config, cluster=in_process(config.cluster))
    resume = checkpoint.latest_progress(config.out)
    if manifest is None:
        manifest = read_manifest(config.data, config.fold)
        check(config, manifest, resumes=resume is not None)
    resources = resources or connect(config.cluster.address)
    workers = plan_training(config, resources, num_concurrent=num_concurrent)
    check_parts(config, workers.num_workers)
    config = replace(
        config,
        cluster=replace(config.cluster, num_workers=workers.num_workers),
        compute=choose_precision(
            config.compute, before.compute if before else None, use_gpu=workers.use_gpu
        ),
    )
    require_same_run(config, before, manifest, resume)
    result = find_finished(config)
    if prefix is not None:
        images = SharedImages(ingest="")
    elif images is None:
        remember, ingest = plan_ingest(config, manifest, resources, workers)
        remember = remember and result is None
        memory = open_memory(manifest, shared=lends_images) if remember else {}
        images = SharedImages(memory=memory, ingest=ingest)
    return Run(
        config=config,
        manifest=manifest,
        workers=workers,
        limits=plan_limits(
            config, resources, workers, num_concurrent=num_concurrent, remember=bool(images.memory)
        ),
        memory=images.memory,
        prefix=prefix,
        ingest=images.ingest,
        save_from_s=save_from_s,
        resume=resume,
        result=result,
    )


def plan_training(
    config: FinetuneConfig, resources: Resources, *, num_concurrent: int = 1
) -> WorkerPlan:
    """Plan the workers; where their number is not set, as many as can share the global batch.

    A lone worker of a cluster that this process started is this process: DDP has nothing to do, and
    to start Ray Train takes longer than a short training.
    """
    plan = plan_workers(resources, config.cluster, num_concurrent=num_concurrent)
    if config.cluster.num_workers is not None:
        return plan
    if plan.use_gpu and num_concurrent == 1 and plan.num_workers < resources.num_gpus:
        logger.warning(
            "%d of %d GPUs are idle: a worker on each needs a CPU, and the cluster has %d; start "
            "it with more CPUs",
            resources.num_gpus - plan.num_workers,
            resources.num_gpus,
            int(resources.num_cpus),
        )
    num_workers = min(plan.num_workers, config.global_batch_size)
    if num_workers == 1 and resources.started_here and config.cluster.min_workers is None:
        num_workers = 0
    cluster = replace(config.cluster, num_workers=num_workers)
    return plan_workers(resources, cluster, num_concurrent=num_concurrent)


def plan_ingest(
    config: FinetuneConfig,
    manifest: Manifest,
    resources: Resources,
    workers: WorkerPlan,
    *,
    num_concurrent: int = 1,
    num_trainings: int = 1,
) -> tuple[bool, str]:
    """Decide whether decoded images stay in memory of the planned workers, and say why.

    Args:
        workers: of each training.
        num_concurrent: trainings at a time; they share one copy of the images.
        num_trainings: trainings in all that share it.

    Raises:
        UserError: where `ingest` is memory and they don't fit.
    """
    store_bytes = _store_bytes(resources, num_concurrent * max(1, workers.num_workers))
    remember, why = choose_ingest(
        config.ingest,
        manifest,
        num_epochs=config.num_epochs * num_trainings,
        budget_bytes=config.ingest.memory_share * store_bytes,
    )
    if num_trainings > 1 and remember:
        why += f", one copy for {num_trainings} trainings"
    if not remember and workers.num_workers > config.ingest.interleave:
        why += (
            f"; {workers.num_workers} workers share {config.ingest.interleave} lanes: less is read "
            f"with --interleave {workers.num_workers}"
        )
    return remember, why


def plan_limits(
    config: FinetuneConfig,
    resources: Resources,
    workers: WorkerPlan,
    *,
    num_concurrent: int = 1,
    remember: bool = False,
) -> ReadLimits:
    """Divide the CPUs and the object store of a training among the streams of its workers.

    Args:
        remember: decoded images stay in the object store.
    """
    processes = max(1, workers.num_workers)
    free_share = 0.8 - config.ingest.memory_share if remember else 0.5
    store_bytes = _store_bytes(resources, processes) / num_concurrent
    return ReadLimits(
        task_cpus=workers.reader_cpus,
        # Both streams of a worker, of train and of val, may take them: they are read in turns.
        stream_cpus=resources.num_cpus / num_concurrent / processes - workers.cpus_per_worker,
        store_bytes=store_bytes * free_share / (2 * processes),
    )


def _store_bytes(resources: Resources, num_workers: int) -> float:
    """Object store of the nodes that workers are on, where blocks are made."""
    nodes_share = min(1.0, num_workers / max(1, resources.num_nodes))
    return resources.object_store_gib * 2**30 * nodes_share


def with_absolute_paths(config: FinetuneConfig) -> FinetuneConfig:
    """Workers run in folders of their own: relative paths would mean something else there."""
    return change_marked(config, URI, storage.absolute)
