"""The zoo as a picture: what a network costs against what it reaches, each point with its name."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

COSTS = {
    "gpu_ms": "ms per inference step on this GPU",
    "cpu_ms": "ms per inference step on this CPU",
    "parameters": "parameters",
}
GRAY = "#e4e4e4"
TICKS_TOP1 = (50, 60, 65, 70, 75, 80, 82, 84, 86, 88, 90)
# Where a name may stand: outwards from its point, in units of typographic points.
PLACES = [
    (away * dx, away * dy)
    for away in (1, 3, 6, 10, 15, 21, 28)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]


@dataclass(frozen=True, kw_only=True)
class _Point:
    name: str
    x: float
    y: float
    color: Any
    area: float
    """Of its disc, in square typographic points."""


def draw_zoo(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draw published top-1 over the time of a step, or over parameters where none was timed.

    Args:
        rows: networks as `zoo.ZooRow` has them; those without top-1 have no place.

    Returns:
        A PNG.
    """
    cost = next(c for c in COSTS if c == "parameters" or any(row[c] for row in rows))
    figure = Figure(figsize=(10, 6.5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    _prepare(axes, COSTS[cost])
    points = _place(rows, cost)
    for point in points:
        axes.scatter(point.x, point.y, s=point.area, color=point.color, alpha=0.75, linewidths=0)
    if cost != "parameters":
        axes.set_title("A disc's area grows with the parameters", loc="left", fontsize=9)
    canvas.draw()  # only now do points have their places in pixels,
    figure.set_layout_engine("none")  # which the names must not move
    _write_names(axes, points)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _prepare(axes: Axes, cost: str) -> None:
    axes.set_xscale("log")
    # Equal steps are equal ratios of errors: the good ones, which are many, get room.
    axes.set_yscale(
        "function",
        functions=(lambda top1: -np.log(101 - np.minimum(top1, 100)), lambda y: 101 - np.exp(-y)),
    )
    axes.set_xlabel(f"{cost} (logarithmic)")
    axes.set_ylabel("ImageNet top-1 in percent, as published (errors logarithmic)")
    axes.set_yticks(TICKS_TOP1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(color=GRAY)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1, y=0.06)


def _place(rows: Sequence[dict[str, Any]], cost: str) -> list[_Point]:
    palette = colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    shown = [row for row in rows if row["top1"] is not None]
    families = list(dict.fromkeys(_family(row["name"]) for row in shown))
    return [
        _Point(
            name=row["name"],
            x=row[cost],
            y=row["top1"],
            color=palette[families.index(_family(row["name"])) % len(palette)],
            area=24 if cost == "parameters" else 14 + row["parameters"] / 1e6,
        )
        for row in shown
    ]


def _family(name: str) -> str:
    """resnet of resnet50_v2."""
    return re.split(r"[\d_]", name)[0]


def _write_names(axes: Axes, points: Sequence[_Point]) -> None:
    """Write each name at the first place where it covers least of other names and discs."""
    points = sorted(points, key=lambda point: -point.area)  # a large disc leaves fewer places
    taken = [_disc(axes, point) for point in points]
    for point, own in zip(points, list(taken), strict=True):
        tried: list[tuple[int, tuple[float, float], Bbox]] = []
        for place in PLACES:
            text = _annotate(axes, point, place)
            box = text.get_window_extent()
            text.remove()
            covered = sum(box.overlaps(other) for other in taken if other is not own)
            outside = box.x0 < axes.bbox.x0 or box.x1 > axes.figure.bbox.x1
            tried.append((covered + outside, place, box))
            if covered + outside == 0:
                break
        _, place, box = min(tried, key=lambda entry: entry[0])
        _annotate(axes, point, place)
        taken.append(box)


def _disc(axes: Axes, point: _Point) -> Bbox:
    """The square around a point's disc, in pixels."""
    x, y = axes.transData.transform((point.x, point.y))
    radius = _radius(point) * axes.figure.dpi / 72
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _radius(point: _Point) -> float:
    return sqrt(point.area) / 2


def _annotate(axes: Axes, point: _Point, place: tuple[float, float]) -> Annotation:
    right, up = np.sign(place)
    far = max(map(abs, place)) > 3
    line = {"arrowstyle": "-", "color": point.color, "lw": 0.6, "shrinkA": 0, "shrinkB": 0}
    return axes.annotate(
        point.name,
        (point.x, point.y),
        (place[0] + right * _radius(point), place[1] + up * _radius(point)),
        textcoords="offset points",
        ha={1: "left", 0: "center", -1: "right"}[right],  # pyright: ignore[reportArgumentType]
        va={1: "bottom", 0: "center", -1: "top"}[up],  # pyright: ignore[reportArgumentType]
        fontsize=7.5,
        color=point.color,
        arrowprops=line if far else None,
    )
