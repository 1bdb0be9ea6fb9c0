"""The calibration of a checkpoint: RUN/checkpoints/step-00000063/calibration.json.

What a network's logits mean: probabilities, whether an image is of no class, and sets of classes
that hold the true one at a stated rate. B images, K classes, N validation images.
"""

import json
import math
import shlex
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy  # imports scipy.special and scipy.stats, which take a second, where they are used

from cluster.io import storage
from cluster.io.errors import require
from cluster.io.records import read_record
from trainers.run import checkpoint

FILE = "calibration.json"
TRAINED = "its validation images trained it; --train-on train leaves them to calibrate on"
"""Why a run can't be calibrated."""
LEAST_IMAGES = 20
"""For validation; below it a temperature says more about these images than about the network."""
COVERAGES = (0.9, 0.95, 0.99)
"""Rates of the sets that an export names."""
EXPECTED = 0.95
"""Share of splits whose rate is within `expected_coverage`."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Fitted on validation images; the numbers before and after are of validation images too, each
    with the temperature that the other four fifths of them give."""

    temperature: float
    """Logits are divided by it before softmax."""
    fingerprint: str
    """Of the data set."""
    num_images: int
    ece_before: float
    ece_after: float
    loss_before: float
    loss_after: float
    known_scores: tuple[float, ...]
    """`unknown_scores` of the validation images, rising."""
    label_distances: tuple[float, ...]
    """1 - the calibrated probability of the true class of the validation images, rising."""
    origin: str | None = None
    """URI of the run that it was fitted on, where this one trained on the validation images:
    another training of the same config, without them."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "use a number above zero")
        for name in ("known_scores", "label_distances"):
            values = getattr(self, name)
            require(
                len(values) > 0 and all(map(math.isfinite, values)),
                name,
                values[:3],
                "use one finite number or more",
            )

    def probabilities(self, logits_BK: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities_BK."""
        return scipy.special.softmax(logits_BK / self.temperature, axis=1)

    def unknown_threshold(self, refused: float) -> float:
        """Return the unknown score that a share of `refused` of known images is above."""
        return float(np.quantile(self.known_scores, 1 - refused, method="higher"))

    def least_probability(self, coverage: float) -> float:
        """Return the calibrated probability from which on a class is in an image's set, so that
        the sets of a share of `coverage` of images have the true class.

        Split conformal prediction (Sadinle et al. 2019, Least Ambiguous Set-Valued Classifiers). 0,
        so that all classes are in each set, where there are too few validation images for it.
        """
        rank = self._rank(coverage)
        return 1 - self.label_distances[rank - 1] if rank <= len(self.label_distances) else 0.0

    def expected_coverage(self, coverage: float, num_images: int) -> tuple[float, float]:
        """Return between which shares of other `num_images` images, in EXPECTED of all splits of
        such images, the sets for a rate of `coverage` have the true class.

        Few validation images give another threshold in each split; of the rates that the thresholds
        have, the mean is `coverage` and the distribution a beta distribution (Vovk 2012,
        Conditional Validity of Inductive Conformal Predictors), so that of the images is
        beta-binomial. A rate outside says that they are not like the validation images.
        """
        num_known, rank = len(self.label_distances), self._rank(coverage)
        if rank > num_known:
            return 1.0, 1.0
        found = scipy.stats.betabinom(num_images, rank, num_known + 1 - rank)
        low, high = found.interval(EXPECTED)
        return float(low / num_images), float(high / num_images)

    def _rank(self, coverage: float) -> int:
        """Return which of the rising `label_distances` is the threshold, from 1 on."""
        return math.ceil((len(self.label_distances) + 1) * coverage)

    def summarize(self, refused: float) -> dict[str, Any]:
        """Return what a reader of logits needs, for the files of an export."""
        return {
            "temperature": self.temperature,
            "unknown_threshold": self.unknown_threshold(refused),
            "refused": refused,
            "least_probability": {
                str(coverage): self.least_probability(coverage) for coverage in COVERAGES
            },
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def unknown_scores(logits_BK: np.ndarray) -> np.ndarray:
    """Return how little images look like any class, higher is less: minus their largest logit.

    Source: Vaze et al. 2022, Open-Set Recognition: A Good Closed-Set Classifier is All You Need.
    Of the scores in tests/bench/unknown.py none is better, and none needs features.
    """
    return -logits_BK.max(axis=1)


def read_calibration(run: str, step: int) -> Calibration | None:
    """Read the calibration of the checkpoint after `step` steps; None where it has none."""
    try:
        return read_record(_uri(run, step), Calibration)
    except FileNotFoundError:
        return None


def write_calibration(run: str, step: int, calibration: Calibration) -> None:
    storage.write_bytes(_uri(run, step), json.dumps(calibration.to_dict(), indent=1).encode())


def describe_missing(run: str, gain: str, lack: str = "") -> str:
    """Return a warning that a run has no calibration, with the command that fits one.

    Args:
        gain: what the command does, after it.
        lack: what there is not without a calibration.
    """
    return (
        f"{run} is not calibrated{lack}: `{calibrating_command(run)}` {gain}, if it has "
        f"{LEAST_IMAGES} validation images"
    )


def calibrating_command(run: str) -> str:
    """Return the command that calibrates a run, whether its data set has a test split or not."""
    return f"python -m trainers evaluate --run {shlex.quote(run)} --split val"


def _uri(run: str, step: int) -> str:
    return storage.join(checkpoint.folder(run, step), FILE)
