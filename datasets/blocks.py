"""Blocks of image references, each a task: on a Ray cluster, or in threads of this process."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from typing import Any

import pyarrow as pa
import ray

from cluster import runtime
from cluster.ray_internals import count_cpus

FEW_IMAGES, OF_PX = 256, 224
"""A process is done with so many, of this size, before Ray's, started for them, have begun."""


def connect_for(num_images: int, address: str | None, imports: tuple[str, ...] = ()) -> None:
    """Connect to Ray, unless it would be started here, for few images.

    Args:
        imports: modules that Ray's workers import at once.
    """
    if num_images <= FEW_IMAGES and runtime.starts_here(address):
        runtime.unwind_on_sigterm()  # as `connect` has it
        return
    import_module("ray.data")  # before `connect`: it sets up the log that `connect` silences
    runtime.start_early(address, imports)
    runtime.connect(address)


def find_num_cpus() -> int:
    """Return how many blocks are worked on at once."""
    return int(ray.cluster_resources()["CPU"]) if ray.is_initialized() else count_cpus()


def run_blocks(
    blocks: list[pa.Table], task: Callable[..., pa.Table], **arguments: Any
) -> Iterator[pa.Table]:
    """Call `task` on every block: in a Ray task each where this process is connected, else in
    threads; yield the results as they come."""
    if not ray.is_initialized():
        with ThreadPoolExecutor(count_cpus()) as threads:
            yield from threads.map(partial(task, **arguments), blocks)
        return
    from ray.data import from_arrow

    dataset = from_arrow(blocks).map_batches(
        task, batch_size=None, batch_format="pyarrow", fn_kwargs=arguments
    )
    dataset.context.enable_progress_bars = False
    # Ray Data takes seconds to learn what a cluster has, and reserves memory for outputs: until
    # then it runs one task at a time. These tasks return no pixels, so nothing needs reserving.
    dataset.context.op_resource_reservation_enabled = False
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
