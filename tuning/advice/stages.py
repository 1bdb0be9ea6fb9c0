"""Probe every stage of frozen networks: one pass over all images, then a linear classifier each.

N images, D features.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cluster.io.statistics import count_discordant, mcnemar, wilson
from cluster.io.terminal import count
from cluster.runtime import Resources
from datasets.manifest import Manifest
from trainers.config import FinetuneConfig
from trainers.inference.passes import Features, compute_features
from trainers.inference.probe import fit_probe, predict
from trainers.networks.backbones import find
from trainers.stops import require_readable
from tuning.advice.quadrants import Stage, find_best

logger = logging.getLogger(__name__)


class Samples(NamedTuple):
    """A stage's features of the readable images of a split."""

    features_ND: np.ndarray
    labels_N: np.ndarray


def collect(
    trainings: Sequence[FinetuneConfig], manifest: Manifest, resources: Resources, cache: str
) -> tuple[list[Features], dict[str, np.ndarray]]:
    """Compute each network's features of the training and validation images, at every stage.

    Returns:
        Also the rows of each split that no stage of a network lacks: all are compared on these.

    Raises:
        UserError: as `compute_features`, and where more images are unreadable than
            `ingest.max_bad_fraction`.
    """
    features = compute_features(
        trainings,
        manifest,
        resources,
        cache,
        depths=lambda backbone: range(1, len(backbone.stages) + 1),
        splits=("train", "val"),
    )
    of_networks = [each.find_unreadable() for each in features]
    rows: dict[str, np.ndarray] = {}
    for split in ("train", "val"):
        num_images = manifest.split(split).num_images
        names: dict[int, str] = {}
        for unreadable in of_networks:
            names |= unreadable[split]
        rows[split] = np.setdiff1d(np.arange(num_images), list(names))
        if not names:
            continue
        first = names[min(names)]
        problem = require_readable(trainings[0], len(names), num_images, split, first)
        logger.warning("%s; left out", problem)
    return features, rows


def probe_stages(
    backbone: str, features: Features, rows: Mapping[str, np.ndarray]
) -> tuple[tuple[Stage, ...], np.ndarray]:
    """Train a linear classifier on each stage and measure it on validation images.

    Args:
        rows: as of `collect`.

    Returns:
        The stages; and for each of these validation images, whether the best stage's classifier is
        right.
    """
    samples = [
        {
            split: Samples(arrays.features[rows[split]], arrays.labels_N[rows[split]])
            for split, arrays in of_depth.items()
        }
        for of_depth in features.load()
    ]
    probes: list[tuple[float, np.ndarray]] = []
    with count(f"Probing {backbone}", len(samples), "stages") as advance:
        for of_stage in samples:
            train, val = of_stage["train"], of_stage["val"]
            probe, strength = fit_probe(train.features_ND, train.labels_N)
            probes.append((strength, predict(probe, val.features_ND) == val.labels_N))
            advance(1)
    last_N = probes[-1][1]
    stages: list[Stage] = []
    for depth, (of_stage, (strength, correct_N)) in enumerate(
        zip(samples, probes, strict=True), start=1
    ):
        top1 = wilson(float(correct_N.mean()), len(correct_N))
        stages.append(
            Stage(
                name=find(backbone).stages[depth - 1][0],
                depth=depth,
                num_features=of_stage["train"].features_ND.shape[1],
                strength=strength,
                top1=top1.mean,
                low=top1.low,
                high=top1.high,
                p_better=mcnemar(*count_discordant(correct_N, last_N), "greater"),
            )
        )
    return tuple(stages), probes[find_best(stages).depth - 1][1]
