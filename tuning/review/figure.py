"""What the charts of a review share: their form, template, colours and labels.

Colours are CSS variables, which the page resolves for the reader's light or dark theme. Text is
escaped: Plotly would read it as markup.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from trainers import metrics
from tuning.axes.axis import BACKBONE, CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE
from tuning.point import describe
from tuning.record.frozen import FrozenPart
from tuning.record.record import SweepRecord
from tuning.record.results import TrialResult

AXIS_NAMES = {
    BACKBONE: "network",
    FREEZE_DEPTH: "freeze depth",
    LEARNING_RATE: "learning rate",
    CLIPNORM: "clipnorm",
    INIT: "initialization",
}
"""Of fields; another has its dotted path."""
SYMBOLS = (
    "circle",
    "diamond",
    "square",
    "triangle-up",
    "cross",
    "triangle-down",
    "star",
    "hexagon",
)
NUM_SHADES, NUM_BLENDS = 8, 20
"""Steps of the colour scales `--shade-N` (val/top1) and `--blend-N` (0: thawed, last: frozen)."""
HOVER_TEXT = "%{text}<extra></extra>"
_AXIS = {
    "gridcolor": "var(--rule)",
    "zeroline": False,
    "automargin": True,
    "tickfont": {"color": "var(--quiet)"},
    "title": {"standoff": 12, "font": {"color": "var(--quiet)", "size": 13}},
}
TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 13, "color": "var(--ink)"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--faint)",
            "font": {"color": "var(--ink)"},
            "align": "left",
        },
        "hovermode": "closest",
        "margin": {"l": 56, "r": 12, "t": 16, "b": 44},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart, with its text alternative."""

    name: str
    """Its id in the page."""
    title: str
    label: str
    """Text alternative with the key numbers."""
    figures: dict[str, go.Figure]
    """By the reader's choice; the key of an only one is empty."""
    header: Sequence[str]
    table: Sequence[Sequence[Any]]
    """Its data."""
    is_wide: bool = False
    """Whether it scrolls sideways on a phone."""


def new_figure(**layout: Any) -> go.Figure:
    return go.Figure(layout={"template": TEMPLATE, **layout})


def measured(record: SweepRecord) -> list[TrialResult]:
    """Trials with a val/top1, in order of rank."""
    return [row for row in record.trials if row.val_top1 is not None]


def mark_chance(figure: go.Figure, record: SweepRecord) -> None:
    """Draw a dotted line at the accuracy of always predicting one class."""
    if record.chance is None:
        return
    figure.add_hline(
        y=record.chance,
        line={"color": "var(--quiet)", "width": 1, "dash": "dot"},
        annotation={
            "text": f"one class always {record.chance:.3f}",
            "bgcolor": "var(--veil)",
            "font": {"size": 12, "color": "var(--quiet)"},
        },
    )


def colour_of(frozen: FrozenPart) -> str:
    """From the colour of a thawed network to that of a frozen one."""
    return blend(frozen.depth / len(frozen.stages))


def blend(frozen: float) -> str:
    return f"var(--blend-{round(NUM_BLENDS * frozen)})"


def plain(text: str) -> str:
    """Escape tags and entities, which Plotly would interpret."""
    return escape(text, quote=False)


def describe_trial(row: TrialResult) -> str:
    top1 = "" if row.val_top1 is None else f" val/top1 {row.val_top1:.3f}, {row.state}"
    return f"#{row.rank} {plain(row.trial_id)}<br>{plain(describe(row.point))}<br>{top1}"


def name_axis(field: str) -> str:
    return AXIS_NAMES.get(field, field)


def top1_of(rows: Sequence[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Epochs and val/top1 of a run."""
    ended = [row for row in rows if metrics.VAL_TOP1 in row]
    return [row[metrics.EPOCH] for row in ended], [row[metrics.VAL_TOP1] for row in ended]
