"""The checks that need no network: pure functions of the images' measures."""

from collections.abc import Sequence

import numpy as np

from datasets.audit.findings import Check, Suspect, Table, of_images
from datasets.audit.images import AuditedImages
from datasets.prepare.duplicates.near import find_pairs, hash_image
from datasets.prepare.duplicates.report import Pair, order_pairs

DARK, BRIGHT, FLAT = 80, 242, 20
"""Grey values of 255: an image is dark if 99 percent of its pixels are below DARK, bright if 99
percent are above BRIGHT (CleanVision's bounds), flat if 98 percent are within FLAT."""
TINY_PX = 64
"""Short side; and less than half of the median, so that a data set of small images is fine."""
EXTREME_ASPECT = 3.0
"""Long by short side; and twice the median, so that a data set of panoramas is fine."""
MAX_RATIO = 10.0
"""Images of the largest class by those of the smallest."""
FEW_IMAGES = 10
"""A class with fewer training images is named."""
MAX_SHIFT = 0.1
"""Share of images that would have to change class for two splits to have the same shares."""


def find_unreadable(images: AuditedImages) -> Check:
    reasons = images.table["reason"].to_pylist()
    suspects = [Suspect(image=i, detail=reason) for i, reason in enumerate(reasons) if reason]
    return of_images(
        "unreadable",
        suspects,
        len(images),
        reason="unreadable",
        method="Images whose bytes in the shards are damaged. Prepare the data set again.",
    )


def find_near_duplicates(images: AuditedImages) -> Check:
    """Compare perceptual hashes of all images, and the pixels of those that are close."""
    readable = np.flatnonzero(images.is_readable_N)
    hashes = images.table["hashes"].take(readable).to_pylist()

    def read_thumbnails(indices: np.ndarray) -> dict[int, bytes]:
        decoded = images.read_images(readable[indices])
        return {int(i): hash_image(decoded[int(readable[i])])[1] for i in indices}

    found = find_pairs(hashes, range(len(hashes)), read_thumbnails)
    pairs = [(int(readable[one]), int(readable[other]), score) for one, other, score in found]
    splits = images.splits_N.tolist()
    pairs = order_pairs(pairs, splits)
    num_across = sum(splits[one] != splits[other] for one, other, _ in pairs)
    suspects = [_suspect_pair(images, pair, splits) for pair in pairs]
    return Check(
        name="near duplicates",
        result=f"{len(pairs)} pairs, {num_across} of them across splits" if pairs else "none",
        method=(
            "Images that were compressed again, scaled, mirrored or cropped a little. A training "
            "image that is like a test image makes the test too easy: the list has the one of the "
            "pair that is in train or val, and both where their classes differ. Pairs of one split "
            "and class stay."
        ),
        reason="near duplicate",
        is_fine=not pairs,
        suspects=tuple(suspects),
    )


def _suspect_pair(images: AuditedImages, pair: Pair, splits: Sequence[str]) -> Suspect:
    """The image to leave out: that of train rather than val, of val rather than test."""
    one, other, correlation = pair
    order = ("train", "val", "test")
    if order.index(splits[one]) > order.index(splits[other]):
        one, other = other, one
    labels_N, classes = images.labels_N, images.manifest.classes
    differ = labels_N[one] != labels_N[other]
    detail = f"like {images.table['path'][other].as_py()} ({splits[other]}): {correlation:.2f}"
    if differ:
        detail += f", of class {classes[labels_N[other]]}"
    return Suspect(
        image=one,
        detail=detail,
        others=((other, f"{splits[other]}: {classes[labels_N[other]]}"),),
        is_excluded=bool(differ) or splits[one] != splits[other],
    )


def find_dark(images: AuditedImages) -> Check:
    """Find images that show next to nothing: too dark, too bright, or of one colour."""
    darkest_N, brightest_N = (
        images.table[name].to_numpy().astype(float) for name in ("darkest", "brightest")
    )
    suspects = []
    for i in np.flatnonzero(images.is_readable_N):
        low, high = darkest_N[i], brightest_N[i]
        if high - low < FLAT:
            suspects.append((high - low - 255, i, "nearly one colour"))
        elif high < DARK:
            suspects.append((high, i, f"99 percent of its pixels are below {high:.0f} of 255"))
        elif low > BRIGHT:
            suspects.append((255 - low, i, f"99 percent of its pixels are above {low:.0f} of 255"))
    return of_images(
        "dark or blank",
        [Suspect(image=int(i), detail=detail) for _, i, detail in sorted(suspects)],
        len(images),
        reason="dark or blank",
        method=(
            f"Images whose brightest pixels are below {DARK} of 255, whose darkest are above "
            f"{BRIGHT}, or whose pixels all differ by less than {FLAT}."
        ),
    )


def find_tiny(images: AuditedImages) -> Check:
    short_N = _sides(images).min(0)
    bound = min(TINY_PX, np.nanmedian(short_N) / 2)
    rows = [int(i) for i in np.argsort(short_N, kind="stable") if short_N[i] < bound]
    return of_images(
        "tiny",
        [Suspect(image=i, detail=_describe_size(images, i)) for i in rows],
        len(images),
        reason="tiny",
        method=(
            f"Images whose short side is under {TINY_PX} pixels and under half of the median's. "
            "Enlarged to the size of the network they are blurred."
        ),
    )


def find_extreme_shapes(images: AuditedImages) -> Check:
    sides_2N = _sides(images)
    aspect_N = sides_2N.max(0) / sides_2N.min(0)
    bound = max(EXTREME_ASPECT, 2 * np.nanmedian(aspect_N))
    rows = [int(i) for i in np.argsort(-aspect_N, kind="stable") if aspect_N[i] > bound]
    return of_images(
        "extreme shapes",
        [
            Suspect(image=i, detail=f"{_describe_size(images, i)}: {aspect_N[i]:.1f} to 1")
            for i in rows
        ],
        len(images),
        reason="extreme shape",
        method=(
            f"Images with one side more than {EXTREME_ASPECT:.0f} times the other, and twice the "
            "median's. The square that the network sees has little of them."
        ),
    )


def _sides(images: AuditedImages) -> np.ndarray:
    """Return height and width as `[2, N]`; NaN of unreadable images."""
    return np.stack([images.table[name].to_numpy().astype(float) for name in ("height", "width")])


def _describe_size(images: AuditedImages, row: int) -> str:
    height, width = (images.table[name][row].as_py() for name in ("height", "width"))
    return f"{width} x {height} pixels"


def check_balance(images: AuditedImages) -> Check:
    """Compare the numbers of images of the classes, and their shares in the splits."""
    splits, classes = images.manifest.splits, images.manifest.classes
    first = "train" if "train" in splits else next(iter(splits))
    counts_K = np.array(splits[first].class_counts)
    held_K = counts_K[counts_K > 0]  # a test set may lack classes
    few = np.flatnonzero(counts_K < FEW_IMAGES) if first == "train" else ()
    low, high = held_K.min(), held_K.max()
    bounds = f"{low} to {high}" if low < high else f"{low}"
    parts = [f"{bounds} images of a class in {first}"]
    if len(few):
        have = "1 class has" if len(few) == 1 else f"{len(few)} classes have"
        parts.append(f"{have} under {FEW_IMAGES}")
    shares = {name: _shares(split.class_counts) for name, split in splits.items()}
    shift = {name: abs(of - shares[first]).sum() / 2 for name, of in shares.items()}
    parts += [
        f"shares of classes in {first} and {name} differ by {moved:.0%}"
        for name, moved in shift.items()
        if moved > MAX_SHIFT
    ]
    lines = [
        (classes[k], *(str(split.class_counts[k]) for split in splits.values()))
        for k in np.argsort(counts_K, kind="stable")
    ]
    return Check(
        name="class balance",
        result="; ".join(parts),
        method=(
            f"Of concern: a class with {MAX_RATIO:.0f} times the images of another (train with "
            f"--class-weights balanced), fewer than {FEW_IMAGES} training images, or splits with "
            "other shares of classes."
        ),
        is_fine=bool(high < MAX_RATIO * low) and len(parts) == 1,
        table=Table(header=("class", *splits), lines=tuple(lines)),
    )


def _shares(class_counts: Sequence[int]) -> np.ndarray:
    counts_K = np.array(class_counts, float)
    return counts_K / max(1.0, counts_K.sum())


def run_checks(images: AuditedImages) -> list[Check]:
    """Run every check that needs no network."""
    checks = [find_near_duplicates, find_dark, find_tiny, find_extreme_shapes, check_balance]
    found = [check(images) for check in checks]
    unreadable = find_unreadable(images)
    return found if unreadable.is_fine else [unreadable, *found]
