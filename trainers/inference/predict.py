"""Classifies photographs, and writes the likeliest classes as Parquet."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
from rich.table import Table
from torch import Tensor

from cluster.io import storage
from cluster.io.errors import require
from cluster.io.terminal import literal_console, report
from datasets.passes.collection import list_images
from trainers.inference.config import PredictConfig, RankBy
from trainers.inference.hierarchy import Hierarchy, open_hierarchy
from trainers.inference.inference import Network, open_network, run_inference
from trainers.inference.picks import WithFeatures, to_lists, write_picks
from trainers.run.calibration import (
    TRAINED,
    Calibration,
    calibrating_command,
    describe_missing,
    unknown_scores,
)
from trainers.run.ensemble import Ensemble

_NUM_SHOWN = 5


def to_predictions(
    outputs: Tensor,
    *,
    classes: tuple[str, ...],
    top_k: int,
    calibration: Calibration | None = None,
    refused: float = PredictConfig.refused,
    coverage: float | None = None,
    hierarchy: Hierarchy | None = None,
    least_probability: float = PredictConfig.least_probability,
) -> dict[str, pa.Array]:
    """Return columns of the likeliest class, its probability, and both for the `top_k`; with a
    calibration also whether an image is of no class and, for a `coverage`, its set of classes; with
    a hierarchy its columns; with features also those, and Gini's impurity, 1 - sum p^2.

    Args:
        outputs: logits_BK, or with features after them, as of `picks.WithFeatures`.
    """
    logits_BK, features_BD = outputs[:, : len(classes)], outputs[:, len(classes) :]
    k = min(top_k, len(classes))
    temperature = 1.0 if calibration is None else calibration.temperature
    probabilities_BK = (logits_BK / temperature).softmax(dim=1)
    top_Bk = probabilities_BK.topk(k)
    names_Bk = np.array(classes, object)[top_Bk.indices.numpy()]
    names = pa.array(names_Bk.ravel(), pa.string())
    probabilities_Bk = top_Bk.values.numpy()
    offsets = pa.array(np.arange(0, names_Bk.size + 1, k), pa.int32())
    columns = {
        "class": pa.array(names_Bk[:, 0], pa.string()),
        "probability": pa.array(probabilities_Bk[:, 0]),
        "top_classes": pa.ListArray.from_arrays(offsets, names),
        "top_probabilities": pa.ListArray.from_arrays(offsets, probabilities_Bk.ravel()),
    }
    if calibration is not None:
        scores_B = unknown_scores(logits_BK.numpy())
        columns["unknown_score"] = pa.array(scores_B)
        columns["unknown"] = pa.array(scores_B > calibration.unknown_threshold(refused))
        if coverage is not None:
            columns["class_set"] = list_sets(
                probabilities_BK, classes, calibration.least_probability(coverage)
            )
    if hierarchy is not None:
        columns |= hierarchy.describe(probabilities_BK.numpy(), least_probability)
    if features_BD.shape[1]:
        impurities_B = (probabilities_BK * (1 - probabilities_BK)).sum(1)
        columns["impurity"] = pa.array(impurities_B.numpy())
        columns["features"] = to_lists(features_BD)
    return columns


def list_sets(probabilities_BK: Tensor, classes: tuple[str, ...], least: float) -> pa.Array:
    """Return the classes of at least a probability, the likeliest first; none for some images."""
    ordered_BK = probabilities_BK.sort(1, descending=True)
    return pa.array(
        [
            [classes[label] for label in labels_K[probabilities_K >= least]]
            for probabilities_K, labels_K in zip(
                ordered_BK.values.numpy(), ordered_BK.indices.numpy(), strict=True
            )
        ],
        pa.list_(pa.string()),
    )


def run_predict(config: PredictConfig) -> None:
    """Predict, and print counts and the first predictions."""
    network = open_network(config, keep_head=True)
    calibration, hierarchy = network.calibration, None
    if config.hierarchy is not None:
        hierarchy = open_hierarchy(config.hierarchy, network.classes)
    check_calibration(config, network)
    if config.rank_by == "diversity":
        require(
            not isinstance(network.model, Ensemble),
            "rank_by",
            config.rank_by,
            "the networks of an ensemble have no features in common; use --rank-by uncertainty, "
            "or the --run of one network",
        )
        model = WithFeatures(network.model, network.config.model.backbone)
        network = replace(network, model=model)
    outcome = run_inference(
        config,
        network,
        partial(
            to_predictions,
            classes=network.classes,
            top_k=config.top_k,
            calibration=calibration,
            refused=config.refused,
            coverage=config.coverage,
            hierarchy=hierarchy,
            least_probability=config.least_probability,
        ),
        name="predictions",
        row_bytes=0,  # far fewer than the pixels
        facts={
            "classes": network.classes,
            "calibration": calibration and calibration.summarize(config.refused),
        },
    )
    if outcome.parts:
        show(outcome.parts[0])
        print(f"Predictions: {storage.join(config.out, 'predictions')}")
        if config.rank_by is not None:
            _write_picks(config, outcome.parts, by=config.rank_by)


def check_calibration(config: PredictConfig, network: Network) -> None:
    """Warn of a run without a calibration for these images.

    Raises:
        UserError: where `coverage` needs one.
    """
    if network.calibration is not None:
        return
    lack, calibrated_px = ", so no image is called unknown", network.calibrated_px
    if config.run is None:
        remedy = "give --run instead of --backbone"
    elif calibrated_px is not None:
        remedy = f"this one is for {calibrated_px} px: leave --size-px out"
    elif not network.validated:
        remedy = TRAINED
    else:
        remedy = f"first `{calibrating_command(config.run)}`"
    require(
        config.coverage is None,
        "coverage",
        config.coverage,
        f"a set of classes needs a calibrated run; {remedy}",
    )
    if calibrated_px is not None:
        report(
            f"size_px is {config.size_px}: {config.run} is calibrated for {calibrated_px} px{lack} "
            "and probabilities are not calibrated; leave --size-px out, or train with "
            f"--size-px {config.size_px}",
            warning=True,
        )
    elif not network.validated:
        report(f"{config.run} is not calibrated{lack}: {TRAINED}", warning=True)
    elif config.run is not None:
        report(describe_missing(config.run, "calibrates it", lack), warning=True)


def _write_picks(config: PredictConfig, parts: Sequence[str], *, by: RankBy) -> None:
    images = storage.absolute(config.images, "images")
    num_picks = write_picks(
        list_images(images, split=config.split, image_column=config.image_column),
        parts,
        config.out,
        by=by,
        num_picks=config.num_picks,
    )
    print(f"Label next:  {storage.join(config.out, 'picks.csv')}, picks.html ({num_picks})")


def show(part: str) -> None:
    """Print a table of the first predictions of a part."""
    first = storage.read_parquet(part)
    table = Table("probability", "class", "image", box=None, pad_edge=False)
    for column, least in zip(table.columns, (11, 10, 20), strict=True):
        column.no_wrap, column.min_width = True, least
    for row in first.slice(0, _NUM_SHOWN).to_pylist():
        name = "/".join(row["path"].split("/")[-2:])
        label = f"unknown; likeliest {row['class']}" if row.get("unknown") else row["class"]
        table.add_row(f"{row['probability']:.3f}", label, name)
    literal_console().print(table)
