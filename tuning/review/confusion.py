"""The confusion matrix as a chart. K classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tuning.review.figure import Chart, new_figure, plain

MAX_COUNTED = 24
"""Up to this many classes have counts in their cells."""
MAX_TICKS = 40
MAX_LISTED = 50
"""Classes in the chart's table, those of lowest recall."""


def draw_confusion(
    confusion_KK: np.ndarray, classes: Sequence[str], *, name: str = "confusion"
) -> Chart:
    """Draw counts of images: a row per true class, a column per predicted one."""
    num_classes = len(classes)
    shares_KK = confusion_KK / np.maximum(1, confusion_KK.sum(1, keepdims=True))
    names = [plain(name if len(name) <= 30 else f"{name[:28]}…") for name in classes]
    ticks = list(range(0, num_classes, -(-num_classes // MAX_TICKS)))
    figure = new_figure(
        height=int(min(900, max(420, 170 + 30 * num_classes))),
        margin={"l": 190, "t": 8, "b": 50, "r": 8},
        xaxis={
            "tickvals": ticks,
            "ticktext": [str(index + 1) for index in ticks],
            "title": {"text": "predicted class, by number"},
            "showgrid": False,
            "ticks": "",
            "constrain": "domain",
        },
        yaxis={
            "tickvals": ticks,
            "ticktext": [f"{index + 1} {names[index]}" for index in ticks],
            "autorange": "reversed",
            "showgrid": False,
            "ticks": "",
            "ticksuffix": " ",
        },
    )
    has_counts = num_classes <= MAX_COUNTED
    for is_right, colour in ((False, "var(--thaw)"), (True, "var(--frost)")):
        shown_KK = (np.eye(num_classes, dtype=bool) == is_right) & (confusion_KK > 0)
        figure.add_heatmap(
            # Square roots: one mistake in a hundred images must be visible.
            z=_where(shown_KK, np.sqrt(shares_KK).round(3)),
            customdata=_where(shown_KK, confusion_KK),
            text=_where(shown_KK, confusion_KK, otherwise="") if has_counts else None,
            texttemplate="%{text}" if has_counts else None,
            x=list(range(num_classes)),
            y=list(range(num_classes)),
            zmin=0,
            zmax=1,
            colorscale=[[0, "var(--surface)"], [1, colour]],
            showscale=False,
            hoverongaps=False,
            xgap=int(has_counts),
            ygap=int(has_counts),
            hovertemplate="true: %{y}<br>predicted: %{x}<br>%{customdata} images<extra></extra>",
        )
    worst = np.argsort(np.where(confusion_KK.sum(1) > 0, shares_KK.diagonal(), 2))[:MAX_LISTED]
    return Chart(
        name=name,
        title="Confusion matrix" if name == "confusion" else f"Confusion matrix of {name}",
        label=f"{confusion_KK.trace()} of {confusion_KK.sum()} images are on the diagonal. "
        f"Lowest recall: {classes[worst[0]]}, {shares_KK[worst[0], worst[0]]:.0%}.",
        figures={"": figure},
        header=("class", "images", "recall"),
        table=[
            [classes[index], int(confusion_KK[index].sum()), f"{shares_KK[index, index]:.0%}"]
            for index in worst
            if confusion_KK[index].sum()
        ],
        is_wide=True,
    )


def _where(shown_KK: np.ndarray, values_KK: np.ndarray, otherwise: Any = None) -> list[list[Any]]:
    return [
        [value if is_shown else otherwise for is_shown, value in zip(*line, strict=True)]
        for line in zip(shown_KK.tolist(), values_KK.tolist(), strict=True)
    ]
