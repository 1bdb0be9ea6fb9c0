"""Pictures of an evaluation: PNGs drawn without a display, in colours for the colour-blind.

K classes, M bins of confidence; H x W pixels of an image, C its channels.
"""

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from trainers.evaluation.measures import NUM_BINS, ConfusedPair, Measures

DPI = 150
NAME_CHARS = 44
"""Characters of a class' name that are drawn."""
INK, FAINT, RULE, BLUE, ORANGE = "#222222", "#767676", "#d5d5d5", "#3b78ad", "#d9742b"
MAX_COUNTED, MAX_NAMED = 40, 250
"""Numbers of classes up to which cells show counts, and axes show names."""
STYLE: Any = {
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a class may have a $ in its name
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """An image, and the Grad-CAM heat maps of its classes."""

    image_HWC: np.ndarray
    """uint8, RGB."""
    true: str
    heats: tuple[tuple[str, float, np.ndarray], ...]
    """Class, its probability and its heat map `[H, W]` from 0 to 1; the predicted class first, and
    after it the true one where it is another."""


@matplotlib.rc_context(STYLE)
def draw_confusion(
    confusion_GG: np.ndarray, measures: Measures, classes: Sequence[str], *, group: int = 1
) -> bytes:
    """Draw the confusion matrix: a row per true class, its colours are shares of the row.

    Args:
        confusion_GG: of all classes, or of groups as `confusion_matrix` makes them.
    """
    num_classes = len(classes)
    starts = np.arange(0, num_classes, group)
    support_G, correct_G = (
        np.add.reduceat(values_K, starts) for values_K in (measures.support_K, measures.correct_K)
    )
    support_G1, correct_GG = np.maximum(1, support_G)[:, None], np.diag(correct_G)
    end = len(starts) * group - 0.5
    names = [_shorten(name) for name in classes] if num_classes <= MAX_NAMED else []
    cells_in = min(14.0, max(2.5, 0.4 * num_classes))
    size = min(8.5, 0.85 * 72 * cells_in / num_classes)
    names_in = 0.6 * size / 72 * max(map(len, names), default=0) + 0.6
    figure = Figure(
        figsize=(cells_in + names_in + 1.6, cells_in + names_in), dpi=DPI, layout="constrained"
    )
    axes = figure.add_subplot()
    for name, colours, count_GG in (
        ("mistakes", "Oranges", confusion_GG - correct_GG),
        ("correct", "Blues", correct_GG),
    ):
        image = axes.imshow(
            np.ma.masked_equal(count_GG / support_G1, 0),
            extent=(-0.5, end, end, -0.5),  # classes, also where a cell has several
            cmap=colours,
            norm=PowerNorm(0.5, 0, 1),  # makes one mistake in a hundred images visible
            interpolation="nearest",
        )
        bar = figure.colorbar(image, ax=axes, shrink=0.3, aspect=15, pad=0.01)
        bar.ax.set_title(name, fontsize=8)
        bar.set_ticks([0, 0.1, 0.5, 1], labels=["0", "10%", "50%", "100%"], fontsize=7)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    if num_classes <= MAX_COUNTED:
        for true, predicted in zip(*np.nonzero(confusion_GG), strict=True):
            axes.text(
                predicted,
                true,
                f"{confusion_GG[true, predicted]}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if confusion_GG[true, predicted] > 0.4 * support_G1[true] else INK,
            )
    if names:
        axes.set_xticks(range(num_classes), names, fontsize=size, rotation=90)
        axes.set_yticks(range(num_classes), names, fontsize=size)
        axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=RULE, linewidth=min(0.5, 12 / num_classes))
    axes.tick_params(which="both", length=0, pad=2)
    axes.spines[:].set_visible(False)
    cells = f", {group} classes a cell" if group > 1 else ""
    axes.set(xlabel=f"predicted{cells}", ylabel=f"true{cells}")
    axes.set_title(
        f"{measures.top1:.1%} of {measures.num_images:,} images are in their class; "
        f"mean over classes {measures.balanced_accuracy:.1%}"
    )
    return _png(figure)


@matplotlib.rc_context(STYLE)
def draw_confused_pairs(pairs: Sequence[ConfusedPair], examples: Sequence[np.ndarray]) -> bytes:
    """Draw a bar for each pair of classes that were confused, with an image; pairs may be empty."""
    row_in, width_in, thumb_in, names_in = 0.62, 9.0, 0.56, 3.6
    height_in = row_in * max(1, len(pairs)) + 0.55
    figure = Figure(figsize=(width_in, height_in), dpi=DPI)
    title = "Most confused: a class, what it was taken for, and how often" if pairs else ""
    figure.text(0.15 / width_in, 1 - 0.3 / height_in, title or "No image was mistaken", fontsize=11)
    most = max((pair.count for pair in pairs), default=1)
    for number, (pair, example_HWC) in enumerate(zip(pairs, examples, strict=True)):
        bottom_in = height_in - 0.5 - row_in * (number + 1)
        box = (0.15 / width_in, bottom_in / height_in, thumb_in / width_in, thumb_in / height_in)
        thumb = figure.add_axes(box)
        thumb.imshow(example_HWC)
        thumb.set_axis_off()
        middle = (bottom_in + thumb_in / 2) / height_in
        left = (0.3 + thumb_in) / width_in
        figure.text(left, middle + 0.01 / height_in, _shorten(pair.true), fontsize=8.5, va="bottom")
        figure.text(
            left, middle, f"→ {_shorten(pair.predicted)}", fontsize=8.5, va="top", color=ORANGE
        )
        start_in = 0.3 + thumb_in + names_in
        bar = figure.add_axes(
            (
                start_in / width_in,
                (bottom_in + 0.12) / height_in,
                1 - (start_in + 1.3) / width_in,
                (thumb_in - 0.24) / height_in,
            )
        )
        bar.barh([0], [pair.count], color=ORANGE, height=1)
        bar.set(xlim=(0, most), ylim=(-0.5, 0.5))
        bar.set_axis_off()
        bar.annotate(
            f"{pair.count} of {pair.num_images} ({pair.share:.0%})",
            (pair.count, 0),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            annotation_clip=False,
        )
    return _png(figure)


@matplotlib.rc_context(STYLE)
def draw_reliability(measures: Measures, *, before: Measures | None = None) -> bytes:
    """Draw accuracy against confidence, in bins of confidence.

    Args:
        before: the measures before calibration.
    """
    figure = Figure(figsize=(5.6, 6.2), dpi=DPI, layout="constrained")
    upper, lower = figure.subplots(2, height_ratios=(3, 1), sharex=True)
    centers_M = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    width = 1 / NUM_BINS
    seen = measures.bin_count_M > 0
    accuracy_M, confidence_M = measures.bin_accuracy_M[seen], measures.bin_confidence_M[seen]
    upper.bar(centers_M[seen], accuracy_M, width * 0.9, color=BLUE, label="accuracy")
    upper.vlines(centers_M[seen], accuracy_M, confidence_M, color=ORANGE, linewidth=1)
    upper.hlines(
        confidence_M,
        centers_M[seen] - width * 0.45,
        centers_M[seen] + width * 0.45,
        color=ORANGE,
        linewidth=2.5,
        label="confidence",
    )
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1.005), ylabel="correct")
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    upper.legend(loc="upper left", frameon=False)
    gap = measures.mean_confidence - measures.top1
    manner = "over-confident" if gap > 0 else "under-confident"
    earlier = f", {before.ece:.3f} before calibration" if before else ""
    upper.set_title(
        f"Calibration error {measures.ece:.3f} (ECE, {NUM_BINS} bins){earlier}\n"
        f"Says {measures.mean_confidence:.1%}, is right in {measures.top1:.1%}: {manner}"
    )
    lower.bar(centers_M, measures.bin_count_M, width * 0.9, color=FAINT)
    for center, count in zip(centers_M, measures.bin_count_M, strict=True):
        if count:
            lower.annotate(
                _compact(int(count)),
                (center, count),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
    lower.margins(y=0.15)
    lower.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    lower.set_yticks([])
    lower.xaxis.set_major_formatter(PercentFormatter(1))
    return _png(figure)


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """An image that one of two runs predicts correctly."""

    image_HWC: np.ndarray
    """uint8, RGB."""
    true: str
    before: str
    after: str


@matplotlib.rc_context(STYLE)
def draw_changes(changes: Sequence[Change]) -> bytes:
    """Draw a sheet of images; gains are blue, losses orange; changes may be empty."""
    across = 6
    down = max(1, -(-len(changes) // across))
    height_in = 2.5 * down + 0.6
    figure = Figure(figsize=(1.9 * across, height_in), dpi=DPI)
    figure.subplots_adjust(left=0, right=1, bottom=0.3 / height_in, top=1 - 0.8 / height_in)
    title = "Images that changed: now right (blue), now wrong (orange)"
    figure.suptitle(title if changes else "No image changed", x=0.005, ha="left", fontsize=11)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, change in zip(grid.flat, changes, strict=False):
        axes.imshow(change.image_HWC)
        is_gain = change.after == change.true
        wrong = change.before if is_gain else change.after
        _caption(axes, change.true, BLUE if is_gain else ORANGE)
        lines = textwrap.wrap(wrong, 26, max_lines=2, placeholder=" ...")
        text = "\n".join([("was: " if is_gain else "now: ") + lines[0], *lines[1:]])
        axes.text(0.5, -0.04, text, transform=axes.transAxes, fontsize=7.5, ha="center", va="top")
    return _png(figure)


@matplotlib.rc_context(STYLE)
def draw_heat_maps(explained: Sequence[Explained], title: str) -> bytes:
    """Draw a sheet: each image, and beside it the heat map of each of its classes."""
    panels = 1 + max(len(item.heats) for item in explained)
    across = min(len(explained), 6 // panels)
    down = -(-len(explained) // across)
    widths = [*[1.0] * panels, 0.1] * across  # a gap after each image and its maps
    figure = Figure(figsize=(1.8 * sum(widths), 2.02 * down + 0.6), dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.005, ha="left", fontsize=11)
    grid = figure.subplots(down, len(widths), width_ratios=widths, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, item in enumerate(explained):
        row, column = divmod(number, across)
        photo, *others = grid[row, column * (panels + 1) :][:panels]
        photo.imshow(item.image_HWC)
        _caption(photo, item.true, INK)
        for axes, (name, probability, heat_HW) in zip(others, item.heats, strict=False):
            grey_HW = item.image_HWC.mean(2)
            axes.imshow(grey_HW, cmap="gray", vmin=-60, vmax=255)
            axes.imshow(heat_HW, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * heat_HW)
            right = name == item.true
            _caption(axes, f"{probability:.0%} {name}", BLUE if right else ORANGE)
    return _png(figure)


def _caption(axes: Axes, text: str, colour: str) -> None:
    lines = textwrap.wrap(text, 26, max_lines=2, placeholder=" ...")
    axes.set_title("\n".join(lines), fontsize=7.5, color=colour, pad=3)


def _shorten(name: str) -> str:
    return name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 3].rstrip()}..."


def _compact(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{count / 1000:,.0f}k"


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    with warnings.catch_warnings():  # of letters that the font lacks, which become boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(png, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.15)
    return png.getvalue()
