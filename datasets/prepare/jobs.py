"""The two jobs of `prepare`, cut into tasks: stage the images, fill the shards."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.io.progress import collect
from cluster.io.terminal import count
from datasets.blocks import find_num_cpus, run_blocks
from datasets.manifest import SPLITS, Shard, Split
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import Listing
from datasets.prepare.partition import cut_row_groups
from datasets.prepare.staging import fill_shard, stage_images
from datasets.shards import fold_name

_MIN_TASK_IMAGES, _MAX_TASK_IMAGES = 16, 500


def stage(config: PrepareConfig, listing: Listing, staging: str) -> pa.Table:
    """Run the first job; return STAGED_SCHEMA with split, label, path and, where the source has
    groups, group, a row per image."""
    num_images = len(listing.references)
    references = listing.references.append_column("position", pa.array(np.arange(num_images)))
    num_tasks = max(4 * find_num_cpus(), num_images // _MAX_TASK_IMAGES)
    task_images = max(_MIN_TASK_IMAGES, -(-num_images // num_tasks))
    blocks = [references.slice(i, task_images) for i in range(0, num_images, task_images)]
    staged = run_blocks(blocks, stage_images, read=listing.read, config=config, staging=staging)
    images = collect(staged, num_images, "Preparing images").sort_by("position")
    for name in ("split", "label", "path", "group"):
        if name in references.column_names:
            images = images.append_column(name, references[name])
    return images


def write_shards(
    config: PrepareConfig, images: pa.Table, num_classes: int, identity: str, staging: str
) -> dict[str, Split]:
    """Run the second job: cut each split or fold into shards and fill them."""
    blocks: list[pa.Table] = []
    row_groups: dict[str, tuple[int, ...]] = {}
    counts: dict[str, tuple[int, ...]] = {}
    num_pixels: dict[str, int] = {}
    for split in (*SPLITS, *map(fold_name, range(config.folds or 0))):
        rows = images.filter(pc.field("split") == split)
        if not len(rows):
            continue
        # By content hash: a random order that is always the same, so classes mix in a row group.
        rows = rows.sort_by([("image_id", "ascending"), ("path", "ascending")])
        counts[split] = tuple(np.bincount(rows["label"], minlength=num_classes).tolist())
        num_pixels[split] = int(rows["num_pixels"].to_numpy().sum())
        of_split = _cut_shards(config, rows, split, identity)
        row_groups |= of_split
        blocks += _cut_blocks(rows, of_split)
    size_of: dict[str, int] = {}
    filled = run_blocks(
        blocks, fill_shard, out=config.out, staging=staging, row_group_size=config.row_group_size
    )
    with count("Writing shards", len(images), "images") as advance:
        for written in filled:
            for shard, num_bytes in zip(*written.to_pydict().values(), strict=True):
                size_of[shard] = num_bytes
                advance(sum(row_groups[shard]))
    return {
        split: Split(
            shards=tuple(
                Shard(path=path, row_groups=groups, num_bytes=size_of[path])
                for path, groups in row_groups.items()
                if path.startswith(f"{split}/")
            ),
            class_counts=class_counts,
            num_pixels=num_pixels[split],
        )
        for split, class_counts in counts.items()
    }


def _cut_shards(
    config: PrepareConfig, rows: pa.Table, split: str, identity: str
) -> dict[str, tuple[int, ...]]:
    """Return the images in each row group of each shard of a split, by the shard's path."""
    shards = cut_row_groups(
        len(rows),
        int(rows["num_bytes"].to_numpy().sum()),
        row_group_size=config.row_group_size,
        shard_bytes=config.shard_mib * 2**20,
    )
    return {
        f"{split}/part-{number:05d}-{identity[:12]}.parquet": groups
        for number, groups in enumerate(shards)
    }


def _cut_blocks(rows: pa.Table, row_groups: dict[str, tuple[int, ...]]) -> Iterator[pa.Table]:
    """Yield the rows of each shard, with its path as a column."""
    start = 0
    for path, groups in row_groups.items():
        block = rows.slice(start, sum(groups))
        yield block.append_column("shard", pa.array([path] * len(block)))
        start += sum(groups)
