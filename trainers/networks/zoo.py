"""The table of the networks, as of Keras Applications, measured on this machine."""

import fnmatch
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.json_output import print_json
from cluster.io.tables import to_csv
from cluster.io.terminal import is_quiet, literal_console
from trainers.networks.backbones import BACKBONES, find
from trainers.networks.config import ZooConfig
from trainers.networks.keras_table import KERAS_TOP1, LECTURE, Figures, compare, lay_out
from trainers.networks.keras_table import LEGEND as LECTURE_LEGEND
from trainers.networks.measure import (
    count_bytes,
    count_flops,
    count_parameters,
    count_statistics,
    describe_devices,
    measure_depth,
    on_meta,
    time_step,
)
from trainers.networks.timm_models import list_names

LEGEND = """\
MiB: all tensors, in float32. top-1, top-5: percent of ImageNet's validation images, published for
px x px: torchvision's of its newest weights, timm's from its results-imagenet.csv or README. keras:
top-1 of Keras' own weights. GFLOPs: two for each multiply-add of an image. depth: convolutions and
dense layers on the longest path from image to logits. license: of the weights, as timm states it
(torchvision states none); zoo.csv has their URLs.
ms: median inference step of {batch_size} x px x px, float32, on {device}.
inception_v3 counts its auxiliary head."""
TABLE_WIDTH = 120  # where the output is not a terminal


@dataclass(frozen=True, kw_only=True)
class ZooRow:
    """One network; accuracies in percent, None where none are published."""

    name: str
    source: str
    weights: str | None
    """Their name at the publisher."""
    size_mib: float
    top1: float | None
    top5: float | None
    keras_top1: float | None
    parameters: int
    statistics: int
    """Of BatchNorm, which Keras counts as parameters."""
    gflops: float
    depth: int
    stages: int
    size_px: int
    license: str | None
    """Of the weights, as their publisher states it."""
    url: str | None
    """Of the weights."""
    cpu_ms: float | None
    gpu_ms: float | None


def describe(name: str, config: ZooConfig) -> ZooRow:
    """Measure one network; weights are not read, and memory is only used to time it.

    Raises:
        UserError: as `find`.
    """
    backbone = find(name)
    published = backbone.published.get("imagenet")
    model = on_meta(name, config.classes)
    shape_BCHW = (config.batch_size, 3, backbone.size_px, backbone.size_px)
    times_ms = time_step(name, config.classes, shape_BCHW) if config.time else {}
    return ZooRow(
        name=name,
        source=backbone.source,
        weights=published and published.name,
        size_mib=round(count_bytes(model) / 2**20, 1),
        top1=published and published.top1,
        top5=published and published.top5,
        keras_top1=KERAS_TOP1.get(name),
        parameters=count_parameters(model),
        statistics=count_statistics(model),
        gflops=round(count_flops(model, backbone.size_px) / 1e9, 2),
        depth=measure_depth(model, backbone.size_px),
        stages=len(backbone.stages),
        size_px=backbone.size_px,
        license=published and published.license,
        url=published and published.url,
        cpu_ms=times_ms.get("cpu"),
        gpu_ms=times_ms.get("cuda"),
    )


def run_zoo(config: ZooConfig) -> None:
    """Measure, print, write zoo.csv, or lecture.csv with the lecture's figures."""
    aside = literal_console(stderr=True)
    listed = tuple(LECTURE) if config.lecture else tuple(BACKBONES)
    names = tuple(dict.fromkeys(_expand(config.backbones, aside))) or listed
    if config.time and (load := os.getloadavg()[0]) > (os.cpu_count() or 1) / 2:
        aside.print(f"Other processes use this CPU (load {load:.1f}): its times will be too long")
    silent = len(names) < 2 or is_quiet()
    rows = [
        describe(name, config)
        for name in track(names, "Measuring", console=aside, transient=True, disable=silent)
    ]
    values = [compare(row.name, _figures(row)) if config.lecture else asdict(row) for row in rows]
    file = storage.join(config.out, "lecture.csv" if config.lecture else "zoo.csv")
    storage.write_bytes(file, to_csv(values[0], (row.values() for row in values)))
    if config.json:
        print_json(values)
        return
    grid, legend = (lay_out(values), LECTURE_LEGEND) if config.lecture else (table(rows), LEGEND)
    literal_console(width=TABLE_WIDTH).print(grid)
    print(legend.format(batch_size=config.batch_size, device=describe_devices()))
    print(f"Written: {file}")


def _figures(row: ZooRow) -> Figures:
    return Figures(
        size_mib=row.size_mib,
        top1=row.top1,
        top5=row.top5,
        parameters_m=round((row.parameters + row.statistics) / 1e6, 2),
        depth=row.depth,
        cpu_ms=row.cpu_ms,
        gpu_ms=row.gpu_ms,
    )


def _expand(patterns: tuple[str, ...], aside: Console) -> Iterator[str]:
    """Yield names, and those that match a pattern but for networks that `find` refuses."""
    for pattern in patterns:
        if "*" not in pattern:
            find(pattern)
            yield pattern
            continue
        matching = [*fnmatch.filter(BACKBONES, pattern), *list_names(pattern)]
        require(bool(matching), "backbones", pattern, "no network of timm has such a name")
        for name in matching:
            try:
                find(name)
            except UserError as error:
                aside.print(f"Left out: {error}")
            else:
                yield name


def table(rows: list[ZooRow]) -> Table:
    """Lay the rows out for a terminal, without empty columns."""
    columns: dict[str, tuple[str, str]] = {
        "source": ("source", "{}"),
        "size_mib": ("MiB", "{:.0f}"),
        "top1": ("top-1", "{:.1f}"),
        "top5": ("top-5", "{:.1f}"),
        "keras_top1": ("keras", "{:.1f}"),
        "parameters": ("parameters", "{:,}"),
        "gflops": ("GFLOPs", "{:.1f}"),
        "depth": ("depth", "{}"),
        "stages": ("stages", "{}"),
        "size_px": ("px", "{}"),
        "license": ("license", "{}"),
        "cpu_ms": ("CPU ms", "{:.1f}"),
        "gpu_ms": ("GPU ms", "{:.1f}"),
    }
    values: list[dict[str, Any]] = [asdict(row) for row in rows]
    shown = [field for field in columns if any(row[field] is not None for row in values)]
    grid = Table("name", box=None, pad_edge=False)
    for field in shown:
        is_text = field in ("source", "license")
        grid.add_column(columns[field][0], justify="left" if is_text else "right")
    for row in values:
        cells = ["-" if row[f] is None else columns[f][1].format(row[f]) for f in shown]
        grid.add_row(row["name"], *cells)
    return grid
