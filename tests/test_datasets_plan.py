"""The plan alone, without Ray: exact, equal, and flat in the number of images."""

from dataclasses import replace

import numpy as np
import pytest

from datasets.config import IngestConfig
from datasets.plan import Plan, plan_epochs, rows_in_order
from datasets.shards import Manifest, Shard, Split

INGEST = IngestConfig(window_row_groups=3, task_images=40)


def manifest(row_groups: tuple[int, ...]) -> Manifest:
    split = Split(
        shards=(Shard(path="part", row_groups=row_groups, num_bytes=1),),
        class_counts=(sum(row_groups),),
    )
    return Manifest(
        classes=("a",), splits={"train": split, "val": split}, num_quarantined=0, fingerprint=""
    )


def plan(row_groups: tuple[int, ...], *, train: bool, **options: int) -> Plan:
    return plan_epochs(
        "data",
        manifest(row_groups),
        INGEST,
        split="train" if train else "val",
        num_epochs=options.pop("num_epochs", 1),
        global_batch_size=options.pop("global_batch_size", 12),
        seed=1,
        train=train,
        **options,
    )


def images(plan: Plan, *, train: bool) -> list[tuple[int, int]]:
    """(row group, row) of each image, in the order of the plan."""
    found = []
    for chunk in plan.chunks:
        order = rows_in_order(chunk, seed=1, shuffle=train)
        places = [(g.index, row) for g in chunk.row_groups for row in range(g.num_rows)]
        found += [places[order[p - chunk.start]] for r in chunk.ranges for p in r]
    return found


def test_training_takes_each_image_at_most_once_and_drops_less_than_a_global_batch() -> None:
    seen = images(plan((7, 7, 7, 7, 5), train=True), train=True)

    assert len(seen) == len(set(seen)) == 24  # of 33, in batches of 12


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 40])
def test_evaluation_takes_each_image_exactly_once(world_size: int) -> None:
    row_groups = (7, 7, 7, 7, 5)
    seen = [
        image
        for rank in range(world_size)
        for image in images(
            plan(
                row_groups,
                train=False,
                rank=rank,
                world_size=world_size,
                global_batch_size=4 * world_size,
            ),
            train=False,
        )
    ]

    assert sorted(seen) == [(g, row) for g, size in enumerate(row_groups) for row in range(size)]


def test_rows_are_mixed_within_windows_and_windows_change_with_the_epoch() -> None:
    two = plan((6,) * 6, train=True, num_epochs=2, global_batch_size=6)
    seen = images(two, train=True)
    first, second = seen[:36], seen[36:]

    windows = [{group for group, _ in epoch[:18]} for epoch in (first, second)]
    assert all(len(window) == 3 for window in windows)  # a window is three row groups
    assert windows[0] != windows[1]
    assert len({group for group, _ in first[:6]}) > 1  # a batch mixes them


def test_the_first_task_is_one_batch_and_later_ones_grow_to_the_limit() -> None:
    sizes = [chunk.num_images for chunk in plan((50,) * 4, train=True, num_epochs=2).chunks]

    assert sizes[:3] == [12, 24, 36]
    assert max(sizes) == 36  # the largest multiple of 12 in 40


def test_a_batch_larger_than_the_split_is_the_users_error() -> None:
    with pytest.raises(ValueError, match="global_batch_size is 12: train has 10 images"):
        plan((10,), train=True)


def test_ranks_that_cannot_share_a_batch_are_the_users_error() -> None:
    with pytest.raises(ValueError, match="multiple of the 5 workers"):
        plan((100,), train=True, world_size=5)


def test_a_task_names_only_the_row_groups_of_its_windows() -> None:
    many = plan((64,) * 3000, train=True, global_batch_size=64)

    assert max(len(chunk.row_groups) for chunk in many.chunks) <= 2 * INGEST.window_row_groups
    assert replace(many.chunks[0]) == many.chunks[0]
    assert np.sum([chunk.num_images for chunk in many.chunks]) == 64 * 3000
