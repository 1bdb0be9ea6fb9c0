"""The table of Keras Applications (https://keras.io/api/applications), of Keras' own weights, which
are not the ones used here; its rows on the lecture's page, with Thaw's figures beside them.
"""

from collections.abc import Iterable, Mapping
from textwrap import fill
from typing import Any, NamedTuple

from rich.table import Table


class Figures(NamedTuple):
    """A network's cells in the table."""

    size_mib: float
    top1: float | None
    """Percent of ImageNet's validation images, as top5; None where none are published."""
    top5: float | None
    parameters_m: float
    """Millions, with BatchNorm's statistics."""
    depth: int
    cpu_ms: float | None
    gpu_ms: float | None


LECTURE = {
    "xception": Figures(88, 79.0, 94.5, 22.9, 81, 109.4, 8.1),
    "vgg16": Figures(528, 71.3, 90.1, 138.4, 16, 69.5, 4.2),
    "vgg19": Figures(549, 71.3, 90.0, 143.7, 19, 84.8, 4.4),
    "resnet50": Figures(98, 74.9, 92.1, 25.6, 107, 58.2, 4.6),
    "resnet50_v2": Figures(98, 76.0, 93.0, 25.6, 103, 45.6, 4.4),
    "resnet101": Figures(171, 76.4, 92.8, 44.7, 209, 89.6, 5.2),
    "resnet101_v2": Figures(171, 77.2, 93.8, 44.7, 205, 72.7, 5.4),
    "resnet152": Figures(232, 76.6, 93.1, 60.4, 311, 127.4, 6.5),
    "resnet152_v2": Figures(232, 78.0, 94.2, 60.4, 307, 107.5, 6.6),
    "inception_v3": Figures(92, 77.9, 93.7, 23.9, 189, 42.2, 6.9),
    "inception_resnet_v2": Figures(215, 80.3, 95.3, 55.9, 449, 130.2, 10.0),
    "mobilenet_v1": Figures(16, 70.4, 89.5, 4.3, 55, 22.6, 3.4),
    "mobilenet_v2": Figures(14, 71.3, 90.1, 3.5, 105, 25.9, 3.8),
    "densenet121": Figures(33, 75.0, 92.3, 8.1, 242, 77.1, 5.4),
    "densenet169": Figures(57, 76.2, 93.2, 14.3, 338, 96.4, 6.3),
    "densenet201": Figures(80, 77.3, 93.6, 20.2, 402, 127.2, 6.7),
    "nasnet_mobile": Figures(23, 74.4, 91.9, 5.3, 389, 27.0, 6.7),
    "nasnet_large": Figures(343, 82.5, 96.0, 88.9, 533, 344.5, 20.0),
    "efficientnet_b0": Figures(29, 77.1, 93.3, 5.3, 132, 46.0, 4.9),
}
"""The rows on the lecture's page, in its order."""
KERAS_TOP1 = {
    **{name: figures.top1 for name, figures in LECTURE.items()},
    "mobilenet_v3_small": 68.1,
    "mobilenet_v3_large": 75.6,
    "efficientnet_b1": 79.1,
    "efficientnet_b2": 80.1,
    "efficientnet_b3": 81.6,
    "efficientnet_b4": 82.9,
    "efficientnet_b5": 83.6,
    "efficientnet_b6": 84.0,
    "efficientnet_b7": 84.3,
    "efficientnet_v2_b0": 78.7,
    "efficientnet_v2_b1": 79.8,
    "efficientnet_v2_b2": 80.5,
    "efficientnet_v2_b3": 82.0,
    "efficientnet_v2_s": 83.9,
    "efficientnet_v2_m": 85.3,
    "efficientnet_v2_l": 85.7,
    "convnext_tiny": 81.3,
    "convnext_small": 82.3,
    "convnext_base": 85.3,
    "convnext_large": 86.3,
    "convnext_xlarge": 86.7,
}
"""Top-1 of every network of Keras Applications; MobileNetV3's are in its docstring."""
OTHERS = tuple(name for name in KERAS_TOP1 if name not in LECTURE)
COLUMNS = {
    "size_mib": ("MiB", "{:.0f}"),
    "top1": ("top-1", "{:.1f}"),
    "top5": ("top-5", "{:.1f}"),
    "parameters_m": ("parameters", "{:.1f}"),
    "depth": ("depth", "{}"),
    "cpu_ms": ("CPU ms", "{:.1f}"),
    "gpu_ms": ("GPU ms", "{:.1f}"),
}
LEGEND = """\
Two figures each: the lecture's, of Keras' weights, and Thaw's, of its own; -: none published, or
not measured.
MiB: of the weights. parameters, in millions: with BatchNorm's statistics, as Keras counts; here,
inception_v3 has its auxiliary head. depth: for Keras activations and normalization are layers as
well (VGG's excepted); here, convolutions and dense layers.
ms: Keras' are of batches of 32, on 92 cores of an AMD EPYC and on an A100; here, of batches of
{batch_size}, float32, on {device}. `--batch-size 32` compares.
""" + fill(
    f"Also named on the page, without figures: {', '.join(OTHERS)}; `python -m trainers zoo` lists "
    "them.",
    100,
)


def compare(name: str, ours: Figures) -> dict[str, Any]:
    """Return a row of the lecture and our figures, each under the field's name and `lecture_`."""
    pairs = zip(Figures._fields, LECTURE[name], ours, strict=True)
    cells = {key: v for field, a, b in pairs for key, v in ((f"lecture_{field}", a), (field, b))}
    return {"name": name} | cells


def lay_out(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Lay the rows of `compare` out for a terminal."""
    grid = Table("name", box=None, pad_edge=False)
    for heading, _ in COLUMNS.values():
        grid.add_column(heading, justify="right")
        grid.add_column("here", justify="right")
    for row in rows:
        cells = [row["name"]]
        for field, (_, form) in COLUMNS.items():
            values = (row[f"lecture_{field}"], row[field])
            cells += ["-" if value is None else form.format(value) for value in values]
        grid.add_row(*cells)
    return grid
