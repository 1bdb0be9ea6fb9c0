"""Where the winner errs: confusion matrix, confused pairs, surest mistakes, and Grad-CAM.

K classes; H x W pixels.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import matplotlib
import numpy as np
import pyarrow as pa

from trainers.evaluation.answers import read_views
from trainers.evaluation.explain import explain, order
from trainers.evaluation.pictures import Explained
from trainers.run import folder as run_folder
from tuning.leaderboard import TrialResult
from tuning.record import SweepRecord
from tuning.review.confusion import draw_confusion
from tuning.review.figure import Chart

NUM_PAIRS, NUM_MISTAKES, NUM_RIGHT = 8, 8, 4
THUMB_PX, QUALITY = 168, 82


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Images of one class that were taken for another."""

    true: str
    predicted: str
    count: int
    num_images: int
    """Of the true class."""
    image: str | None
    """One that was mistaken, as a data URI."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An image, what the winner made of it, and where it looked."""

    true: str
    predicted: str
    confidence: float
    image: str | None
    heats: Sequence[tuple[str, float, str]]
    """A class, its probability and its heat map as a data URI; predicted first, then the true."""


@dataclass(frozen=True, kw_only=True)
class WinnerPredictions:
    """What the winner says to the images of a split."""

    split: str
    num_images: int
    num_correct: int
    confusion: Chart
    pairs: Sequence[ConfusedPair]
    mistakes: Sequence[Shown]
    right: Sequence[Shown]
    missing: str | None
    """Why there are no images, or no heat maps."""


def look_at_answers(sweep: SweepRecord, *, pictures: bool) -> WinnerPredictions | None:
    """Read what the winner said to test images, or to validation images where it was not tested;
    None where nobody asked it."""
    winner = sweep.winner
    if winner is None:
        return None
    split = "val" if sweep.test is None else "test"
    table = sweep.predictions_of(winner, split)
    if table is None:
        return None
    rows: list[dict[str, Any]] = table.to_pylist()
    classes, confusion_KK = _confuse(table)
    surest, right = order(rows, "mistakes", 0), order(rows, "confident", 0)[:NUM_RIGHT]
    pairs = _find_pairs(confusion_KK)
    examples = [
        next(row for row in surest if (row["label"], row["predicted"]) == (classes[a], classes[b]))
        for a, b in pairs
    ]
    mistakes = surest[:NUM_MISTAKES]
    shown = [*examples, *mistakes, *right]
    images, heats, missing = _picture(sweep, winner, split, shown, len(pairs), pictures=pictures)
    cards = [
        Shown(
            true=row["label"],
            predicted=row["predicted"],
            confidence=row["confidence"],
            image=images[len(pairs) + at],
            heats=heats[at] if heats else (),
        )
        for at, row in enumerate([*mistakes, *right])
    ]
    return WinnerPredictions(
        split="test" if split == "test" else "validation",
        num_images=len(rows),
        num_correct=int(confusion_KK.trace()),
        confusion=draw_confusion(confusion_KK, classes),
        pairs=[
            ConfusedPair(
                true=classes[a],
                predicted=classes[b],
                count=int(confusion_KK[a, b]),
                num_images=int(confusion_KK[a].sum()),
                image=image,
            )
            for (a, b), image in zip(pairs, images, strict=False)
        ],
        mistakes=cards[: len(mistakes)],
        right=cards[len(mistakes) :],
        missing=missing,
    )


def _picture(
    sweep: SweepRecord,
    winner: TrialResult,
    split: str,
    rows: Sequence[dict[str, Any]],
    num_plain: int,
    *,
    pictures: bool,
) -> tuple[list[str | None], list[list[tuple[str, float, str]]], str | None]:
    """Return images of rows, heat maps of those after `num_plain`, and why something is missing."""
    nothing: list[str | None] = [None] * len(rows)
    if not pictures:
        return (
            nothing,
            [],
            "Images are left out: by --no-pictures, or while --watch follows a running sweep.",
        )
    if sweep.manifest is None:
        return nothing, [], f"The images are gone: {sweep.base.data} is no longer the data set."
    if not rows:
        return [], [], None
    config = run_folder.read_config(winner.run)
    images_NHWC = read_views(config, sweep.manifest, split, [row["row"] for row in rows])
    if not images_NHWC.any():  # what can't be read is black
        return nothing, [], f"The images can't be read any more from {config.data}."
    uris = [encode(image_HWC) if image_HWC.any() else None for image_HWC in images_NHWC]
    try:
        _, _, model = run_folder.load_best_model(winner.run)
        explained = explain(model, config, sweep.manifest, split, rows[num_plain:])
    except ValueError as error:  # no whole checkpoint, or no convolutions
        return uris, [], f"No heat maps: {error}"
    return uris, [_encode_heats(item) for item in explained], None


def _encode_heats(item: Explained) -> list[tuple[str, float, str]]:
    return [
        (name, probability, encode(blend(item.image_HWC, heat_HW)))
        for name, probability, heat_HW in item.heats
    ]


def blend(image_HWC: np.ndarray, heat_HW: np.ndarray) -> np.ndarray:
    """Lay a heat map over an image in grey: uint8 RGB, brightest where the class was seen."""
    grey_HW1 = 50 + 0.8 * image_HWC.mean(2, keepdims=True)
    colour_HWC = 255 * matplotlib.colormaps["inferno"](heat_HW)[..., :3]
    alpha_HW1 = 0.75 * heat_HW[..., None]
    return ((1 - alpha_HW1) * grey_HW1 + alpha_HW1 * colour_HWC).astype(np.uint8)


def encode(image_HWC: np.ndarray) -> str:
    """Write an RGB image as a small data URI."""
    height, width = image_HWC.shape[:2]
    scale = min(1.0, THUMB_PX / max(height, width))
    if scale < 1:
        size = (round(scale * width), round(scale * height))
        image_HWC = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode(
        ".webp", image_HWC[..., ::-1], [int(cv2.IMWRITE_WEBP_QUALITY), QUALITY]
    )
    return f"data:image/webp;base64,{base64.b64encode(content.tobytes()).decode()}"


def _confuse(table: pa.Table) -> tuple[list[str], np.ndarray]:
    """Return the classes and counts, a row per true class and a column per predicted one."""
    columns = [table[name].unify_dictionaries().combine_chunks() for name in ("label", "predicted")]
    classes = list(dict.fromkeys(name for c in columns for name in c.dictionary.to_pylist()))
    place = {name: at for at, name in enumerate(classes)}
    confusion_KK = np.zeros((len(classes), len(classes)), np.int64)
    for true, predicted in zip(*(column.to_pylist() for column in columns), strict=True):
        confusion_KK[place[true], place[predicted]] += 1
    return classes, confusion_KK


def _find_pairs(confusion_KK: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (true, predicted) by falling count, then by falling share of the true class."""
    mistakes_KK = confusion_KK * ~np.eye(len(confusion_KK), dtype=bool)
    true, predicted = np.nonzero(mistakes_KK)
    order_N = np.lexsort((confusion_KK.sum(1)[true], -mistakes_KK[true, predicted]))
    return [(int(true[at]), int(predicted[at])) for at in order_N[:NUM_PAIRS]]
