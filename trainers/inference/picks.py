"""Which photographs to label next: those the network is least sure of, or different ones of them.

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
from sklearn.cluster import kmeans_plusplus
from torch import Tensor, nn

from cluster.io import storage
from cluster.io.page import render
from cluster.io.tables import to_csv
from cluster.io.uris import name_of
from datasets.images import BadImage, encode_thumbnail, load_image
from datasets.passes.collection import Collection
from trainers.inference.config import RankBy
from trainers.networks.backbones import find

HERE = Path(__file__).parent
CANDIDATES = 4
"""Images among which `diversity` chooses one: the least sure ones."""
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


def rank(table: pa.Table, by: RankBy, num_picks: int, seed: int = 0) -> np.ndarray:
    """Return the rows to label, the first one first.

    uncertainty: the smallest margin between the two likeliest classes (Scheffer et al. 2001).
    diversity: k-means++ on unit features of the CANDIDATES times as many images of least margin, so
    that no two are alike (as BADGE, Ash et al. 2020, and Cluster-Margin, Citovsky et al. 2021).

    Args:
        table: predictions, with `features` for diversity.
    """
    order_N = np.argsort(margins(table), kind="stable")
    if by == "uncertainty" or num_picks >= len(order_N):
        return order_N[:num_picks]
    chosen_N = order_N[: CANDIDATES * num_picks]
    features_ND = np.stack(table["features"].take(chosen_N).to_numpy(zero_copy_only=False))
    features_ND = features_ND.astype(np.float32)
    norms_N1 = np.linalg.norm(features_ND, axis=1, keepdims=True)
    _, picked = kmeans_plusplus(
        features_ND / np.maximum(norms_N1, 1e-12), num_picks, random_state=seed
    )
    return chosen_N[list(dict.fromkeys(picked.tolist()))]  # identical images may be drawn twice


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
    wanted = ("path", "class", "top_classes", "top_probabilities", "unknown", "features")
    tables = [storage.read_parquet(part) for part in parts]
    table = pa.concat_tables(
        part.select([name for name in wanted if name in part.column_names]) for part in tables
    )
    picked = table.take(rank(table, by, num_picks))
    rows: list[dict[str, Any]] = picked.drop_columns(
        [name for name in ("features",) if name in picked.column_names]
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
        num_images=len(table),
        num_picks=len(rows),
        cards=cards,
    )
    storage.write_bytes(storage.join(out, "picks.html"), page)
    return len(rows)


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
