"""The confusion matrix as a chart. N images, K classes, G groups of classes that share a cell."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainers.evaluation.measures import count_cells
from tuning.review.figure import Chart, new_figure, plain

MAX_COUNTED = 24
"""Up to this many classes have counts in their cells."""
MAX_SQUARE = 400
"""Classes up to which each has a row and a column: a page of 1,000 would have 20 MB of cells."""
MAX_TICKS = 40
MAX_LISTED = 50
"""Classes in the chart's table, those of lowest recall."""


def draw_confusion(
    label_N: np.ndarray,
    predicted_N: np.ndarray,
    classes: Sequence[str],
    *,
    name: str = "confusion",
) -> Chart:
    """Draw counts of images: a row per true class, a column per predicted one."""
    num_classes = len(classes)
    group = -(-num_classes // MAX_SQUARE)
    starts = list(range(0, num_classes, group))
    confusion_GG = count_cells(label_N, predicted_N, num_classes, group=group)
    support_K, correct_K = (
        np.bincount(indices, minlength=num_classes)
        for indices in (label_N, label_N[label_N == predicted_N])
    )
    recall_K = correct_K / np.maximum(1, support_K)
    correct_GG = np.diag(np.add.reduceat(correct_K, starts))
    support_G1 = np.maximum(1, confusion_GG.sum(1, keepdims=True))
    cells = f", {group} classes a cell" if group > 1 else ""
    names = [plain(name if len(name) <= 30 else f"{name[:28]}…") for name in classes]
    ticks = list(range(0, num_classes, -(-num_classes // MAX_TICKS)))
    figure = new_figure(
        height=int(min(900, max(420, 170 + 30 * num_classes))),
        margin={"l": 190, "t": 8, "b": 50, "r": 8},
        xaxis={
            "tickvals": ticks,
            "ticktext": [str(index + 1) for index in ticks],
            "title": {"text": f"predicted class, by number{cells}"},
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
    for count_GG, colour in (
        (confusion_GG - correct_GG, "var(--thaw)"),
        (correct_GG, "var(--frost)"),
    ):
        shown_GG = count_GG > 0
        figure.add_heatmap(
            # Square roots: one mistake in a hundred images must be visible.
            z=_where(shown_GG, np.sqrt(count_GG / support_G1).round(3)),
            customdata=_where(shown_GG, count_GG),
            text=_where(shown_GG, count_GG, otherwise="") if has_counts else None,
            texttemplate="%{text}" if has_counts else None,
            x=starts,
            y=starts,
            zmin=0,
            zmax=1,
            colorscale=[[0, "var(--surface)"], [1, colour]],
            showscale=False,
            hoverongaps=False,
            xgap=int(has_counts),
            ygap=int(has_counts),
            hovertemplate="true: %{y}<br>predicted: %{x}<br>%{customdata} images<extra></extra>",
        )
    worst = np.argsort(np.where(support_K > 0, recall_K, 2))[:MAX_LISTED]
    return Chart(
        name=name,
        title="Confusion matrix" if name == "confusion" else f"Confusion matrix of {name}",
        label=f"{correct_K.sum()} of {len(label_N)} images are on the diagonal. "
        f"Lowest recall: {classes[worst[0]]}, {recall_K[worst[0]]:.0%}.",
        figures={"": figure},
        header=("class", "images", "recall"),
        table=[
            [classes[index], int(support_K[index]), f"{recall_K[index]:.0%}"]
            for index in worst
            if support_K[index]
        ],
        is_wide=True,
    )


def _where(shown_GG: np.ndarray, values_GG: np.ndarray, otherwise: Any = None) -> list[list[Any]]:
    return [
        [value if is_shown else otherwise for is_shown, value in zip(*line, strict=True)]
        for line in zip(shown_GG.tolist(), values_GG.tolist(), strict=True)
    ]
