"""A contact sheet of a data set: one image of each class, and augmented views of some; thumbnails
for pages."""

import base64
import io
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from cluster.io import filesystems, storage
from datasets.augment import augment
from datasets.config import POLICIES, IngestConfig
from datasets.decode import decode
from datasets.manifest import Manifest, Shard, require_images
from datasets.manifest_file import read_manifest

COLUMNS = 8
MAX_CLASSES = 32
CELL_PX = 160
THUMBNAIL_PX, THUMBNAIL_QUALITY = 168, 82
_GAP_PX = 6
_CAPTION_PX = 30
_VIEWS_PER_POLICY, _VIEWS_SHOWN = 2, 4

Cell = tuple[np.ndarray, str]
"""A picture and its caption."""


def preview(data_uri: str, out_png: str) -> None:
    """Write a PNG: the first training image of up to MAX_CLASSES classes, and below them views of
    the first few by every augmentation policy in the first epochs.

    Raises:
        UserError: where there is no data set at `data_uri`, or one without images.
    """
    manifest = read_manifest(data_uri)
    images = _pick_images(data_uri, manifest, MAX_CLASSES)
    cells = [(_fit(image_HWC), manifest.classes[label]) for label, (_, image_HWC) in images.items()]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    shown = list(images.values())[:COLUMNS]
    for policy in POLICIES:
        for epoch in range(_VIEWS_PER_POLICY):
            key = {"seed": 0, "epoch": epoch}
            views = [augment(image, policy, CELL_PX, image_id=id_, **key) for id_, image in shown]
            rows.append([(view_HWC, f"{policy}, epoch {epoch}") for view_HWC in views])
    storage.write_bytes(out_png, _draw_sheet(rows))


def draw_views(data_uri: str, ingest: IngestConfig, *, seed: int) -> bytes:
    """Draw the views of the first images of some classes that a training sees, epoch by epoch.

    Returns:
        A PNG: a column per image, a row per epoch.

    Raises:
        UserError: where there is no data set at `data_uri`, or one without images.
    """
    manifest = read_manifest(data_uri)
    images = _pick_images(data_uri, manifest, COLUMNS)
    rows: list[list[Cell]] = []
    for epoch in range(_VIEWS_SHOWN):
        key = {"seed": seed, "epoch": ingest.view_of(epoch)}
        rows.append([])
        for label, (image_id, image) in images.items():
            view_HWC = augment(image, ingest.policy, ingest.size_px, image_id=image_id, **key)
            rows[-1].append((_fit(view_HWC), f"epoch {epoch + 1}: {manifest.classes[label]}"))
    return _draw_sheet(rows)


def _pick_images(
    uri: str, manifest: Manifest, num_classes: int
) -> dict[int, tuple[int, np.ndarray]]:
    """Return label -> (image id, pixels) of the first training image of the first classes, or test
    image where there are only these."""
    require_images(manifest, "data", uri)
    wanted = set(range(min(num_classes, len(manifest.classes))))
    picked: dict[int, tuple[int, np.ndarray]] = {}
    split = "train" if "train" in manifest.splits else next(iter(manifest.splits))
    for row in _find_rows(uri, manifest.split(split).shards, wanted):
        if row["label"] in wanted:
            picked[row["label"]] = (row["image_id"], decode(row["image"]))
            wanted.remove(row["label"])
    return dict(sorted(picked.items()))


def _find_rows(uri: str, shards: Sequence[Shard], wanted: set[int]) -> Iterator[dict[str, Any]]:
    """Yield rows of the wanted labels, of which the caller removes those that it has."""
    for shard in shards:
        if not wanted:
            return
        file_system, path = filesystems.resolve(storage.join(uri, shard.path))
        with file_system.open_input_file(path) as stream:
            yield from _find_in_file(pq.ParquetFile(stream), wanted)


def _find_in_file(file: pq.ParquetFile, wanted: set[int]) -> Iterator[dict[str, Any]]:
    for group in range(file.num_row_groups):
        labels = file.read_row_group(group, ["label"])["label"].to_pylist()
        if not wanted.isdisjoint(labels):
            rows = file.read_row_group(group, ["label", "image_id", "image"])
            yield from rows.filter(pc.field("label").isin(list(wanted))).to_pylist()


def _fit(image_HWC: np.ndarray) -> np.ndarray:
    """Resize a whole image to fit into a cell."""
    scale = CELL_PX / max(image_HWC.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image_HWC.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image_HWC, (width, height), interpolation=interpolation)


def _draw_sheet(rows: Sequence[Sequence[Cell]]) -> bytes:
    """Return a PNG of rows of up to COLUMNS images with captions."""
    across, down = CELL_PX + _GAP_PX, CELL_PX + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (COLUMNS * across + _GAP_PX, len(rows) * down + _GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for row, cells in enumerate(rows):
        for column, (image_HWC, caption) in enumerate(cells):
            left, top = column * across + _GAP_PX, row * down + _GAP_PX
            picture = Image.fromarray(image_HWC)
            corner = (left + (CELL_PX - picture.width) // 2, top + CELL_PX - picture.height)
            sheet.paste(picture, corner)
            lines = "\n".join(textwrap.wrap(caption, width=28, max_lines=2, placeholder=" ..."))
            draw.text((left, top + CELL_PX + 2), lines, fill="black", font=font, spacing=1)
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()


def encode_thumbnail(image_HWC: np.ndarray) -> str:
    """Write an RGB image as a small data URI, for a page."""
    height, width = image_HWC.shape[:2]
    scale = min(1.0, THUMBNAIL_PX / max(height, width))
    if scale < 1:
        size = (round(scale * width), round(scale * height))
        image_HWC = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode(
        ".webp", image_HWC[..., ::-1], [int(cv2.IMWRITE_WEBP_QUALITY), THUMBNAIL_QUALITY]
    )
    return f"data:image/webp;base64,{base64.b64encode(content.tobytes()).decode()}"
