"""Probe every stage of a frozen network: one pass over all images, then a linear classifier each.

N images, D features.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cluster.io.errors import UserError
from cluster.io.statistics import count_discordant, mcnemar, wilson
from cluster.io.terminal import count, report
from cluster.runtime import Resources
from datasets.passes.features import load_view, read_view
from datasets.plan import IGNORE_INDEX
from datasets.shards import Manifest
from trainers.config import FinetuneConfig
from trainers.inference.actors import plan_actors
from trainers.inference.prefix import open_frozen
from trainers.networks.backbones import find
from trainers.networks.precision import choose_precision
from tuning.advice.probe import fit_probe, predict
from tuning.advice.quadrants import Stage
from tuning.sharing.passes import plan_entries, run_pass

logger = logging.getLogger(__name__)


class Samples(NamedTuple):
    """A stage's features of a split, without unreadable images."""

    features_ND: np.ndarray
    labels_N: np.ndarray


def collect(
    training: FinetuneConfig, manifest: Manifest, resources: Resources, cache: str
) -> list[dict[str, Samples]]:
    """Return each stage's features of the training and validation images, by split.

    One pass computes those that the cache lacks; feature maps are averaged over positions.

    Raises:
        UserError: if features overflow half precision.
    """
    plan = plan_actors(resources, training.cluster)
    compute = choose_precision(training.compute, use_gpu=plan.use_gpu)
    training = replace(training, compute=compute)
    network = open_frozen(training, len(manifest.classes), pooled=True)
    depths = range(1, len(find(training.model.backbone).stages) + 1)
    entries = [
        plan_entries(
            network,
            depth,
            output=depth - 1,
            shape=shape,
            num_views=1,
            manifest=manifest,
            cache=cache,
            use_gpu=plan.use_gpu,
        )
        for depth, shape in zip(depths, network.shapes(depths), strict=True)
    ]
    flat = [entry for of_depth in entries for entry in of_depth]
    built = run_pass(network, depths, flat, manifest=manifest, plan=plan)
    if built.problems:
        raise UserError(
            f"model.weights is {training.model.weights!r}: {built.problems[0]}; use other weights"
        )
    if built.num_images:
        rate = built.num_images / built.seconds
        report(f"{built.num_images} images through all stages: {rate:.0f} images/s -> {cache}")
    else:
        report(f"Features of all stages are in the cache: {cache}")
    return [
        {entry.split: _load(entry.uri, entry.split) for entry in of_depth} for of_depth in entries
    ]


def _load(uri: str, split: str) -> Samples:
    view = read_view(uri, 0)
    assert view is not None, "a pass without problems leaves whole views"
    arrays = load_view(view)
    readable_N = arrays.labels_N != IGNORE_INDEX
    if arrays.unreadable:
        logger.warning(
            "%d %s images could not be read and are left out, such as %s",
            len(arrays.unreadable),
            split,
            next(iter(arrays.unreadable.values())),
        )
    return Samples(arrays.features[readable_N], arrays.labels_N[readable_N])


def probe_stages(backbone: str, samples: Sequence[dict[str, Samples]]) -> tuple[Stage, ...]:
    """Train a linear classifier on each stage and measure it on validation images."""
    probes: list[tuple[float, np.ndarray]] = []
    with count("Probing stages", len(samples), "stages") as advance:
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
    return tuple(stages)
