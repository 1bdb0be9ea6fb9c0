"""The plan alone, without Ray: exact, equal, and small at any number of images."""

import tracemalloc
from itertools import islice

import numpy as np
import pytest

from datasets.config import IngestConfig
from datasets.manifest import Manifest, Shard, Split
from datasets.plan import Plan, plan_epochs

INGEST = IngestConfig(interleave=3, task_images=40)
UNEVEN = (7, 7, 7, 7, 5)


def manifest(*shards: tuple[int, ...]) -> Manifest:
    split = Split(
        shards=tuple(
            Shard(path=f"part-{number}", row_groups=row_groups, num_bytes=1)
            for number, row_groups in enumerate(shards)
        ),
        class_counts=(sum(map(sum, shards)),),
        num_pixels=1,
    )
    return Manifest(
        classes=("a",), splits={"train": split, "val": split}, num_quarantined=0, fingerprint=""
    )


def plan(row_groups: tuple[int, ...], *, train: bool, **options: int) -> Plan:
    return plan_epochs(
        "data",
        manifest(row_groups[:2], row_groups[2:]),
        INGEST,
        split="train" if train else "val",
        num_epochs=options.pop("num_epochs", 1),
        global_batch_size=options.pop("global_batch_size", 12),
        seed=1,
        train=train,
        **options,
    )


def images(plan: Plan) -> list[int]:
    """Number of each image among all of the split, in the order of the plan."""
    return [
        chunk.row_groups[group].first_row + int(row)
        for chunk in plan.chunks()
        for group, row in zip(chunk.group_N, chunk.row_N, strict=True)
    ]


def test_a_row_group_knows_its_shard_and_its_place_there() -> None:
    (chunk,) = plan(UNEVEN, train=False, global_batch_size=33).chunks()

    assert [(g.uri, g.index, g.num_rows, g.first_row) for g in chunk.row_groups] == [
        ("data/part-0", 0, 7, 0),
        ("data/part-0", 1, 7, 7),
        ("data/part-1", 0, 7, 14),
        ("data/part-1", 1, 7, 21),
        ("data/part-1", 2, 5, 28),
    ]


@pytest.mark.parametrize("global_batch_size", [1, 2, 7, 12, 13, 33])
def test_training_takes_each_image_at_most_once_and_drops_less_than_a_global_batch(
    global_batch_size: int,
) -> None:
    seen = images(plan(UNEVEN, train=True, global_batch_size=global_batch_size))

    assert len(seen) == len(set(seen)) == 33 // global_batch_size * global_batch_size
    assert set(seen) <= set(range(33))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 40])
def test_evaluation_takes_each_image_exactly_once(world_size: int) -> None:
    seen = [
        image
        for rank in range(world_size)
        for image in images(
            plan(
                UNEVEN,
                train=False,
                rank=rank,
                world_size=world_size,
                global_batch_size=4 * world_size,
            )
        )
    ]

    assert sorted(seen) == list(range(33))


@pytest.mark.parametrize("world_size", [2, 3, 4, 12])
def test_ranks_share_each_global_batch_in_order(world_size: int) -> None:
    groups = (10,) * 6
    alone = np.reshape(images(plan(groups, train=True)), (5, 12))
    shares = [
        np.reshape(images(plan(groups, train=True, rank=rank, world_size=world_size)), (5, -1))
        for rank in range(world_size)
    ]

    np.testing.assert_array_equal(np.hstack(shares), alone)


def test_a_plan_starts_at_any_step_of_any_epoch() -> None:
    groups = (10,) * 6
    straight = images(plan(groups, train=True, num_epochs=3))
    resumed = images(plan(groups, train=True, num_epochs=3, start_epoch=1, start_step=2))

    assert resumed == straight[60 + 2 * 12 :]


def test_a_batch_takes_the_same_share_from_each_of_several_row_groups() -> None:
    seen = images(plan((60,) * 6, train=True, global_batch_size=12))

    for start in range(0, len(seen), 12):
        _, counts = np.unique(np.array(seen[start : start + 12]) // 60, return_counts=True)
        assert counts.tolist() == [4, 4, 4]


def test_every_epoch_has_another_order() -> None:
    seen = np.reshape(images(plan((20,) * 6, train=True, num_epochs=2)), (2, 120))

    assert sorted(seen[0]) == sorted(seen[1]) == list(range(120))
    assert (seen[0] != seen[1]).mean() > 0.9
    together = [set(epoch[:12] // 20) for epoch in seen]
    assert together[0] != together[1]  # row groups that meet in a batch


def test_the_first_task_is_one_batch_and_later_ones_grow_to_the_limit() -> None:
    sizes = [chunk.num_images for chunk in plan((50,) * 4, train=True, num_epochs=2).chunks()]

    assert sizes[:3] == [12, 24, 36]
    assert max(sizes) == 36  # the largest multiple of 12 in 40


def test_a_batch_larger_than_the_split_is_the_users_error() -> None:
    with pytest.raises(ValueError, match="global_batch_size is 12: train has 10 images"):
        plan((5, 5), train=True)


def test_ranks_without_an_image_of_every_batch_are_the_users_error() -> None:
    with pytest.raises(ValueError, match="give each of the 13 workers an image"):
        plan((50, 50), train=True, world_size=13)


def test_any_number_of_ranks_shares_the_same_batches() -> None:
    """Elastic training: 12 images for 5 ranks are 2, 2, 3, 2 and 3."""
    alone = np.reshape(images(plan((50, 50), train=True)), (8, 12))
    ranks = [
        np.reshape(images(plan((50, 50), train=True, world_size=5, rank=rank)), (8, -1))
        for rank in range(5)
    ]

    assert [of_rank.shape[1] for of_rank in ranks] == [2, 2, 3, 2, 3]
    assert np.array_equal(np.concatenate(ranks, axis=1), alone)


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_a_rank_reads_few_row_groups_more_than_once(world_size: int) -> None:
    """Read amplification stays near one reader's however many there are."""
    reads = np.mean(
        [
            sum(
                group.num_rows
                for chunk in plan_large(64 * 1000, rank=rank, world_size=world_size).chunks()
                for group in chunk.row_groups
            )
            for rank in range(world_size)
        ]
    )

    assert reads * world_size / (64 * 1000) < 2.6


def plan_large(num_images: int, *, rank: int = 0, world_size: int = 1, epochs: int = 1) -> Plan:
    shard = (64,) * 80
    return plan_epochs(
        "s3://bucket/data",
        manifest(*[shard] * (num_images // 64 // 80)),
        IngestConfig(),
        split="train",
        num_epochs=epochs,
        global_batch_size=256,
        seed=0,
        train=True,
        rank=rank,
        world_size=world_size,
    )


def test_a_hundred_million_images_are_planned_in_place() -> None:
    """Arrays of 20 bytes per row group, and chunks one at a time, whatever comes after them."""
    tracemalloc.start()
    plan = plan_large(100_000_000, epochs=1000)
    chunks = list(islice(plan.chunks(), 500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert plan.row_groups.num_images > 99_000_000
    assert peak < 100 * 2**20  # a byte an image
    assert {chunk.num_images for chunk in chunks} == {256}
    assert max(len(chunk.row_groups) for chunk in chunks) <= 16


TRAIN, VAL = (10, 10, 10, 5), (10, 3)
NUM_BOTH = 48


def plan_both(**options: int) -> Plan:
    """Plan 35 training and 13 validation images together, 12 a step."""
    splits = {
        name: Split(
            shards=(Shard(path=f"{name}/part", row_groups=row_groups, num_bytes=1),),
            class_counts=(sum(row_groups),),
            num_pixels=1,
        )
        for name, row_groups in (("train", TRAIN), ("val", VAL))
    }
    both = Manifest(classes=("a",), splits=splits, num_quarantined=0, fingerprint="")
    return plan_epochs(
        "data",
        both,
        INGEST,
        split="train+val",
        num_epochs=2,
        global_batch_size=12,
        seed=1,
        train=True,
        **options,
    )


def test_two_splits_train_together_each_image_once_an_epoch() -> None:
    seen = np.reshape(images(plan_both()), (2, NUM_BOTH))

    assert sorted(seen[0]) == sorted(seen[1]) == list(range(NUM_BOTH))
    assert (seen[0] != seen[1]).mean() > 0.9
    # Validation images, numbered after those of train, come among them.
    assert all(np.flatnonzero(epoch >= sum(TRAIN)).min() < sum(TRAIN) for epoch in seen)
    groups = {group for chunk in plan_both().chunks() for group in chunk.row_groups}
    assert {group.first_row: group.uri for group in groups} == {
        **dict.fromkeys((0, 10, 20, 30), "data/train/part"),
        **dict.fromkeys((35, 45), "data/val/part"),
    }


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batches_of_two_splits(world_size: int) -> None:
    ranks = [
        np.reshape(images(plan_both(rank=rank, world_size=world_size)), (8, -1))
        for rank in range(world_size)
    ]

    assert np.array_equal(np.hstack(ranks), np.reshape(images(plan_both()), (8, 12)))
