"""`python -m datasets bench`: the cost of each stage of ingest, and the cores that feed a GPU."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from rich.table import Table

from cluster.io.errors import UserError
from cluster.io.terminal import literal_console
from datasets.augment import augment, view
from datasets.config import IngestConfig, Policy
from datasets.decode import decode
from datasets.epochs import stream
from datasets.manifest_file import read_manifest
from datasets.plan import Chunk, Plan, plan_epochs
from datasets.read import name_row, read_chunk, rows_of_shards
from datasets.sources import ShardSource

GPU_RATES = (3000, 7000)
"""Images/s of ResNet50 on a modern GPU: trained in bfloat16, and mostly frozen."""
BATCH_SIZE = 64
REMEDIES = {
    "read": "use faster storage, or prepare with a smaller --short-side-px",
    "decode": "use --ingest memory, or prepare with a smaller --short-side-px",
    "augment": "use --policy light",
    "transport": "use a smaller --size-px",
}


def bench(data: str, *, policy: Policy, size_px: int, seconds: float) -> dict[str, float]:
    """Print and return seconds per image and core of each stage, and `stream`, images/s of all.

    Raises:
        UserError: where there is no data set, or it has unreadable images.
    """
    ingest = IngestConfig(policy=policy, size_px=size_px)
    manifest = read_manifest(data)
    plan = plan_epochs(
        data,
        manifest,
        ingest,
        split="train",
        num_epochs=10_000,
        global_batch_size=min(BATCH_SIZE, manifest.split("train").num_images),
        seed=0,
        train=True,
    )
    costs = time_stages(plan, ingest)
    rate, first_batch_s = time_stream(plan, ingest, seconds)
    _show(costs, rate, first_batch_s)
    return {**costs, "stream": rate}


def time_stages(plan: Plan, ingest: IngestConfig) -> dict[str, float]:
    """Return seconds per image of each stage, on one core of this process: medians of 5 chunks."""
    chunks = plan.chunks()
    _time_chunk(next(chunks), ingest, plan.seed)  # files, decoders and policies are opened once
    samples = [_time_chunk(next(chunks), ingest, plan.seed) for _ in range(5)]
    return {stage: float(np.median([s[stage] for s in samples])) for stage in samples[0]}


def _time_chunk(chunk: Chunk, ingest: IngestConfig, seed: int) -> dict[str, float]:
    """Return seconds per image of each stage for one chunk."""
    start = time.perf_counter()
    rows = list(rows_of_shards(chunk))
    read_s = time.perf_counter() - start
    for row in rows:
        if row.read_error:
            raise UserError(
                f"data has images that can't be read, such as {name_row(chunk, row.index)}: "
                f"{row.read_error}; prepare it again"
            )

    def time_views(draw: Callable[..., np.ndarray], images: list[Any]) -> float:
        start = time.perf_counter()
        for row, image in zip(rows, images, strict=True):
            key = {"seed": seed, "epoch": 0, "image_id": row.image_id}
            draw(image, ingest.policy, ingest.size_px, **key)
        return time.perf_counter() - start

    jpegs = [row.jpeg for row in rows]
    augment_s = time_views(augment, [decode(jpeg) for jpeg in jpegs if jpeg is not None])
    view_s = time_views(view, jpegs)
    (block,) = read_chunk(chunk, ingest=ingest, seed=seed, train=True)
    start = time.perf_counter()
    taken: pa.Table = ray.get(ray.put(block))
    transport_s = time.perf_counter() - start
    assert len(taken) == len(rows)
    return {
        "read": read_s / len(rows),
        "decode": max(0.0, view_s - augment_s) / len(rows),  # at the scale that the crop allows
        "augment": augment_s / len(rows),
        "transport": transport_s / len(rows),
    }


def time_stream(plan: Plan, ingest: IngestConfig, seconds: float) -> tuple[float, float]:
    """Return images/s of the whole stream on this cluster, and seconds to its first batch."""
    start = time.perf_counter()
    batches = stream(plan, ShardSource(ingest=ingest, seed=plan.seed, train=True))
    next(batches)
    first_batch_s = time.perf_counter() - start
    start, num_images = time.perf_counter(), 0
    for batch in batches:
        num_images += len(batch["label"])
        if (passed := time.perf_counter() - start) >= seconds:
            return num_images / passed, first_batch_s
    raise AssertionError("the plan has 10,000 epochs")


def _show(costs: dict[str, float], rate: float, first_batch_s: float) -> None:
    total_s = sum(costs.values())
    table = Table("stage", "ms per image", "images/s per core", "share")
    for stage, cost_s in [*costs.items(), ("all", total_s)]:
        table.add_row(
            stage, f"{1e3 * cost_s:.2f}", f"{1 / max(cost_s, 1e-9):.0f}", f"{cost_s / total_s:.0%}"
        )
    console = literal_console()
    console.print(table)
    console.print(
        f"stream  {rate:.0f} images/s on this cluster, first batch in {first_batch_s:.1f} s"
    )
    for wanted in GPU_RATES:
        without_decode = total_s - costs["decode"] - costs["read"]
        console.print(
            f"cores   {wanted * total_s:.1f} feed a GPU at {wanted} images/s, "
            f"{wanted * without_decode:.1f} with --ingest memory"
        )
    slowest = max(costs, key=costs.__getitem__)
    console.print(f"to fix  {slowest}: {REMEDIES[slowest]}")
