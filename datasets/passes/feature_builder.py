"""The Ray Data job that computes features: images -> views -> a network's prefix -> parts.

Tasks read, decode and augment as for training; actors, each with the network loaded once, compute
several depths in one pass and write a part for each. No features return to the driver.

Dimensions: N images, S size in pixels.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.io import storage
from datasets.blocks import FEW_IMAGES, OF_PX
from datasets.config import IngestConfig
from datasets.manifest import Manifest
from datasets.passes.actors import Workers, run_chunks, run_here
from datasets.passes.feature_tasks import Entry, Task, find_parts, plan_tasks
from datasets.passes.features import (
    DTYPE,
    Part,
    View,
    read_view,
    view_uri,
    write_part,
    write_view,
)
from datasets.plan import Chunk
from datasets.read import read_chunk
from datasets.sources import ShardSource

Compute = Callable[[np.ndarray], list[np.ndarray]]
"""uint8 images_NSSC -> for each depth, float32 features `[N, *shape]`."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """Result of a pass."""

    num_images: int = 0
    """Views of images that went through the network."""
    seconds: float = 0.0
    problems: tuple[str, ...] = ()
    """Why entries could not be built, one sentence each."""


def build_features(
    entries: Sequence[Entry],
    *,
    data: str,
    manifest: Manifest,
    ingest: IngestConfig,
    seed: int,
    load: Callable[[], Compute],
    workers: Workers,
) -> Built:
    """Compute the missing views, and again the parts with unreadable images, all depths in one
    pass.

    Args:
        load: returns the computation; called in every actor that computes.
    """
    started_s = time.monotonic()
    for entry in entries:
        text = json.dumps(entry.facts, indent=1).encode()
        storage.write_bytes(storage.join(entry.uri, "facts.json"), text)
    views = {
        (at, n): read_view(entry.uri, n) for at, entry in enumerate(entries) for n in entry.views
    }
    views = {key: view for key, view in views.items() if view is None or view.unreadable}
    if not views:
        return Built()
    tasks = plan_tasks(entries, views, data, manifest, ingest)
    found, left = find_parts(entries, tasks)
    written, num_images = _execute(entries, left, ingest, seed, load, workers)
    problems: list[str] = []
    for (at, number), view in views.items():
        entry = entries[at]
        needed = [t for t in tasks if at in t.entries and t.epoch == number]
        parts = [found.get((at, t.number)) or written.get((at, t.number)) for t in needed]
        if None in parts:
            problems.append(f"{entry.uri}: its features overflow half precision")
            continue
        known = {part.first_row: part for part in view.parts} if view else {}
        by_row = known | {part.first_row: part for part in parts if part}
        if view is None or by_row != known:
            in_order = tuple(by_row[row] for row in sorted(by_row))
            write_view(View(view_uri(entry.uri, number), entry.shape, in_order), entry.facts)
    return Built(
        num_images=num_images,
        seconds=time.monotonic() - started_s,
        problems=tuple(dict.fromkeys(problems)),
    )


def _execute(
    entries: Sequence[Entry],
    tasks: Sequence[Task],
    ingest: IngestConfig,
    seed: int,
    load: Callable[[], Compute],
    workers: Workers,
) -> tuple[dict[tuple[int, int], Part], int]:
    """Run the job; return its parts by entry and task, and the number of images computed."""
    num_images = sum(task.num_images for task in tasks)
    if not tasks:
        return {}, 0
    source, what = ViewSource(ingest=ingest, seed=seed), "Computing features"
    arguments = {
        "load": load,
        "entries": list(entries),
        "tasks": {task.number: task for task in tasks},
    }
    num_pixels = num_images * ingest.size_px**2
    if num_pixels <= FEW_IMAGES * OF_PX**2 and not workers.gpus_per_worker:
        done = run_here(tasks, source, FeatureWriter(**arguments), what)
    else:
        done = run_chunks(tasks, source, FeatureWriter, arguments, workers, what)
    parts: dict[tuple[int, int], Part] = {}
    for text in done["parts"].drop_null().to_pylist():
        number, of_entries = json.loads(text)
        for at, part in of_entries:
            parts[at, number] = Part.from_dict(part)
    kept = (
        t
        for t in tasks
        if t.known and t.known == tuple(parts.get((at, t.number)) for at in t.entries)
    )
    return parts, num_images - sum(task.num_images for task in kept)


class ViewSource(ShardSource):
    """Reads a part's views into one block with the number of its task."""

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        assert isinstance(chunk, Task)
        train = chunk.split == "train"
        (block,) = read_chunk(chunk, ingest=self.ingest, seed=self.seed, train=train)
        yield block.append_column("task", pa.array([chunk.number] * len(block)))


class FeatureWriter:
    """Computes and writes a part for each entry without it. Runs in an actor."""

    def __init__(
        self, *, load: Callable[[], Compute], entries: list[Entry], tasks: dict[int, Task]
    ) -> None:
        self._load, self._entries, self._tasks = load, entries, tasks

    @cached_property
    def _compute(self) -> Compute:
        return self._load()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return a row per image; the first one has the parts, as JSON."""
        task = self._tasks[block["task"][0].as_py()]
        num_unreadable = len(block) - block["read_error"].null_count
        if task.known and all(len(part.unreadable) <= num_unreadable for part in task.known):
            parts = [(at, asdict(part)) for at, part in zip(task.entries, task.known, strict=True)]
        else:
            parts = self._write_parts(task, block)
        facts = [json.dumps([task.number, parts]), *[None] * (len(block) - 1)]
        return pa.table({"task": block["task"], "parts": pa.array(facts, pa.string())})

    def _write_parts(self, task: Task, block: pa.Table) -> list[tuple[int, dict[str, Any]]]:
        """Compute the features of a block; return the part of each entry by its index."""
        outputs = self._compute(block["image"].chunk(0).to_numpy(zero_copy_only=False))
        parts: list[tuple[int, dict[str, Any]]] = []
        for at in task.entries:
            entry = self._entries[at]
            with np.errstate(over="ignore"):
                features = outputs[entry.output].astype(DTYPE)
            if not np.isfinite(features).all():
                continue  # the driver reports the missing part
            part = write_part(
                storage.join(view_uri(entry.uri, task.epoch), task.part_name),
                features,
                block,
                tuple(group.num_rows for group in task.row_groups),
                first_row=task.row_groups[0].first_row,
            )
            parts.append((at, asdict(part)))
        return parts
