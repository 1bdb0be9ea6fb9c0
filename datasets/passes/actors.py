"""Blocks of images through actors of Ray, each with a network, or through this process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data

from cluster.io.progress import collect
from cluster.scaling import WorkerPlan
from datasets.epochs import EpochsDatasource
from datasets.plan import Chunk
from datasets.sources import BatchSource

_ACTOR_IMAGES = 64
"""An actor takes seconds to start: fewer images are computed sooner by the others."""
_MIN_BLOCK_IMAGES, _MAX_BLOCK_IMAGES, _MAX_BLOCK_BYTES = 16, 256, 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The actors that hold the network, and the resources of tasks and actors."""

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: int
    reader_cpus: float

    @classmethod
    def of(cls, plan: WorkerPlan) -> "Workers":
        return cls(
            num_workers=plan.num_workers,
            cpus_per_worker=plan.cpus_per_worker,
            gpus_per_worker=int(plan.use_gpu),
            reader_cpus=plan.reader_cpus,
        )


def run_chunks(
    chunks: Sequence[Chunk],
    source: BatchSource,
    actor: type,
    arguments: dict[str, Any],
    workers: Workers,
    title: str,
) -> pa.Table:
    """Read each chunk of a prepared data set as one block, and send it through `run_actors`."""
    dataset = ray.data.read_datasource(
        EpochsDatasource([[chunk] for chunk in chunks], source),
        override_num_blocks=len(chunks),
        num_cpus=workers.reader_cpus,
    )
    num_images = sum(chunk.num_images for chunk in chunks)
    return run_actors(dataset, actor, arguments, workers, len(chunks), num_images, title)


def run_here(
    chunks: Sequence[Chunk], source: BatchSource, actor: Callable[[pa.Table], pa.Table], title: str
) -> pa.Table:
    """Do the work of `run_chunks` in this process, for few images: actors take seconds to start."""
    blocks = (actor(block) for chunk in chunks for block in source.read(chunk))
    return collect(blocks, sum(chunk.num_images for chunk in chunks), title)


def run_actors(
    dataset: ray.data.Dataset,
    actor: type,
    arguments: dict[str, Any],
    workers: Workers,
    num_blocks: int,
    num_images: int,
    title: str,
) -> pa.Table:
    """Send each block of images through one of the actors, reporting progress.

    Args:
        actor: constructed with `arguments`; called with a block, it returns a row per image.

    Returns:
        These rows, in any order.
    """
    num_actors = min(workers.num_workers, num_blocks, max(1, num_images // _ACTOR_IMAGES))
    dataset = dataset.map_batches(
        actor,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker,
        fn_constructor_kwargs=arguments,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.target_max_block_size = None  # an actor gets whole blocks
    blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    return collect(blocks, num_images, title)


def choose_block_images(num_images: int, image_bytes: int, num_cpus: int) -> int:
    """Return the images per block: eight blocks per CPU, as all wait for the last one, within
    bounds of images and bytes."""
    at_most = min(_MAX_BLOCK_IMAGES, max(1, _MAX_BLOCK_BYTES // image_bytes))
    wanted = -(-num_images // (8 * num_cpus))
    return min(at_most, max(_MIN_BLOCK_IMAGES, wanted))
