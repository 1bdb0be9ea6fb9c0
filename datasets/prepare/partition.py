"""Splits, duplicates and shards, decided by the images' contents only. Pure functions."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np


def identify(content: bytes) -> int:
    """Return the first 8 bytes of the content's SHA-256 as a non-negative int64."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") & (2**63 - 1)


def assign_splits(
    splits: Sequence[str], labels: Sequence[int], image_ids: Sequence[int], val_fraction: float
) -> tuple[list[str], list[str | None]]:
    """Return each image's final split, and why it is left out (None: it is kept).

    The order and names of the images don't matter. The test split never changes. An image is kept
    once, in one split: in test rather than val, in val rather than train. An image that val or
    train has under two classes is left out. Where the source has no validation split,
    `num_validation` images of each class, those of the lowest ids, move from train to val.
    """
    ids_of = {"train": set[int](), "val": set[int](), "test": set[int]()}
    labels_of = defaultdict[tuple[str, int], set[int]](set)
    for split, label, image_id in zip(splits, labels, image_ids, strict=True):
        ids_of[split].add(image_id)
        labels_of[split, image_id].add(label)

    reasons: list[str | None] = []
    seen = set[tuple[str, int]]()
    for split, image_id in zip(splits, image_ids, strict=True):
        reason = None
        if split != "test":
            if image_id in ids_of["test"]:
                reason = "duplicate of a test image"
            elif split == "train" and image_id in ids_of["val"]:
                reason = "duplicate of a validation image"
            elif len(labels_of[split, image_id]) > 1:
                reason = "the same image under two classes"
            elif (split, image_id) in seen:
                reason = f"duplicate of another {split} image"
            seen.add((split, image_id))
        reasons.append(reason)

    assigned = list(splits)
    if not ids_of["val"]:
        train_of_class = defaultdict[int, list[tuple[int, int]]](list)
        for index, (split, reason) in enumerate(zip(splits, reasons, strict=True)):
            if split == "train" and reason is None:
                train_of_class[labels[index]].append((image_ids[index], index))
        for images in train_of_class.values():
            for _, index in sorted(images)[: num_validation(len(images), val_fraction)]:
                assigned[index] = "val"
    return assigned, reasons


def num_validation(num_images: int, val_fraction: float) -> int:
    """Return how many images of a class go to val: at least one of two or more, and never all."""
    return max(0, min(max(1, round(val_fraction * num_images)), num_images - 1))


def tally_reasons(reasons: Sequence[str]) -> str:
    """Count the reasons, the most frequent first, as text; the detail after a colon is dropped."""
    kinds = Counter(reason.split(":")[0] for reason in reasons)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def cut_row_groups(
    num_images: int, num_bytes: int, *, row_group_size: int, shard_bytes: int
) -> list[tuple[int, ...]]:
    """Return the row groups of each shard of a split; shards differ by at most one row group."""
    full, rest = divmod(num_images, row_group_size)
    groups = [row_group_size] * full + [rest] * (rest > 0)
    num_shards = max(1, min(len(groups), -(-num_bytes // shard_bytes)))
    return [tuple(map(int, part)) for part in np.array_split(groups, num_shards)]


def fingerprint(
    classes: Sequence[str], images: Sequence[tuple[str, int, int]], pixel_options: dict[str, Any]
) -> str:
    """Hash everything that a training on the data depends on.

    Args:
        images: split, image id and label of every image, in any order.
    """
    content = json.dumps([list(classes), sorted(images), pixel_options], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
