"""What all charts of a review have in common: their form, colours and words.

Colours are CSS, such as `var(--thaw)`: the page resolves them in the reader's light or dark theme.
What Plotly would read as markup is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from trainers import metrics
from tuning.leaderboard import TrialResult
from tuning.record import SweepRecord
from tuning.space import CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE, describe

AXIS_NAMES = {
    FREEZE_DEPTH: "freeze depth",
    LEARNING_RATE: "learning rate",
    CLIPNORM: "clipnorm",
    INIT: "initialization",
}
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
Figure = dict[str, Any]
"""`data` and `layout` of Plotly."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart, and what it says to those who can't see it."""

    name: str
    """Its id in the page."""
    title: str
    label: str
    """Text alternative with the key numbers."""
    figures: dict[str, Figure]
    """By the choice the reader has; a single one has none."""
    header: Sequence[str]
    table: Sequence[Sequence[Any]]
    """Its data."""
    is_wide: bool = False
    """Whether it scrolls in its box on a phone."""


def single(figure: Figure) -> dict[str, Figure]:
    return {"": figure}


def measured(sweep: SweepRecord) -> list[TrialResult]:
    """Trials with a val/top1, in order of rank."""
    return [row for row in sweep.trials if row.val_top1 is not None]


def mark_level(level: float, name: str) -> Figure:
    """A dotted line over the whole width, with its name."""
    return {
        "shapes": [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": level,
                "y1": level,
                "line": {"color": "var(--quiet)", "width": 1, "dash": "dot"},
            }
        ],
        "annotations": [
            {
                "xref": "paper",
                "x": 1,
                "y": level,
                "text": f"{name} {level:.3f}",
                "xanchor": "right",
                "yanchor": "bottom",
                "showarrow": False,
                "bgcolor": "var(--veil)",
                "font": {"size": 12, "color": "var(--quiet)"},
            }
        ],
    }


def depth_colour(sweep: SweepRecord, depth: int) -> str:
    """From the colour of what is thawed to that of what is frozen."""
    return mix("var(--frost)", "var(--thaw)", depth / len(sweep.stages))


def mix(first: str, second: str, share: float) -> str:
    return f"color-mix(in oklch, {first} {100 * share:.0f}%, {second})"


def plain(text: str) -> str:
    """Keep Plotly from reading tags and entities in a text."""
    return escape(text, quote=False)


def tell_trial(row: TrialResult) -> str:
    top1 = "" if row.val_top1 is None else f" val/top1 {row.val_top1:.3f}, {row.state}"
    return f"#{row.rank} {plain(row.trial_id)}<br>{plain(describe(row.point))}<br>{top1}"


def short_depth(sweep: SweepRecord, depth: int) -> str:
    return {0: "0 frozen", len(sweep.stages): "all frozen"}.get(depth, f"{depth} frozen")


def top1_of(rows: Sequence[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Epochs and val/top1 of a run."""
    ended = [row for row in rows if metrics.VAL_TOP1 in row]
    return [row[metrics.EPOCH] for row in ended], [row[metrics.VAL_TOP1] for row in ended]
