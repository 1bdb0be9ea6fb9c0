"""Networks as a picture: accuracy against the cost of an image."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tuning.advice.picture import ACCENT, GRAY, INK, clean, to_png
from tuning.advice.ranking import Ranked


def draw_ranking(rows: Sequence[Ranked]) -> bytes:
    """Return a PNG of networks in the order of the ranking."""
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    front = [row for row in rows if row.on_front]
    axes.step(
        [row.image_ms for row in reversed(front)],
        [row.top1 for row in reversed(front)],
        where="post",
        color=ACCENT,
        lw=1,
        label="no other is both faster and as accurate",
    )
    for row in rows:
        color = ACCENT if row.on_front else INK
        axes.errorbar(
            row.image_ms,
            row.top1,
            yerr=[[row.top1 - row.low], [row.high - row.top1]],
            fmt="o",
            color=color,
            capsize=3,
            elinewidth=1,
        )
        axes.annotate(
            row.name,
            (row.image_ms, row.top1),
            (6, 3),
            textcoords="offset points",
            fontsize=8,
            color=color,
        )
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_ylim(0, 1)
    as_number = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(as_number)
    axes.xaxis.set_minor_formatter(as_number)
    axes.set_xlabel("milliseconds of an image (logarithmic)")
    axes.set_ylabel("validation top-1 of the best linear classifier, 95 percent intervals")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.grid(axis="y", color=GRAY)
    clean(axes)
    return to_png(figure)
