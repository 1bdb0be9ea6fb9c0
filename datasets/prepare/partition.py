"""Splits, duplicates and shards, decided by the images' contents only. Pure functions."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

import numpy as np

from datasets.prepare.folds import Unit, assign_folds, list_units
from datasets.prepare.groups import join_groups
from datasets.shards import fold_name

NEAR_TEST = "near duplicate of a test image"
NEAR_VAL = "near duplicate of a validation image"

Kept = dict[tuple[str, int], tuple[int, int]]
"""Split and id of pixels -> id and index of the image that is kept of those."""


def identify(content: bytes) -> int:
    """Return the first 8 bytes of the content's SHA-256 as a non-negative int64."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") & (2**63 - 1)


def assign_splits(
    splits: Sequence[str],
    labels: Sequence[int],
    image_ids: Sequence[int],
    val_fraction: float,
    *,
    pixel_ids: Sequence[int] | None = None,
    groups: Sequence[str | None] | None = None,
    pairs: Sequence[tuple[int, int]] = (),
    drop_near: bool = False,
    num_folds: int | None = None,
) -> tuple[list[str], list[str | None]]:
    """Return each image's final split, and why it is left out (None: it is kept).

    The order and names of the images don't matter. The test split never changes. An image is kept
    once, in one split: in test rather than val, in val rather than train. An image that val or
    train has under two classes is left out. Where the source has no validation split,
    `num_validation` images of each class, those of the lowest ids, move from train to val.

    Args:
        pixel_ids: images of the same number are the same; by default those of the same content.
        groups: images of the same group stay in one split: of a group with test images, those of
            other splits are left out. By default each image is its own; None as well.
        pairs: near duplicates, by index. Those of train stay together where val is cut from it.
        drop_near: leave out images of train and val that are near a test image, and of train that
            are near one of val.
        num_folds: instead of a validation split, cut folds (`fold_name`) from train.
    """
    pixel_ids = image_ids if pixel_ids is None else pixel_ids
    groups = [None] * len(splits) if groups is None else groups
    reasons, kept = _find_reasons(splits, labels, image_ids, pixel_ids, groups)
    pairs = _between_kept(pairs, pixel_ids, kept)
    if drop_near:
        _leave_out_near(reasons, splits, pairs)
    assigned = list(splits)
    if "val" in splits:
        return assigned, reasons
    train = [
        index
        for index, (split, reason) in enumerate(zip(splits, reasons, strict=True))
        if split == "train" and reason is None
    ]
    in_train = set(train)
    joined = join_groups(groups, [pair for pair in pairs if in_train.issuperset(pair)])
    units = list_units(train, joined)
    if num_folds is not None:
        for index, fold in assign_folds(units, labels, image_ids, num_folds).items():
            assigned[index] = fold_name(fold)
        return assigned, reasons
    for index in _choose_validation(units, labels, image_ids, val_fraction):
        assigned[index] = "val"
    return assigned, reasons


def _find_reasons(
    splits: Sequence[str],
    labels: Sequence[int],
    image_ids: Sequence[int],
    pixel_ids: Sequence[int],
    groups: Sequence[str | None],
) -> tuple[list[str | None], Kept]:
    """Return why each image is left out, near duplicates apart, and which image of several with the
    same pixels is kept."""
    ids_of = {name: set[int]() for name in ("train", "val", "test")}
    groups_of = {name: set[object]() for name in ("train", "val", "test")}
    labels_of = defaultdict[tuple[str, int], set[int]](set)
    kept: Kept = {}
    rows = zip(splits, labels, image_ids, pixel_ids, groups, strict=True)
    for index, (split, label, image_id, pixel_id, group) in enumerate(rows):
        ids_of[split].add(pixel_id)
        groups_of[split].add(group)
        labels_of[split, pixel_id].add(label)
        kept[split, pixel_id] = min(
            kept.get((split, pixel_id), (image_id, index)), (image_id, index)
        )

    def find_reason(index: int, split: str, pixel_id: int, group: object) -> str | None:
        if split == "test":
            return None
        if pixel_id in ids_of["test"]:
            return "duplicate of a test image"
        if split == "train" and pixel_id in ids_of["val"]:
            return "duplicate of a validation image"
        if len(labels_of[split, pixel_id]) > 1:
            return "the same image under two classes"
        if kept[split, pixel_id][1] != index:
            return f"duplicate of another {split} image"
        if group is not None and group in groups_of["test"]:
            return "of a group with test images"
        if group is not None and split == "train" and group in groups_of["val"]:
            return "of a group with validation images"
        return None

    reasons = [
        find_reason(index, *facts)
        for index, facts in enumerate(zip(splits, pixel_ids, groups, strict=True))
    ]
    return reasons, kept


def _leave_out_near(
    reasons: list[str | None], splits: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> None:
    """Leave out images near a test image, then images of train near one of val that is kept."""
    both_ways = [*pairs, *(pair[::-1] for pair in pairs)]
    for one, other in both_ways:
        if reasons[one] is None and splits[other] == "test" != splits[one]:
            reasons[one] = NEAR_TEST
    for one, other in both_ways:
        is_val = splits[other] == "val" and reasons[other] is None
        if reasons[one] is None and is_val and splits[one] == "train":
            reasons[one] = NEAR_VAL


def _between_kept(
    pairs: Sequence[tuple[int, int]],
    pixel_ids: Sequence[int],
    kept: Kept,
) -> list[tuple[int, int]]:
    """Return pairs of the images that are kept: `pairs` may name others of the same pixels."""
    copies = defaultdict[int, list[int]](list)
    for (_, pixel_id), (_, index) in kept.items():
        copies[pixel_id].append(index)
    return [
        (one, other)
        for pair in pairs
        for one in copies[pixel_ids[pair[0]]]
        for other in copies[pixel_ids[pair[1]]]
    ]


def _choose_validation(
    units: Sequence[Unit], labels: Sequence[int], image_ids: Sequence[int], val_fraction: float
) -> list[int]:
    """Return the images that move to val, in whole groups: of each class those of the lowest ids,
    as long as every class keeps a training image."""
    counts = Counter(labels[index] for unit in units for index in unit)
    wanted = {label: num_validation(count, val_fraction) for label, count in counts.items()}
    remaining, chosen = counts.copy(), list[int]()
    # Small groups first among the lowest ids of a class would bias val: the order is by id alone.
    for unit in sorted(units, key=lambda unit: min(image_ids[index] for index in unit)):
        taken = Counter(labels[index] for index in unit)
        fits = all(remaining[label] > number for label, number in taken.items())
        needed = any(wanted[label] > 0 for label in taken)
        too_many = any(number > 2 * wanted[label] + 1 for label, number in taken.items())
        if fits and needed and not too_many:
            chosen += unit
            remaining -= taken
            for label, number in taken.items():
                wanted[label] -= number
    return chosen


def describe_missing_validation(
    classes: Sequence[str], train: Sequence[int], val: Sequence[int]
) -> str | None:
    """Describe classes that have training images and no validation image, by images per class;
    None without any."""
    if not any(val):
        return (
            "no validation split, as no class has a training image to spare; train with "
            "`--train-on train+val`, which validates nothing"
        )
    missing = [name for name, a, b in zip(classes, train, val, strict=True) if a and not b]
    if not missing:
        return None
    return f"no validation image of {len(missing)} classes ({shorten(', '.join(missing), 80)})"


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
