"""The winner's predictions: confusion matrix, confused pairs, mistakes, and Grad-CAM.

K classes; H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

from cluster.io.errors import UserError
from datasets.preview import encode_thumbnail
from trainers.evaluation.explain import explain, order
from trainers.evaluation.measures import ConfusedPair, find_confused_pairs
from trainers.evaluation.pictures import Explained
from trainers.evaluation.split import read_views
from trainers.inference.hierarchy import parse_names
from trainers.run import folder as run_folder
from tuning.record.record import SweepRecord
from tuning.record.results import TrialResult
from tuning.review.confusion import draw_confusion
from tuning.review.figure import Chart

NUM_PAIRS, NUM_MISTAKES, NUM_RIGHT = 8, 8, 4


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An image, its prediction, and heat maps."""

    true: str
    predicted: str
    confidence: float
    image: str | None
    heats: Sequence[tuple[str, float, str]]
    """A class, its probability and its heat map as a data URI; predicted first, then the true."""


@dataclass(frozen=True, kw_only=True)
class WinnerPredictions:
    """The winner's predictions for a split."""

    split: str
    num_images: int
    num_correct: int
    confusion: Chart
    makes: Chart | None
    """The same by make, where classes are make, model and year, and some make has several."""
    pairs: Sequence[tuple[ConfusedPair, str | None]]
    """Each with an image that was mistaken, as a data URI."""
    mistakes: Sequence[Shown]
    right: Sequence[Shown]
    missing: str | None
    """Why there are no images, or no heat maps."""


def show_predictions(record: SweepRecord, *, pictures: bool) -> WinnerPredictions | None:
    """Show the winner's predictions for test images, or for validation images where it was not
    tested; None where there are none."""
    winner = record.winner
    if winner is None:
        return None
    split = "val" if record.test is None else "test"
    predictions = record.predictions_of(winner, split)
    if predictions is None:
        return None
    rows: list[dict[str, Any]] = predictions.table.to_pylist()
    pairs = find_confused_pairs(predictions, NUM_PAIRS)
    examples = [{"row": pair.row} for pair in pairs]
    mistakes = order(rows, "mistakes", 0)[:NUM_MISTAKES]
    right = order(rows, "confident", 0)[:NUM_RIGHT]
    shown = [*examples, *mistakes, *right]
    images, heats, missing = _picture(record, winner, split, shown, len(pairs), pictures=pictures)
    cards = [
        Shown(
            true=row["label"],
            predicted=row["predicted"],
            confidence=row["confidence"],
            image=images[len(pairs) + index],
            heats=heats[index] if heats else (),
        )
        for index, row in enumerate([*mistakes, *right])
    ]
    return WinnerPredictions(
        split="test" if split == "test" else "validation",
        num_images=len(rows),
        num_correct=int(predictions.is_correct_N.sum()),
        confusion=draw_confusion(predictions.label_N, predictions.predicted_N, predictions.classes),
        makes=draw_makes(predictions.label_N, predictions.predicted_N, predictions.classes),
        pairs=list(zip(pairs, images, strict=False)),
        mistakes=cards[: len(mistakes)],
        right=cards[len(mistakes) :],
        missing=missing,
    )


def draw_makes(
    label_N: np.ndarray, predicted_N: np.ndarray, classes: Sequence[str]
) -> Chart | None:
    """Draw the confusion matrix of makes, which are read from names such as Audi S6 Sedan 2011."""
    hierarchy = parse_names(classes)
    makes, index_K = hierarchy.groups(0)
    if "year" not in hierarchy.levels or not 1 < len(makes) < len(classes):
        return None
    return draw_confusion(index_K[label_N], index_K[predicted_N], makes, name="makes")


def _picture(
    record: SweepRecord,
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
            "Images are left out: by --no-pictures, or while --watch updates a running sweep.",
        )
    if record.manifest is None:
        return nothing, [], f"The images are missing: {record.base.data} is missing or has changed."
    if not rows:
        return [], [], None
    config = run_folder.read_config(winner.run)
    images_NHWC = read_views(config, record.manifest, split, [row["row"] for row in rows])
    if not images_NHWC.any():  # unreadable images are black
        return nothing, [], f"The images in {config.data} can no longer be read."
    uris = [encode_thumbnail(image_HWC) if image_HWC.any() else None for image_HWC in images_NHWC]
    try:
        _, _, model = run_folder.load_best_model(winner.run)
        explained = explain(model, config, record.manifest, split, rows[num_plain:])
    except UserError as error:  # no checkpoint, or no convolutions
        return uris, [], f"No heat maps: {error}"
    return uris, [_encode_heats(item) for item in explained], None


def _encode_heats(item: Explained) -> list[tuple[str, float, str]]:
    return [
        (name, probability, encode_thumbnail(blend(item.image_HWC, heat_HW)))
        for name, probability, heat_HW in item.heats
    ]


def blend(image_HWC: np.ndarray, heat_HW: np.ndarray) -> np.ndarray:
    """Blend a heat map with a grey image: uint8 RGB."""
    grey_HW1 = 50 + 0.8 * image_HWC.mean(2, keepdims=True)
    colour_HWC = 255 * matplotlib.colormaps["inferno"](heat_HW)[..., :3]
    alpha_HW1 = 0.75 * heat_HW[..., None]
    return ((1 - alpha_HW1) * grey_HW1 + alpha_HW1 * colour_HWC).astype(np.uint8)
