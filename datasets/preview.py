"""A contact sheet of a data set: one image of each class, and augmented views of some."""

import io
import textwrap
from collections.abc import Sequence

import cv2
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from cluster.io import storage
from datasets.augment import augment
from datasets.config import POLICIES, IngestConfig
from datasets.decode import decode
from datasets.shards import Manifest, read_manifest

COLUMNS = 8
CELL_PX = 160
_GAP_PX = 6
_CAPTION_PX = 30
_VIEWS_PER_POLICY, _VIEWS_SHOWN = 2, 4


def preview(data_uri: str, out_png: str, *, num_classes: int = 32, seed: int = 0) -> None:
    """Write a PNG: the first training image of up to `num_classes` classes, and below them views
    of the first few by every augmentation policy in the first epochs.

    Raises:
        UserError: where there is no data set at `data_uri`.
    """
    manifest = read_manifest(data_uri)
    images = _pick_images(data_uri, manifest, num_classes)
    cells = [(_fit(image_HWC), manifest.classes[label]) for label, (_, image_HWC) in images.items()]
    cells += [(None, "")] * (-len(cells) % COLUMNS)
    shown = list(images.values())[:COLUMNS]
    for policy in POLICIES:
        for epoch in range(_VIEWS_PER_POLICY):
            views = [
                augment(image_HWC, policy, CELL_PX, seed=seed, epoch=epoch, image_id=image_id)
                for image_id, image_HWC in shown
            ]
            cells += [(view_HWC, f"{policy}, epoch {epoch}") for view_HWC in views]
            cells += [(None, "")] * (COLUMNS - len(views))
    storage.write_bytes(out_png, _draw_sheet(cells))


def draw_views(data_uri: str, ingest: IngestConfig, *, seed: int) -> bytes:
    """Draw the views of the first images of some classes that a training sees, epoch by epoch.

    Returns:
        A PNG: a column per image, a row per epoch.

    Raises:
        UserError: where there is no data set at `data_uri`.
    """
    manifest = read_manifest(data_uri)
    images = _pick_images(data_uri, manifest, COLUMNS)
    cells: list[tuple[np.ndarray | None, str]] = []
    for epoch in range(_VIEWS_SHOWN):
        for label, (image_id, image_HWC) in images.items():
            view_HWC = augment(
                image_HWC,
                ingest.policy,
                ingest.size_px,
                seed=seed,
                epoch=ingest.view_of(epoch),
                image_id=image_id,
            )
            cells.append((_fit(view_HWC), f"epoch {epoch + 1}: {manifest.classes[label]}"))
        cells += [(None, "")] * (COLUMNS - len(images))
    return _draw_sheet(cells)


def _pick_images(
    uri: str, manifest: Manifest, num_classes: int
) -> dict[int, tuple[int, np.ndarray]]:
    """Return label -> (image id, pixels) of the first training image of the first classes."""
    wanted = set(range(min(num_classes, len(manifest.classes))))
    picked: dict[int, tuple[int, np.ndarray]] = {}
    for shard in manifest.split("train").shards:
        if not wanted:
            break
        file_system, path = storage.resolve(storage.join(uri, shard.path))
        with file_system.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                labels = file.read_row_group(group, ["label"])["label"].to_pylist()
                if wanted.isdisjoint(labels):
                    continue
                rows = file.read_row_group(group, ["label", "image_id", "image"])
                for row in rows.filter(pc.field("label").isin(list(wanted))).to_pylist():
                    if row["label"] in wanted:
                        picked[row["label"]] = (row["image_id"], decode(row["image"]))
                        wanted.remove(row["label"])
    return dict(sorted(picked.items()))


def _fit(image_HWC: np.ndarray) -> np.ndarray:
    """Resize a whole image to fit into a cell."""
    scale = CELL_PX / max(image_HWC.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image_HWC.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image_HWC, (width, height), interpolation=interpolation)


def _draw_sheet(cells: Sequence[tuple[np.ndarray | None, str]]) -> bytes:
    """Return a PNG of rows of COLUMNS images with captions."""
    across, down = CELL_PX + _GAP_PX, CELL_PX + _CAPTION_PX + _GAP_PX
    rows = len(cells) // COLUMNS
    sheet = Image.new("RGB", (COLUMNS * across + _GAP_PX, rows * down + _GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for number, (image_HWC, caption) in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        left, top = column * across + _GAP_PX, row * down + _GAP_PX
        if image_HWC is not None:
            picture = Image.fromarray(image_HWC)
            corner = (left + (CELL_PX - picture.width) // 2, top + CELL_PX - picture.height)
            sheet.paste(picture, corner)
        lines = textwrap.wrap(caption, width=28, max_lines=2, placeholder=" ...")
        draw.text((left, top + CELL_PX + 2), "\n".join(lines), fill="black", font=font, spacing=1)
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()
