"""Folds of cross-validation, decided by the images' contents only. Pure functions."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from textwrap import shorten

from cluster.io.errors import UserError
from datasets.manifest import Manifest

Unit = list[int]
"""Images that stay together, by index."""


def list_units(images: Sequence[int], groups: Sequence[object]) -> list[Unit]:
    """Return the images of each group, and each image without a group on its own."""
    members = defaultdict[object, Unit](list)
    for index in images:
        group = groups[index]
        members[("image", index) if group is None else ("group", group)].append(index)
    return list(members.values())


def assign_folds(
    units: Sequence[Unit], labels: Sequence[int], image_ids: Sequence[int], num_folds: int
) -> dict[int, int]:
    """Return the fold of each image; whatever the order of the units, it is the same.

    Stratified: large units first, each to the fold with the fewest images of its classes. Without
    the images of any fold, each class still has a training image. An image that would break this,
    such as the only one of its class, is in no fold: it always trains.

    Raises:
        UserError: where a fold would be empty.
    """
    units = sorted(units, key=lambda unit: (-len(unit), min(image_ids[i] for i in unit)))
    labels_of = [Counter(labels[index] for index in unit) for unit in units]
    units_of = defaultdict[int, list[int]](list)
    for number, taken in enumerate(labels_of):
        for label in taken:
            units_of[label].append(number)
    of_class = [Counter[int]() for _ in range(num_folds)]
    totals = [0] * num_folds
    fold_of_unit = dict[int, int]()
    for number, taken in enumerate(labels_of):
        if any(len(units_of[label]) == 1 for label in taken):
            continue
        fold = min(
            range(num_folds),
            key=lambda fold: (
                sum(count * of_class[fold][label] for label, count in taken.items()),
                totals[fold],
            ),
        )
        of_class[fold] += taken
        totals[fold] += taken.total()
        fold_of_unit[number] = fold
    for _, numbers in sorted(units_of.items()):  # a unit of several classes may not be spread
        folds = {fold_of_unit.get(number) for number in numbers}
        if len(folds) == 1 and None not in folds:
            del fold_of_unit[numbers[-1]]
    num_filled = len(set(fold_of_unit.values()))
    if num_filled < num_folds:
        raise UserError(
            f"folds is {num_folds}: the training images, in groups that stay together, fill "
            f"{num_filled}; "
            + (f"use at most {num_filled}" if num_filled > 1 else "prepare them without --folds")
        )
    return {index: fold for number, fold in fold_of_unit.items() for index in units[number]}


def describe_folds(manifest: Manifest) -> str:
    """Describe the folds of a data set, and the classes that some of them do not validate."""
    sizes = [fold.num_images for fold in manifest.folds]
    smallest, largest = min(sizes), max(sizes)
    text = f"{len(sizes)} of {smallest}"
    text += f" to {largest} images" if largest > smallest else " images"
    counts = zip(*(fold.class_counts for fold in manifest.folds), strict=True)
    missing = [
        (name, num_folds)
        for name, of_folds in zip(manifest.classes, counts, strict=True)
        if (num_folds := sum(count > 0 for count in of_folds)) < len(sizes)
    ]
    for where, names in (
        ("fewer folds", [name for name, num_folds in missing if num_folds]),
        ("no fold", [name for name, num_folds in missing if not num_folds]),
    ):
        if names:
            listed = shorten(", ".join(names), 80, placeholder=" ...")
            text += f"; {len(names)} of {len(manifest.classes)} classes in {where} ({listed})"
    return text
