"""Plans of data sets of any size: manifests as `prepare` would write them, without images."""

import random

from datasets.config import IngestConfig
from datasets.manifest import Manifest, Shard, Split
from datasets.plan import Plan, plan_epochs
from datasets.prepare.partition import cut_row_groups

ROW_GROUP, SHARD_BYTES = 64, 128 * 2**20  # defaults of PrepareConfig
TASK_IMAGES = IngestConfig().task_images


def paper_manifest(
    num_images: int, *, image_bytes: float = 110e3, row_group_size: int = ROW_GROUP
) -> Manifest:
    """Return the manifest of so many images of a size, in the shards that `prepare` cuts."""
    cut = cut_row_groups(
        num_images,
        int(num_images * image_bytes),
        row_group_size=row_group_size,
        shard_bytes=SHARD_BYTES,
    )
    shards = tuple(
        Shard(
            path=f"train/part-{number:05d}-0123456789ab.parquet",
            row_groups=groups,
            num_bytes=int(sum(groups) * image_bytes),
        )
        for number, groups in enumerate(cut)
    )
    split = Split(shards=shards, class_counts=(num_images,), num_pixels=num_images * 256 * 341)
    return Manifest(
        classes=("car",), splits={"train": split}, num_quarantined=0, fingerprint="f" * 64
    )


def paper_plan(
    manifest: Manifest,
    *,
    rank: int,
    world_size: int,
    worker_batch_size: int,
    interleave: int = IngestConfig().interleave,
    task_images: int = TASK_IMAGES,
) -> Plan:
    """Plan a rank's share of a training on it."""
    return plan_epochs(
        "s3://bucket/data",
        manifest,
        IngestConfig(interleave=interleave, task_images=task_images),
        split="train",
        num_epochs=1,
        global_batch_size=world_size * worker_batch_size,
        seed=0,
        train=True,
        rank=rank,
        world_size=world_size,
    )


def count_reads(
    manifest: Manifest,
    *,
    world_size: int,
    worker_batch_size: int,
    interleave: int,
    task_images: int = TASK_IMAGES,
) -> float:
    """Count how often an image is read for every time it is trained on, over some of the ranks."""
    read = trained = 0
    for rank in random.Random(0).sample(range(world_size), min(world_size, 16)):
        plan = paper_plan(
            manifest,
            rank=rank,
            world_size=world_size,
            worker_batch_size=worker_batch_size,
            interleave=interleave,
            task_images=task_images,
        )
        for number, chunk in enumerate(plan.chunks()):
            if chunk.num_images < plan.task_batches * worker_batch_size:
                continue  # tasks begin small
            read += sum(group.num_rows for group in chunk.row_groups)
            trained += chunk.num_images
            if number > 20:
                break
    return read / trained
