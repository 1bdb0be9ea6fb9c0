"""Classifies photographs, and writes the likeliest classes as Parquet."""

from functools import partial

import numpy as np
import pyarrow as pa
from rich.table import Table
from torch import Tensor

from cluster.io import storage
from cluster.io.terminal import literal_console
from trainers.inference.config import PredictConfig
from trainers.inference.inference import open_network, run_inference

_NUM_SHOWN = 5


def to_predictions(
    logits_BK: Tensor, *, classes: tuple[str, ...], top_k: int
) -> dict[str, pa.Array]:
    """Return columns of the likeliest class, its probability, and both for the `top_k`."""
    k = min(top_k, len(classes))
    top_Bk = logits_BK.softmax(dim=1).topk(k)
    names_Bk = np.array(classes, object)[top_Bk.indices.numpy()]
    names = pa.array(names_Bk.ravel(), pa.string())
    probabilities_Bk = top_Bk.values.numpy()
    offsets = pa.array(np.arange(0, names_Bk.size + 1, k), pa.int32())
    return {
        "class": pa.array(names_Bk[:, 0], pa.string()),
        "probability": pa.array(probabilities_Bk[:, 0]),
        "top_classes": pa.ListArray.from_arrays(offsets, names),
        "top_probabilities": pa.ListArray.from_arrays(offsets, probabilities_Bk.ravel()),
    }


def run_predict(config: PredictConfig) -> None:
    """Predict, and print counts and the first predictions."""
    network = open_network(config, keep_head=True)
    outcome = run_inference(
        config,
        network,
        partial(to_predictions, classes=network.classes, top_k=config.top_k),
        name="predictions",
        row_bytes=0,  # far fewer than the pixels
        facts={"classes": network.classes},
    )
    if outcome.parts:
        show(outcome.parts[0])
        print(f"Predictions: {storage.join(config.out, 'predictions')}")


def show(part: str) -> None:
    """Print a table of the first predictions of a part."""
    first = storage.read_parquet(part)
    table = Table("probability", "class", "image", box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for row in first.slice(0, _NUM_SHOWN).to_pylist():
        name = "/".join(row["path"].split("/")[-2:])
        table.add_row(f"{row['probability']:.3f}", row["class"], name)
    literal_console().print(table)
