"""Advice as a picture: each stage's linear classifier, the quadrant, and the race of depths."""

import io
from collections.abc import Sequence
from math import log10
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from tuning.advice.advice import Advice
from tuning.advice.extrapolation import Race
from tuning.advice.quadrants import MIN_GAP_CLOSED, QUADRANTS, Quadrant

INK, ACCENT, SHADE, GRAY = "#333333", "#c0392b", "#fbeae7", "#e4e4e4"
LABEL_GAP = 0.04
"""Between labels, of the height of the picture."""
DECADES = 1.5
"""Minimum length of the data axis on each side of the threshold."""


def draw_advice(advice: Advice) -> bytes:
    """Return a PNG."""
    widths = (1, 1.15) if advice.race is None else (1, 1.15, 1)
    figure = Figure(figsize=(5.2 * len(widths), 4.6), dpi=110, layout="constrained")
    left, middle, *right = figure.subplots(1, len(widths), width_ratios=widths)
    _draw_probes(left, advice)
    _draw_quadrants(middle, advice.verdict)
    if advice.race is not None:
        _draw_race(right[0], advice.race)
    return to_png(figure)


def to_png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _draw_probes(axes: Axes, advice: Advice) -> None:
    stages, quadrant = advice.stages, advice.verdict
    depths = [stage.depth for stage in stages]
    top1s = [stage.top1 for stage in stages]
    low = [stage.top1 - stage.low for stage in stages]
    high = [stage.high - stage.top1 for stage in stages]
    recommended = advice.recommended
    axes.axvspan(recommended - 0.4, recommended + 0.4, color=SHADE, zorder=0)
    axes.errorbar(
        depths, top1s, yerr=[low, high], fmt="o-", color=INK, capsize=3, lw=1, elinewidth=1.2
    )
    axes.axhline(quadrant.chance, color=INK, lw=0.8, ls=":")
    axes.text(0.5, quadrant.chance + 0.012, "chance", fontsize=8, color=INK)
    axes.text(
        recommended, 1.02, f"freeze\nup to {recommended}", ha="center", fontsize=8, color=ACCENT
    )
    axes.set_xlim(0.4, len(stages) + 0.6)
    axes.set_ylim(0, 1)
    axes.set_xticks(depths, [f"{stage.depth}\n{stage.name}" for stage in stages], fontsize=8)
    axes.set_ylabel("validation top-1, with 95 percent intervals")
    axes.set_xlabel("linear classifier on the frozen stages up to")
    clean(axes)
    axes.grid(axis="y", color=GRAY)


def _draw_quadrants(axes: Axes, quadrant: Quadrant) -> None:
    """Draw the point at (images per class, gap closed), and shade its quadrant.

    An earlier stage that is better makes the task different whatever the gap: the shaded quadrant
    then differs from the point's position, and an annotation says why.
    """
    middle = log10(quadrant.little_per_class)
    position = log10(max(1.0, quadrant.images_per_class))
    reach = max(DECADES, abs(position - middle) + 0.3)
    left, right = 10 ** (middle - reach), 10 ** (middle + reach)
    edges = {True: (left, quadrant.little_per_class), False: (quadrant.little_per_class, right)}
    heights = {True: (MIN_GAP_CLOSED, 1.0), False: (0.0, MIN_GAP_CLOSED)}
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(0, 1)
    for (is_little, is_similar), words in QUADRANTS.items():
        (x0, x1), (y0, y1) = edges[is_little], heights[is_similar]
        chosen = (is_little, is_similar) == (quadrant.is_little, quadrant.is_similar)
        if chosen:
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, color=SHADE, zorder=0))
        axes.text(
            (x0 * x1) ** 0.5,
            y1 - 0.03,
            fill(words, 22),
            ha="center",
            va="top",
            fontsize=9,
            color=ACCENT if chosen else INK,
            weight="bold" if chosen else "normal",
        )
    axes.axvline(quadrant.little_per_class, color=INK, lw=0.8)
    axes.axhline(MIN_GAP_CLOSED, color=INK, lw=0.8)
    gap = min(max(quadrant.gap_closed, 0.0), 1.0)
    axes.plot(10**position, gap, "o", ms=10, color=ACCENT, clip_on=False, zorder=3)
    if quadrant.rival is not None:
        axes.annotate(
            f"but {quadrant.rival} is better",
            (10**position, gap),
            (0, -9),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            color=ACCENT,
        )
    for is_little, words in ((True, "little data"), (False, "much data")):
        x0, x1 = edges[is_little]
        axes.text((x0 * x1) ** 0.5, 1.02, words, ha="center", fontsize=9)
    for is_similar, words in ((True, "similar task"), (False, "different task")):
        axes.text(
            right * 1.05, sum(heights[is_similar]) / 2, words, rotation=-90, va="center", fontsize=9
        )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel("training images in the median class (logarithmic)")
    axes.set_ylabel("gap between chance and 1 that the last stage closes")
    clean(axes)


def _draw_race(axes: Axes, race: Race) -> None:
    """Draw each freeze depth's curve, and what is expected after all epochs."""
    first = race.depths[0]
    for raced in race.depths:
        epochs, color = range(1, len(raced.top1s) + 1), ACCENT if raced is first else INK
        axes.plot(epochs, raced.top1s, "o-", ms=3, lw=1, color=color)
        ends = (len(raced.top1s), race.num_epochs)
        axes.plot(ends, (max(raced.top1s), raced.expected.top1), ":", lw=1, color=color)
        axes.errorbar(
            race.num_epochs,
            raced.expected.top1,
            yerr=2 * raced.expected.deviation,
            fmt="o",
            ms=4,
            capsize=3,
            color=color,
        )
    labels = spread([raced.expected.top1 for raced in race.depths], LABEL_GAP)
    for raced, height in zip(race.depths, labels, strict=True):
        axes.text(
            1.05 * race.num_epochs,
            height,
            f"freeze {raced.depth}",
            va="center",
            fontsize=8,
            color=ACCENT if raced is first else INK,
        )
    axes.set_xlim(0.5, 1.3 * race.num_epochs)
    axes.set_ylim(0, 1)
    axes.set_ylabel("validation top-1; expected with 2 standard deviations")
    axes.set_xlabel("epoch")
    clean(axes)
    axes.grid(axis="y", color=GRAY)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move labels apart, upwards from the lowest, so that none is nearer than `gap` to another."""
    moved, lowest = list(heights), -1.0
    for number in sorted(range(len(heights)), key=lambda number: heights[number]):
        moved[number] = lowest = max(heights[number], lowest + gap)
    return moved


def clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
