"""The Ray Data job that computes features: images -> views -> a network's prefix -> parts.

Tasks read, decode and augment as for training; actors, each with the network loaded once, compute
several depths in one pass and write a part for each. No features return to the driver.

Dimensions: N images, S size in pixels.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from cluster.io import storage
from datasets.blocks import FEW_IMAGES, OF_PX
from datasets.config import IngestConfig
from datasets.manifest import Manifest
from datasets.passes.actors import Workers, choose_block_images, run_chunks, run_here
from datasets.passes.features import (
    DTYPE,
    Part,
    View,
    count_bytes,
    read_part,
    read_view,
    view_uri,
    write_part,
    write_view,
)
from datasets.plan import Chunk, RowGroup, RowGroups
from datasets.read import read_chunk
from datasets.sources import ShardSource

Compute = Callable[[np.ndarray], list[np.ndarray]]
"""uint8 images_NSSC -> for each depth, float32 features `[N, *shape]`."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The features of a split at one depth."""

    uri: str
    facts: dict[str, Any]
    """Written beside the views, for readers; the URI has their hash."""
    shape: tuple[int, ...]
    split: str
    views: tuple[int, ...]
    """Numbers of the views that are needed."""
    output: int
    """Index of the output of the network."""

    @property
    def image_bytes(self) -> int:
        return count_bytes(self.shape)


@dataclass(frozen=True, kw_only=True)
class Task(Chunk):
    """The rows of a part in one view, and the entries without it."""

    number: int
    split: str
    entries: tuple[int, ...]
    """Indices in the list of entries."""

    @property
    def part_name(self) -> str:
        """File name of these rows; other divisions of the rows have other names."""
        return f"part-{self.row_groups[0].first_row:09d}-{self.num_images:06d}.parquet"


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
    """Compute the missing views, all depths in one pass.

    Args:
        load: returns the computation; called once in every actor.
    """
    started_s = time.monotonic()
    for entry in entries:
        text = json.dumps(entry.facts, indent=1).encode()
        storage.write_bytes(storage.join(entry.uri, "facts.json"), text)
    missing = [
        (at, view)
        for at, entry in enumerate(entries)
        for view in entry.views
        if read_view(entry.uri, view) is None
    ]
    if not missing:
        return Built()
    tasks = list(plan_tasks(entries, missing, data, manifest, ingest))
    found, left = _find_parts(entries, tasks)
    written, num_images = _execute(entries, left, ingest, seed, load, workers)
    problems: list[str] = []
    for at, view in missing:
        entry = entries[at]
        needed = [t for t in tasks if at in t.entries and t.epoch == view]
        parts = [found.get((at, t.number)) or written.get((at, t.number)) for t in needed]
        if None in parts:
            problems.append(f"{entry.uri}: its features overflow half precision")
            continue
        whole = View(view_uri(entry.uri, view), entry.shape, tuple(p for p in parts if p))
        write_view(whole, entry.facts)
    return Built(
        num_images=num_images,
        seconds=time.monotonic() - started_s,
        problems=tuple(dict.fromkeys(problems)),
    )


def plan_tasks(
    entries: Sequence[Entry],
    missing: Sequence[tuple[int, int]],
    data: str,
    manifest: Manifest,
    ingest: IngestConfig,
) -> Iterator[Task]:
    """Divide every missing view into parts of whole row groups.

    Args:
        missing: index of an entry, and the missing view.
    """
    wanted: dict[tuple[str, int], list[int]] = {}
    for at, view in missing:
        wanted.setdefault((entries[at].split, view), []).append(at)
    num_images = sum(manifest.split(split).num_images for split, _ in wanted)
    image_bytes = max(3 * ingest.size_px**2, sum(entry.image_bytes for entry in entries))
    block = choose_block_images(num_images, image_bytes, int(ray.cluster_resources()["CPU"]))
    number = 0
    for (split, view), of_entries in wanted.items():
        for groups in _gather(RowGroups(data, manifest.split(split)), block):
            sizes = [group.num_rows for group in groups]
            yield Task(
                epoch=view,
                row_groups=groups,
                group_N=np.repeat(np.arange(len(groups), dtype=np.int32), sizes),
                row_N=np.concatenate([np.arange(size) for size in sizes]),
                number=number,
                split=split,
                entries=tuple(of_entries),
            )
            number += 1


def _gather(row_groups: RowGroups, num_images: int) -> Iterator[tuple[RowGroup, ...]]:
    """Group consecutive row groups of about `num_images` in total."""
    groups: list[RowGroup] = []
    for number in range(len(row_groups)):
        groups.append(row_groups[number])
        if sum(group.num_rows for group in groups) >= num_images:
            yield tuple(groups)
            groups = []
    if groups:
        yield tuple(groups)


def _find_parts(
    entries: Sequence[Entry], tasks: Sequence[Task]
) -> tuple[dict[tuple[int, int], Part], list[Task]]:
    """Find parts of an earlier builder, and the tasks that remain."""
    found: dict[tuple[int, int], Part] = {}
    known: dict[str, set[str]] = {}
    for task, at in ((each, at) for each in tasks for at in each.entries):
        folder = view_uri(entries[at].uri, task.epoch)
        if folder not in known:
            known[folder] = set(storage.list_names(folder))
        if task.part_name in known[folder]:
            part = read_part(storage.join(folder, task.part_name))
            if not part.unreadable:  # an unreadable image may be readable now
                found[at, task.number] = part
    return found, [t for t in tasks if any((at, t.number) not in found for at in t.entries)]


def _execute(
    entries: Sequence[Entry],
    tasks: Sequence[Task],
    ingest: IngestConfig,
    seed: int,
    load: Callable[[], Compute],
    workers: Workers,
) -> tuple[dict[tuple[int, int], Part], int]:
    """Run the job; return its parts by entry and task, and the number of images."""
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
    return parts, num_images


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
        self._compute, self._entries, self._tasks = load(), entries, tasks

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return a row per image; the first one has the parts, as JSON."""
        task = self._tasks[block["task"][0].as_py()]
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
        facts = [json.dumps([task.number, parts]), *[None] * (len(block) - 1)]
        return pa.table({"task": block["task"], "parts": pa.array(facts, pa.string())})
