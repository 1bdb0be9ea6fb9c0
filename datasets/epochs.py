"""All epochs of a run as one Ray Data stream per rank.

A read task reads, decodes and augments, and yields one uint8 block of whole batches; one execution
streams all epochs, so no epoch starts cold. A long run is divided into executions of
EXECUTION_TASKS, each started while the last blocks of the previous one are read: the memory of Ray
Data does not grow with images and epochs. Normalization and the change to channels-first are done
on the device.

Dimensions: N images of a batch, S size in pixels.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import TypedDict

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, Datasource, ExecutionOptions
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from datasets.plan import Chunk, Plan
from datasets.ray_internals import bound_store, end_threads_at_exit, give_share, let_tasks_end
from datasets.read import read_task
from datasets.sources import BatchSource, ReadLimits

EXECUTION_TASKS, AHEAD_TASKS, TASK_CHUNKS = 512, 32, 4
LABEL_BYTES = 16
"""Of an image's label and image_id."""
UNLIMITED = ReadLimits()


class Batch(TypedDict):
    image: np.ndarray
    """uint8 `[N, S, S, 3]`, RGB; or features, float16 `[N, *shape]`."""
    label: np.ndarray
    """int64 `[N]`; IGNORE_INDEX where the image could not be read."""
    image_id: np.ndarray
    """int64 `[N]`."""
    unreadable: list[str]
    """Names of the unreadable images, with the reason."""


class EpochsDatasource(Datasource):
    """The chunks of a plan as Ray Data read tasks, one block for each chunk."""

    def __init__(self, tasks: list[list[Chunk]], source: BatchSource) -> None:
        super().__init__()
        self._tasks, self._read = tasks, source.read
        self._bytes_per_image = source.bytes_per_image + LABEL_BYTES

    def estimate_inmemory_data_size(self) -> int:
        return sum(map(count_images, self._tasks)) * self._bytes_per_image

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        assert per_task_row_limit is None, "a limit on rows would break batches apart"
        return [
            ReadTask(
                partial(read_task, chunks, self._read),
                BlockMetadata(
                    num_rows=count_images(chunks),
                    size_bytes=count_images(chunks) * self._bytes_per_image,
                    input_files=None,
                    exec_stats=None,
                ),
            )
            for chunks in self._tasks
        ]


def count_images(chunks: list[Chunk]) -> int:
    return sum(chunk.num_images for chunk in chunks)


def divide_chunks(
    chunks: list[Chunk], *, bytes_per_image: int, num_parallel: int, store_bytes: float
) -> list[list[Chunk]]:
    """Divide consecutive chunks into tasks, which each begin with a process that waits.

    The first tasks are short for a fast first batch, the last ones so that all end together. The
    blocks of the running tasks fill at most half of the store: a task that is not the first waits
    with them for those before.
    """
    block_bytes = max(1, max(chunk.num_images for chunk in chunks) * bytes_per_image)
    largest = min(TASK_CHUNKS, int(store_bytes / 2 / block_bytes / num_parallel))
    tasks, start = [], 0
    while start < len(chunks):
        ramp = 1 + len(tasks) // num_parallel
        share = (len(chunks) - start) // (2 * num_parallel)
        size = max(1, min(largest, ramp, share))
        tasks.append(chunks[start : start + size])
        start += size
    return tasks


def stream(
    plan: Plan, source: BatchSource, limits: ReadLimits = UNLIMITED
) -> Generator[Batch, None, None]:
    """Read a plan from its source and yield its batches in order, through all epochs."""
    if source.in_tasks:
        execute = partial(execute_chunks, source=source, limits=limits)
        blocks = join_executions(plan.chunks(), execute)
    else:
        blocks = chain.from_iterable(map(source.read, plan.chunks()))
    for block in blocks:
        images_N = block["image"].chunk(0).to_numpy(zero_copy_only=False)
        labels_N, image_ids_N = block["label"].to_numpy(), block["image_id"].to_numpy()
        for start in range(0, len(labels_N), plan.worker_batch_size):
            rows = slice(start, start + plan.worker_batch_size)
            yield Batch(
                image=images_N[rows],
                label=labels_N[rows],
                image_id=image_ids_N[rows],
                unreadable=block["read_error"][rows].drop_null().to_pylist(),
            )


def execute_chunks(
    chunks: list[Chunk], *, source: BatchSource, limits: ReadLimits
) -> Iterator[pa.Table]:
    """Yield one block per chunk, in order, by one Ray Data execution."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = None  # a block holds whole batches: never cut it
    total = ray.cluster_resources()
    cpus, store_bytes = limits.stream_cpus, limits.store_bytes
    if cpus is None:
        cpus = total.get("CPU", 0.0)
    if store_bytes is None:
        store_bytes = total.get("object_store_memory", 0.0) / 4
    cpus = max(cpus, limits.task_cpus)
    context.execution_options = ExecutionOptions(preserve_order=True)
    end_threads_at_exit()
    give_share(context, cpus)
    let_tasks_end(context)
    tasks = divide_chunks(
        chunks,
        bytes_per_image=source.bytes_per_image,
        num_parallel=max(1, int(cpus / limits.task_cpus)),
        store_bytes=store_bytes,
    )
    largest = max(map(count_images, tasks)) * source.bytes_per_image
    bound_store(context, store_bytes=store_bytes, task_bytes=largest)
    with DataContext.current(context):  # a data set keeps the context it was made in
        # As many blocks as tasks: with more, Ray splits every output.
        dataset = ray.data.read_datasource(
            EpochsDatasource(tasks, source),
            override_num_blocks=len(tasks),
            num_cpus=limits.task_cpus,
            # Blocks are made on the node that uses them, or elsewhere while it is busy.
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
            fallback_strategy=[{"label_selector": {}}],
        )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


def join_executions(
    chunks: Iterable[Chunk], execute: Callable[[list[Chunk]], Iterator[pa.Table]]
) -> Iterator[pa.Table]:
    """Divide chunks into executions, each started while the previous one still yields."""
    chunks = iter(chunks)
    with ThreadPoolExecutor(1) as pool:

        def start() -> tuple[int, Future[Iterator[pa.Table]]]:
            part = list(islice(chunks, EXECUTION_TASKS))
            return len(part), pool.submit(
                lambda: start_execution(execute(part)) if part else iter(())
            )

        remaining, execution = start()
        while remaining:
            following: tuple[int, Future[Iterator[pa.Table]]] | None = None
            for block in execution.result():
                yield block
                remaining -= 1
                if remaining <= AHEAD_TASKS and following is None:
                    following = start()
            assert following is not None, "an execution yields a block per chunk"
            remaining, execution = following


def start_execution(blocks: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Start the execution, and wait for its first block."""
    first = next(blocks)
    return chain([first], blocks)
