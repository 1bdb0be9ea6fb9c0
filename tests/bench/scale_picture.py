"""docs/scale.png: images a second, and what waits for the network, by GPUs and freeze depth."""

from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.scale_model import FROZEN, Scale, Step
from tests.bench.scale_tables import Constants

SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
SHOWN = {0: "#b5443a", 3: "#d98b2b", 4: "#4a7f5c", 5: "#3b6ea5"}
"""Freeze depth -> colour."""


def draw(file: Path, scale: Scale, constants: Constants) -> None:
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    rates, shares = figure.subplots(1, 2)
    for depth, colour in SHOWN.items():
        steps = [Step(replace(scale, gpus=gpus), constants, depth) for gpus in SIZES]
        name = f"{depth}: {FROZEN[depth]}"
        rates.plot(SIZES, [s.images_per_s for s in steps], "o-", color=colour, ms=3, label=name)
        shares.plot(SIZES, [100 * s.share for s in steps], "o-", color=colour, ms=3, label=name)
    fed = [Step(replace(scale, gpus=gpus), constants, 0).fed_images_per_s for gpus in SIZES]
    rates.plot(SIZES, fed, "--", color="#555555", label="what the CPUs feed")
    rates.set_yscale("log")
    _finish(rates, "images/s, were the GPUs fed")
    _finish(shares, "percent of a step that waits for the all-reduce")
    shares.set_ylim(bottom=0)
    rates.legend(title="freeze depth of ResNet50", frameon=False, fontsize=8, title_fontsize=8)
    figure.savefig(file)


def _finish(axes: Axes, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES[::2], [f"{size:,}" for size in SIZES[::2]])
    axes.set_xlabel("GPUs, 8 a node")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
