"""Which photographs to label next: those the network is least sure of, or those that tell most.

    OUT/picks.csv, picks.html

N images, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from cluster.io import storage
from cluster.io.page import render
from cluster.io.tables import to_csv
from cluster.io.uris import name_of
from datasets.images import BadImage, load_image
from datasets.passes.collection import Collection
from datasets.preview import encode_thumbnail
from trainers.inference.config import RankBy
from trainers.inference.design import pick_by_design
from trainers.networks.backbones import find

HERE = Path(__file__).parent
MOST_CANDIDATES = 50_000
"""Images among which `diversity` chooses, those of the largest impurity: bounds memory and time."""
COLUMNS = ("path", "class", "top_classes", "top_probabilities", "unknown")
"""Of the predictions, those that the list and the page show."""
NUM_SHOWN = 200
"""Thumbnails on the page."""


class WithFeatures(nn.Module):
    """images_BCHW -> logits_BK, and after them the features that the last layer sees."""

    def __init__(self, network: nn.Module, backbone: str) -> None:
        super().__init__()
        self.network = network
        head = network.get_submodule(find(backbone).head)
        layers = [m for m in head.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        self._found: list[Tensor] = []
        layers[-1].register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._found[:] = [inputs[0].flatten(1)]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK = self.network(images_BCHW)
        return torch.cat([logits_BK, self._found[0].to(logits_BK.dtype)], dim=1)


def to_lists(features_BD: Tensor) -> pa.Array:
    """Return a column of lists of 16-bit floats."""
    values = pa.array(features_BD.numpy().astype(np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(values, features_BD.shape[1])


def to_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return features_ND of a column of `to_lists`."""
    return np.concatenate(
        [chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in column.chunks if chunk]
    )


def rank(table: pa.Table, by: RankBy, num_picks: int) -> np.ndarray:
    """Return the rows to label, the first one first.

    uncertainty: the smallest margin between the two likeliest classes (Scheffer et al. 2001).
    diversity: greedy design on the features, each image weighted by its Gini impurity. Of images
    that are nearly the same, one; so they may be fewer than `num_picks`.

    Args:
        table: predictions, with `features` and `impurity` for diversity.
    """
    if by == "uncertainty":
        return np.argsort(margins(table), kind="stable")[:num_picks]
    order_N = order_by_impurity(table)[: max(MOST_CANDIDATES, num_picks)]
    chosen = table.take(order_N)
    features_ND = to_matrix(chosen["features"])
    return order_N[pick_by_design(features_ND, chosen["impurity"].to_numpy(), num_picks)]


def order_by_impurity(table: pa.Table) -> np.ndarray:
    """Return all rows, the largest impurity first."""
    return np.argsort(-table["impurity"].to_numpy(), kind="stable")


def margins(table: pa.Table) -> np.ndarray:
    """Return the probability of the likeliest class less that of the second."""
    top_N = table["top_probabilities"].to_pylist()
    return np.array([top[0] - (top[1] if len(top) > 1 else 0.0) for top in top_N])


@dataclass(frozen=True, kw_only=True)
class Card:
    """A pick on the page."""

    rank: int
    path: str
    class_name: str
    second: str
    margin: float
    unknown: bool
    uri: str | None
    """Its thumbnail, as a data URI."""


def write_picks(
    collection: Collection, parts: Sequence[str], out: str, *, by: RankBy, num_picks: int
) -> int:
    """Write the pick list and its page; return how many images are on the list."""
    table, num_images = read_candidates(parts, max(MOST_CANDIDATES, num_picks))
    picked = table.take(rank(table, by, num_picks))
    rows: list[dict[str, Any]] = picked.select(
        [name for name in COLUMNS if name in picked.column_names]
    ).to_pylist()
    margin_N = margins(picked)
    content = to_csv(
        ["rank", "path", "class", "margin"],
        (
            [number, row["path"], row["class"], f"{margin:.4f}"]
            for number, (row, margin) in enumerate(zip(rows, margin_N, strict=True), 1)
        ),
    )
    storage.write_bytes(storage.join(out, "picks.csv"), content)
    thumbnails = read_thumbnails(collection, [row["path"] for row in rows[:NUM_SHOWN]])
    cards = [
        Card(
            rank=number,
            path=row["path"],
            class_name=row["class"],
            second=row["top_classes"][1] if len(row["top_classes"]) > 1 else "",
            margin=margin,
            unknown=bool(row.get("unknown")),
            uri=thumbnails.get(row["path"]),
        )
        for number, (row, margin) in enumerate(
            zip(rows[:NUM_SHOWN], margin_N[:NUM_SHOWN].tolist(), strict=True), 1
        )
    ]
    page = render(
        HERE / "picks.html.j2",
        style="",
        name=name_of(out),
        by=by,
        num_images=num_images,
        num_picks=len(rows),
        cards=cards,
    )
    storage.write_bytes(storage.join(out, "picks.html"), page)
    return len(rows)


def read_candidates(parts: Sequence[str], most: int) -> tuple[pa.Table, int]:
    """Return predictions, and how many images there are.

    Where they have features, only the images of the largest impurity, in their order: the `most`,
    and up to as many more.
    """
    kept: list[pa.Table] = []
    num_images = 0
    for part in parts:
        table = storage.read_parquet(part)
        wanted = (*COLUMNS, "impurity", "features")
        kept.append(table.select([name for name in wanted if name in table.column_names]))
        num_images += len(table)
        if "features" in table.column_names and sum(map(len, kept)) > 2 * most:
            kept = [cut(pa.concat_tables(kept), most)]
    return pa.concat_tables(kept), num_images


def cut(table: pa.Table, most: int) -> pa.Table:
    return table.take(np.sort(order_by_impurity(table)[:most]))


def read_thumbnails(collection: Collection, paths: Sequence[str]) -> dict[str, str]:
    """Return thumbnails of images as data URIs, by path; those that can't be read now are left
    out."""
    all_paths = collection.references["path"].to_pylist()
    wanted = set(paths)
    rows = [at for at, path in enumerate(all_paths) if path in wanted]
    contents = collection.read(collection.references.take(rows))
    found: dict[str, str] = {}
    for at, content in zip(rows, contents, strict=True):
        if isinstance(content, BadImage):
            continue
        try:
            found[all_paths[at]] = encode_thumbnail(load_image(content))
        except BadImage:
            continue
    return found
