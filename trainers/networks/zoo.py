"""The table of the networks, as of Keras Applications, measured on this machine."""

import fnmatch
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.tables import to_csv
from cluster.io.terminal import is_quiet, literal_console
from trainers.networks.backbones import BACKBONES, find
from trainers.networks.config import ZooConfig
from trainers.networks.measure import (
    count_bytes,
    count_flops,
    count_parameters,
    describe_devices,
    measure_depth,
    on_meta,
    time_step,
)
from trainers.networks.timm_models import list_names

# Top-1 of https://keras.io/api/applications: of Keras' weights, which are not the ones used here.
KERAS_TOP1 = {
    "xception": 79.0,
    "vgg16": 71.3,
    "vgg19": 71.3,
    "resnet50": 74.9,
    "resnet50_v2": 76.0,
    "resnet101": 76.4,
    "resnet101_v2": 77.2,
    "resnet152": 76.6,
    "resnet152_v2": 78.0,
    "inception_v3": 77.9,
    "inception_resnet_v2": 80.3,
    "mobilenet_v1": 70.4,
    "mobilenet_v2": 71.3,
    "densenet121": 75.0,
    "densenet169": 76.2,
    "densenet201": 77.3,
    "nasnet_large": 82.5,
    "efficientnet_b0": 77.1,
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

LEGEND = """\
MiB: all tensors, in float32. top-1, top-5: percent of ImageNet's validation images, published for
px x px: torchvision's of its newest weights, timm's from its results-imagenet.csv. keras: top-1 of
Keras' own weights. GFLOPs: two for each multiply-add of an image. depth: convolutions and dense
layers on the longest path from image to logits. license: of the weights, as timm states it
(torchvision states none); zoo.csv has their URLs.
ms: median inference step of {batch_size} x px x px, float32, on {device}.
inception_v3 counts its auxiliary head. NASNetMobile, a row of Keras' table, is in neither
torchvision nor timm, so it is missing."""
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
    """Measure, print, write zoo.csv."""
    aside = literal_console(stderr=True)
    names = tuple(dict.fromkeys(_expand(config.backbones, aside))) or tuple(BACKBONES)
    if config.time and (load := os.getloadavg()[0]) > (os.cpu_count() or 1) / 2:
        aside.print(f"Other processes use this CPU (load {load:.1f}): its times will be too long")
    silent = len(names) < 2 or is_quiet()
    rows = [
        describe(name, config)
        for name in track(names, "Measuring", console=aside, transient=True, disable=silent)
    ]
    header = [field.name for field in fields(ZooRow)]
    content = to_csv(header, (asdict(row).values() for row in rows))
    storage.write_bytes(storage.join(config.out, "zoo.csv"), content)
    if config.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    literal_console(width=TABLE_WIDTH).print(table(rows))
    print(LEGEND.format(batch_size=config.batch_size, device=describe_devices()))
    print(f"Written: {config.out}/zoo.csv")


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
