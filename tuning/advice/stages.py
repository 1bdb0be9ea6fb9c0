"""Probe every stage of frozen networks: one pass over all images, then a linear classifier each.

N images, D features.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cluster.io.errors import UserError
from cluster.io.statistics import count_discordant, mcnemar, wilson
from cluster.io.terminal import count
from cluster.runtime import Resources
from datasets.manifest import Manifest
from datasets.passes.features import FeatureArrays
from datasets.plan import IGNORE_INDEX
from trainers.config import FinetuneConfig
from trainers.inference.passes import Features, compute_features
from trainers.inference.probe import fit_probe, predict
from trainers.networks.backbones import find
from trainers.stops import describe_unreadable, refuse_unreadable, too_many_unreadable
from tuning.advice.quadrants import Stage, find_best

logger = logging.getLogger(__name__)


class Samples(NamedTuple):
    """A stage's features of a split, without unreadable images."""

    features_ND: np.ndarray
    labels_N: np.ndarray


def collect(
    trainings: Sequence[FinetuneConfig], manifest: Manifest, resources: Resources, cache: str
) -> list[Features]:
    """Return each network's features of the training and validation images, at every stage.

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
    for split, names in features[0].list_unreadable().items():  # those of all stages and networks
        num_images = manifest.split(split).num_images
        problem = describe_unreadable(len(names), num_images, split, names[0])
        if too_many_unreadable(trainings[0], len(names), num_images):
            raise UserError(refuse_unreadable(trainings[0], problem))
        logger.warning("%s; left out", problem)
    return features


def _without_unreadable(arrays: FeatureArrays) -> Samples:
    readable_N = arrays.labels_N != IGNORE_INDEX
    return Samples(arrays.features[readable_N], arrays.labels_N[readable_N])


def probe_stages(backbone: str, features: Features) -> tuple[tuple[Stage, ...], np.ndarray]:
    """Train a linear classifier on each stage and measure it on validation images.

    Returns:
        The stages; and for each validation image, whether the best stage's classifier is right.
    """
    samples = [
        {split: _without_unreadable(arrays) for split, arrays in of_depth.items()}
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
