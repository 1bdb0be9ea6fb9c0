"""Calibrate a run's best checkpoint on its validation images.

N images, K classes.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.model_selection import KFold

from cluster.config import ClusterConfig, Device
from cluster.io.errors import UserError
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from trainers.evaluation.measures import measure
from trainers.evaluation.split import keep_logits, predict_split
from trainers.inference.inference import Network
from trainers.prepare import PrefixFeatures
from trainers.run.calibration import (
    LEAST_IMAGES,
    TRAINED,
    Calibration,
    read_calibration,
    unknown_scores,
    write_calibration,
)
from trainers.run.checkpoint import TrainingProgress, load_best
from trainers.run.folder import load_best_model
from trainers.run.predictions import Predictions

MAX_LOG_TEMPERATURE = 3.0
NUM_FOLDS = 5
MAX_LOGITS, FEWEST_IMAGES = 20_000_000, 1000
"""A calibration is fitted on so many images that their logits take 80 MB, or on FEWEST_IMAGES."""
BLOCK_LOGITS = 2**17
"""That are computed with at a time, in float64."""


def calibrate(run: str, manifest: Manifest, *, device: Device) -> str:
    """Calibrate a run's best checkpoint, unless it is; return a line that says what it found.

    Args:
        manifest: of the data set that it was trained on.
        device: to predict on.
    """
    found, reason = _calibrate(run, device, manifest)
    if found is None:
        return f"Not calibrated: {reason}"
    return (
        f"Calibrated: temperature {found.temperature:.3f}; val ECE {found.ece_after:.3f} after, "
        f"{found.ece_before:.3f} before"
    )


def _calibrate(
    run: str, device: Device, manifest: Manifest | None = None
) -> tuple[Calibration | None, str | None]:
    config, progress, model = load_best_model(run)
    config = replace(config, cluster=ClusterConfig(device=device))
    network = Network(model=model, config=config, classes=progress.classes, origin=run)
    return find_calibration(run, network, progress, manifest)


def find_calibration(
    run: str,
    network: Network,
    progress: TrainingProgress,
    manifest: Manifest | None = None,
    *,
    prefix: PrefixFeatures | None = None,
) -> tuple[Calibration | None, str | None]:
    """Return the calibration of a run's best checkpoint, fitted where the checkpoint has none.

    Args:
        network: of that checkpoint, with the config that it was trained with, and the device to
            predict on.
        progress: of that checkpoint.
        manifest: of its data set, where it was read before.
        prefix: as of `predict_split`.

    Returns:
        The calibration; or None, and the reason for it.
    """
    if (known := read_calibration(run, progress.global_step)) is not None:
        return known, None
    data = network.config.data
    if not progress.validated:
        return None, TRAINED
    try:
        manifest = manifest or read_manifest(data, network.config.fold)
    except UserError as error:
        return None, str(error)
    if manifest.fingerprint != progress.fingerprint:
        return None, f"{data} was prepared again since the training"
    num_images = manifest.split("val").num_images
    if num_images < LEAST_IMAGES:
        return (
            None,
            f"{num_images} validation images are too few, {LEAST_IMAGES} or more are needed",
        )
    rows_N = draw_rows(num_images, len(manifest.classes))
    predictions = predict_split(
        network,
        manifest,
        "val",
        rows_N=rows_N,
        index_K=np.arange(len(manifest.classes)),
        describe=keep_logits,
        prefix=prefix,
    )
    calibration = fit_calibration(predictions, manifest.fingerprint)
    write_calibration(run, progress.global_step, calibration)
    return calibration, None


def draw_rows(num_images: int, num_classes: int) -> np.ndarray:
    """Return the rows of the images to calibrate on: all, or as many as are enough, at random."""
    size = max(FEWEST_IMAGES, MAX_LOGITS // num_classes)
    return np.sort(np.random.default_rng(0).permutation(num_images)[:size])


def lend_calibration(origin: str, run: str, *, device: Device) -> None:
    """Give a run that trained on its validation images the calibration of another training of its
    config, without them, unless it has one; nothing where that one can't be calibrated."""
    step = load_best(run)[0].global_step
    if read_calibration(run, step) is not None:
        return
    found, _ = _calibrate(origin, device)
    if found is not None:
        write_calibration(run, step, replace(found, origin=origin))


def fit_calibration(predictions: Predictions, fingerprint: str) -> Calibration:
    """Fit a calibration on predictions that have logits, of images that did not train."""
    logits_NK = _logits(predictions)
    labels_N, ones_N = predictions.label_N, np.ones(len(logits_NK))
    temperature = fit_temperature(logits_NK, labels_N)
    folds = KFold(NUM_FOLDS, shuffle=True, random_state=0)
    temperature_N = ones_N.copy()
    for others, fold in folds.split(logits_NK):
        temperature_N[fold] = fit_temperature(logits_NK[others], labels_N[others])
    before = measure(with_logits(predictions, logits_NK, ones_N))
    after = measure(with_logits(predictions, logits_NK, temperature_N))
    log_2N = _log_probabilities(logits_NK, labels_N, temperature * ones_N)
    return Calibration(
        temperature=temperature,
        fingerprint=fingerprint,
        num_images=len(labels_N),
        ece_before=before.ece,
        ece_after=after.ece,
        loss_before=before.loss,
        loss_after=after.loss,
        known_scores=tuple(np.sort(unknown_scores(logits_NK)).tolist()),
        label_distances=tuple(np.sort(1 - np.exp(log_2N[0])).tolist()),
    )


def fit_temperature(logits_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """Return the temperature of the least cross-entropy.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks. A normal prior of its
    logarithm (deviation 1) keeps it finite where every image is right.
    """

    def loss(log_temperature: float) -> float:
        temperature_N = np.full(len(labels_N), np.exp(log_temperature))
        log_2N = _log_probabilities(logits_NK, labels_N, temperature_N)
        return 0.5 * log_temperature**2 - log_2N[0].sum()

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    found = minimize_scalar(loss, bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def with_logits(
    predictions: Predictions, logits_NK: np.ndarray, temperature_N: np.ndarray
) -> Predictions:
    """Return predictions with the confidence and loss that logits give."""
    of_label_N, largest_N = _log_probabilities(logits_NK, predictions.label_N, temperature_N)
    return replace_columns(predictions, {"confidence": np.exp(largest_N), "loss": -of_label_N})


def measure_calibration(
    predictions: Predictions, calibration: Calibration, *, coverage: float, refused: float
) -> dict[str, Any]:
    """Return how often images are called unknown, and how often their sets have the true class.

    Args:
        predictions: with the columns of `describe_calibrated` for this coverage.
    """
    threshold = calibration.unknown_threshold(refused)
    of_label_N = np.exp(-predictions.numbers("calibrated_loss"))
    return {
        "temperature": calibration.temperature,
        "num_images": calibration.num_images,
        "origin": calibration.origin,
        "refused": refused,
        "unknown_threshold": threshold,
        "measured_refused": float((predictions.numbers("unknown_score") > threshold).mean()),
        "coverage": coverage,
        "measured_coverage": float((of_label_N >= calibration.least_probability(coverage)).mean()),
        "expected_coverage": list(calibration.expected_coverage(coverage, len(of_label_N))),
        "set_size": float(predictions.numbers("set_size").mean()),
    }


def calibrated(predictions: Predictions) -> Predictions:
    """Return predictions whose confidence and loss are the calibrated ones beside them."""
    names = ("confidence", "loss")
    return replace_columns(
        predictions, {name: predictions.numbers(f"calibrated_{name}") for name in names}
    )


def replace_columns(predictions: Predictions, columns: dict[str, np.ndarray]) -> Predictions:
    table = predictions.table
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, [values])
    return replace(predictions, table=table)


def _logits(predictions: Predictions) -> np.ndarray:
    """Return logits_NK, float32, of the column that `keep_logits` makes."""
    lists = predictions.table["logits"].combine_chunks()
    return lists.flatten().to_numpy().reshape(len(lists), -1)


def _log_probabilities(
    logits_NK: np.ndarray, labels_N: np.ndarray, temperature_N: np.ndarray
) -> np.ndarray:
    """Return the log probabilities of each image's class and of its likeliest one, float64
    `[2, N]`."""
    found_2N, step = np.empty((2, len(labels_N))), max(1, BLOCK_LOGITS // logits_NK.shape[1])
    for start in range(0, len(labels_N), step):
        rows = slice(start, start + step)
        scaled_BK = logits_NK[rows].astype(np.float64) / temperature_N[rows, None]
        log_BK = log_softmax(scaled_BK, axis=1)
        found_2N[0, rows] = np.take_along_axis(log_BK, labels_N[rows, None], 1)[:, 0]
        found_2N[1, rows] = log_BK.max(1)
    return found_2N
