"""Divides the features that the cache lacks into parts of whole row groups, one task each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from cluster.io import storage
from datasets.config import IngestConfig
from datasets.manifest import Manifest
from datasets.passes.actors import choose_block_images
from datasets.passes.features import Part, View, count_bytes, read_part, view_uri
from datasets.plan import Chunk, RowGroup, RowGroups


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
    known: tuple[Part, ...] = ()
    """The part of each entry, where an earlier pass could not read all of its images."""

    @property
    def part_name(self) -> str:
        """File name of these rows; other divisions of the rows have other names."""
        return f"part-{self.row_groups[0].first_row:09d}-{self.num_images:06d}.parquet"


def plan_tasks(
    entries: Sequence[Entry],
    views: Mapping[tuple[int, int], View | None],
    data: str,
    manifest: Manifest,
    ingest: IngestConfig,
) -> list[Task]:
    """Divide each missing view into parts. Of a view with unreadable images, plan their parts
    again, as the images may be readable now.

    Args:
        views: by index of the entry and number of the view; None where it is missing.
    """
    missing: dict[tuple[str, int], list[int]] = {}
    incomplete: dict[tuple[str, int, int, tuple[int, ...]], list[tuple[int, Part]]] = {}
    for (at, number), view in views.items():
        split = entries[at].split
        if view is None:
            missing.setdefault((split, number), []).append(at)
            continue
        for part in view.parts:
            if part.unreadable:
                rows = split, number, part.first_row, part.row_groups
                incomplete.setdefault(rows, []).append((at, part))
    row_groups = {s: RowGroups(data, manifest.split(s)) for s in {e.split for e in entries}}
    tasks: list[Task] = []
    block = _choose_block_images(entries, missing, manifest, ingest)
    for (split, number), of_entries in missing.items():
        for groups in _gather(row_groups[split], block):
            tasks.append(_make_task(len(tasks), split, number, groups, tuple(of_entries)))
    for (split, number, first_row, sizes), of_parts in incomplete.items():
        groups = _find_groups(row_groups[split], first_row, sizes)
        at, known = zip(*of_parts, strict=True)
        tasks.append(_make_task(len(tasks), split, number, groups, at, known))
    return tasks


def _choose_block_images(
    entries: Sequence[Entry],
    missing: Mapping[tuple[str, int], list[int]],
    manifest: Manifest,
    ingest: IngestConfig,
) -> int:
    num_images = sum(manifest.split(split).num_images for split, _ in missing)
    image_bytes = max(3 * ingest.size_px**2, sum(entry.image_bytes for entry in entries))
    return choose_block_images(num_images, image_bytes, int(ray.cluster_resources()["CPU"]))


def _make_task(
    number: int,
    split: str,
    view: int,
    groups: tuple[RowGroup, ...],
    entries: tuple[int, ...],
    known: tuple[Part, ...] = (),
) -> Task:
    sizes = [group.num_rows for group in groups]
    return Task(
        epoch=view,
        row_groups=groups,
        group_N=np.repeat(np.arange(len(groups), dtype=np.int32), sizes),
        row_N=np.concatenate([np.arange(size) for size in sizes]),
        number=number,
        split=split,
        entries=entries,
        known=known,
    )


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


def _find_groups(
    row_groups: RowGroups, first_row: int, sizes: tuple[int, ...]
) -> tuple[RowGroup, ...]:
    """Return the row groups of a part."""
    start = int(np.searchsorted(row_groups.first_rows, first_row))
    groups = tuple(row_groups[start + number] for number in range(len(sizes)))
    assert tuple(group.num_rows for group in groups) == sizes, "the key has the fingerprint"
    return groups


def find_parts(
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
