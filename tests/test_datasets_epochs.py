"""The stream: same pixels anywhere, each image once in evaluation, equal steps in training."""

import numpy as np
import pytest

from datasets.config import IngestConfig
from datasets.epochs import Batch, stream
from datasets.plan import plan_epochs
from datasets.shards import read_manifest

pytestmark = pytest.mark.ray
INGEST = IngestConfig(size_px=32, policy="cars", window_row_groups=2, task_images=16)


def read(
    data: str, *, rank: int = 0, world_size: int = 1, train: bool = True, **options: int
) -> list[Batch]:
    plan = plan_epochs(
        data,
        read_manifest(data),
        INGEST,
        split="train" if train else "val",
        num_epochs=2,
        global_batch_size=8 if train else 3 * world_size,
        seed=7,
        train=train,
        rank=rank,
        world_size=world_size,
        **options,
    )
    return list(stream(plan, INGEST, seed=7, train=train, reader_cpus=0.5))


@pytest.fixture(scope="module")
def alone(ray_cluster: str, easy_data: str) -> list[Batch]:
    return read(easy_data)


@pytest.mark.parametrize("world_size", [2, 4])
def test_pixels_and_order_are_the_same_on_any_number_of_readers(
    alone: list[Batch], easy_data: str, world_size: int
) -> None:
    by_rank = [read(easy_data, rank=rank, world_size=world_size) for rank in range(world_size)]

    assert {len(batches) for batches in by_rank} == {len(alone)}
    for batch, *shares in zip(alone, *by_rank, strict=True):
        for key in ("image", "label", "image_id"):
            np.testing.assert_array_equal(
                batch[key], np.concatenate([share[key] for share in shares])
            )


def test_resume_continues_with_the_next_unseen_image(alone: list[Batch], easy_data: str) -> None:
    resumed = read(easy_data, start_epoch=1, start_step=2)

    for straight, later in zip(alone[6 + 2 :], resumed, strict=True):
        np.testing.assert_array_equal(straight["image"], later["image"])


def test_an_epoch_has_each_training_image_once_in_another_order_and_other_pixels(
    alone: list[Batch],
) -> None:
    first, second = (
        np.concatenate([batch["image_id"] for batch in epoch]) for epoch in (alone[:6], alone[6:])
    )

    assert len(set(first)) == len(first) == 48
    assert set(first) == set(second)
    assert (first != second).any()
    assert not np.array_equal(*(find(epoch, first[0]) for epoch in (alone[:6], alone[6:])))


def find(batches: list[Batch], image_id: int) -> np.ndarray:
    return next(
        image
        for batch in batches
        for image, found in zip(batch["image"], batch["image_id"], strict=True)
        if found == image_id
    )


def test_evaluation_sees_each_image_once_on_three_readers_of_a_prime_count(
    ray_cluster: str, easy_data: str
) -> None:
    seen = np.concatenate(
        [
            batch["image_id"]
            for rank in range(3)
            for batch in read(easy_data, rank=rank, world_size=3, train=False)
        ]
    )

    ids, counts = np.unique(seen, return_counts=True)
    assert len(ids) == read_manifest(easy_data).split("val").num_images == 17
    assert set(counts) == {2}  # two epochs


def test_blocks_are_uint8_and_labels_follow_their_images(alone: list[Batch]) -> None:
    for batch in alone:
        assert batch["image"].dtype == np.uint8
        assert batch["image"].shape == (8, 32, 32, 3)
        # A class is the height of a bright bar, so brightness by row must tell classes apart.
    rows = {
        label: np.mean(
            [
                i.mean((1, 2))
                for b in alone
                for i, at in zip(b["image"], b["label"], strict=True)
                if at == label
            ],
            0,
        )
        for label in range(3)
    }
    assert rows[0].argmax() < rows[1].argmax() < rows[2].argmax()
