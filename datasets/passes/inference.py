"""Images through a network: one Ray Data stream from files to Parquet.

OUT/NAME/part-000000000.parquet   named by the index of its first image
OUT/NAME_bad_images.parquet       path and reason of every image that can't be read
OUT/NAME_summary.json             written last: without it the results are incomplete

NAME is `predictions` or `features`; an OUT may have both.

Tasks read, decode and crop; actors, each with the network loaded once, compute and write one part
per block. No pixels return to the driver.

Dimensions: N images, S size in pixels, H height, W width, C the channels red, green, blue.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data.extensions import ArrowTensorArray

from cluster.io import storage
from cluster.io.errors import UserError
from datasets.augment import augment, view
from datasets.images import BadImage, load_image
from datasets.passes.actors import Workers, choose_block_images, run_actors
from datasets.passes.collection import KEY, Collection
from datasets.prepare.listing import Reader
from datasets.shards import QUARANTINE_SCHEMA

Compute = Callable[[np.ndarray], dict[str, pa.Array]]
"""uint8 images_NSSC, N >= 1 -> columns of N rows."""

_PART_NAME = re.compile(r"part-\d{9}\.parquet")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Results of a pass over images."""

    num_images: int
    bad: pa.Table
    """QUARANTINE_SCHEMA."""
    bad_images: str
    """URI of `bad` as Parquet."""
    parts: tuple[str, ...]
    """URIs, in the order of the listing."""
    seconds: float

    @property
    def num_good(self) -> int:
        return self.num_images - len(self.bad)


def infer(
    images: Collection,
    build: Callable[[], Compute],
    *,
    out: str,
    name: str,
    size_px: int,
    batch_size: int,
    row_bytes: int,
    workers: Workers,
    facts: dict[str, Any],
) -> Outcome:
    """Compute columns for every image, preprocessed as for evaluation; write them to OUT/`name`.

    Results of an earlier call are deleted first.

    Args:
        build: returns the computation; called once in every actor.
        batch_size: images that the network computes at once; a batch that is not full may cost
            as much.
        row_bytes: approximate size of an image's results.
        facts: JSON-safe; kept in the summary.

    Raises:
        UserError: where `out` can't be written.
    """
    started_s = time.monotonic()
    folder = storage.join(out, name)
    bad_images, summary = f"{folder}_bad_images.parquet", f"{folder}_summary.json"
    _clear(folder, summary)
    # Written empty first, so that an OUT without write permission is found before the work.
    storage.write_parquet(bad_images, QUARANTINE_SCHEMA.empty_table())
    num_images, num_cpus = len(images.references), int(ray.cluster_resources()["CPU"])
    block_images = choose_block_images(num_images, max(3 * size_px**2, row_bytes), num_cpus)
    block_images = -(-block_images // batch_size) * batch_size
    done = _execute(images, build, folder, size_px, block_images, workers, f"Computing {name}")
    done = done.sort_by("position")
    assert done["position"].to_pylist() == list(range(len(images.references))), "one row per image"
    bad = done.filter(pc.field("reason").is_valid()).select(QUARANTINE_SCHEMA.names)
    names = done.filter(pc.field("reason").is_null())["part"].unique().to_pylist()
    outcome = Outcome(
        num_images=len(done),
        bad=bad,
        bad_images=bad_images,
        parts=tuple(storage.join(folder, part) for part in names),
        seconds=time.monotonic() - started_s,
    )
    storage.write_parquet(bad_images, bad)
    counts = {
        "num_images": outcome.num_images,
        "num_good": outcome.num_good,
        "num_bad": len(bad),
        "seconds": round(outcome.seconds, 1),
        "parts": [f"{name}/{part}" for part in names],
    }
    text = json.dumps({**facts, **counts}, indent=1)
    storage.write_bytes(summary, text.encode())
    return outcome


def _clear(folder: str, summary: str) -> None:
    """Delete results, whole or left by an interrupted run; other files stay."""
    # First the summary: without it there are no results, even if this is interrupted.
    storage.delete_file(summary)
    for part in filter(_PART_NAME.fullmatch, storage.list_names(folder)):
        storage.delete_file(storage.join(folder, part))


def _execute(
    images: Collection,
    build: Callable[[], Compute],
    folder: str,
    size_px: int,
    block_images: int,
    workers: Workers,
    title: str,
) -> pa.Table:
    """Run the stream with a progress bar; return position, path, reason, part of each image."""
    num_images = len(images.references)
    references = images.references.append_column("position", pa.array(np.arange(num_images)))
    blocks = [references.slice(i, block_images) for i in range(0, num_images, block_images)]
    dataset = ray.data.from_arrow(blocks).map_batches(
        partial(load_views, read=images.read, size_px=size_px),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=workers.reader_cpus,
    )
    actor = {"build": build, "folder": folder}
    return run_actors(dataset, PartWriter, actor, workers, len(blocks), num_images, title)


def load_views(references: pa.Table, *, read: Reader, size_px: int) -> pa.Table:
    """Read and decode images; bad ones have a reason, and black pixels that are not used."""
    images_NSSC = np.zeros((len(references), size_px, size_px, 3), np.uint8)
    reasons_N = np.full(len(references), None, object)
    for index, content in zip(range(len(references)), read(references), strict=True):
        try:
            images_NSSC[index] = open_view(content, size_px)
        except BadImage as bad:
            reasons_N[index] = bad.reason
    keys = [name for name in references.column_names if name.startswith(KEY)]
    table = references.select(["position", "path", *keys])
    table = table.append_column("reason", pa.array(reasons_N, pa.string()))
    return table.append_column("image", ArrowTensorArray.from_numpy(images_NSSC))


def open_view(content: bytes | BadImage, size_px: int) -> np.ndarray:
    """Return an image preprocessed as for evaluation: upright, cropped, uint8 `[S, S, 3]`.

    Raises:
        BadImage: for an image that `prepare` would have left out.
    """
    if isinstance(content, BadImage):
        raise content
    key = {"seed": 0, "epoch": 0, "image_id": 0}  # not used: `none` has no random step
    try:
        return view(content, "none", size_px, **key)
    except UserError:
        # Pillow may decode it: `prepare` would have encoded such a JPEG again.
        return augment(load_image(content), "none", size_px, **key)


class PartWriter:
    """Computes and writes one part per block. Runs in an actor."""

    def __init__(self, *, build: Callable[[], Compute], folder: str) -> None:
        self._compute, self._folder = build(), folder

    def __call__(self, views: pa.Table) -> pa.Table:
        """Return position, path, reason and part of each image, without pixels."""
        part = f"part-{views['position'][0].as_py():09d}.parquet"
        facts = views.select(["position", "path", "reason"])
        good_N = views["reason"].is_null().to_numpy()
        if good_N.any():
            images_NSSC = views["image"].chunk(0).to_numpy(zero_copy_only=False)[good_N]
            results = _with_keys(
                views.drop_columns("image").filter(pa.array(good_N)), self._compute(images_NSSC)
            )
            storage.write_parquet(storage.join(self._folder, part), results)
        return facts.append_column("part", pa.array([part] * len(facts)))


def _with_keys(images: pa.Table, results: dict[str, pa.Array]) -> pa.Table:
    """Join results to the path and the key columns of their images; a key that has the name of a
    result is called `input_NAME`."""
    columns = {"path": images["path"], **results}
    for name in images.column_names:
        if name.startswith(KEY):
            own = name.removeprefix(KEY)
            columns[f"input_{own}" if own in columns else own] = images[name]
    return pa.table(columns)
