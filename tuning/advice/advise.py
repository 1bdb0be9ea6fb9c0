"""Measure the lecture's four quadrants on a data set, race freeze depths, and recommend one.

OUT/advice.png    the linear classifiers, the quadrant and the race
OUT/advice.json   written last; `python -m tuning --from-advice OUT` starts the sweep

With several networks, these two lie in OUT/NAME for each, and OUT has:

OUT/backbones.png    accuracy against cost
OUT/backbones.json   the ranking
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from cluster.io import storage
from cluster.io.lease import hold_lease
from cluster.runtime import connect
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from trainers import checks
from trainers.config import PRETRAINED, FinetuneConfig
from trainers.inference.passes import Features, build_training, cache_uri
from tuning.advice.advice import Advice, advice_uri, remove_advice
from tuning.advice.candidates import plan_candidates
from tuning.advice.compare import compare
from tuning.advice.config import AdviseConfig
from tuning.advice.picture import draw_advice
from tuning.advice.printing import print_advice
from tuning.advice.quadrants import find_quadrant
from tuning.advice.race import run_race
from tuning.advice.stages import collect, probe_stages


def run_advise(config: AdviseConfig) -> dict[str, Any]:
    """Probe every stage; print and write the advice, and return the content of advice.json, or of
    backbones.json where several networks are compared.

    Raises:
        UserError: for a configuration that a training would refuse, or features that overflow half
            precision.
    """
    training = build_training(config, config.out)
    manifest = read_manifest(training.data, config.fold)
    candidates = plan_candidates(config.backbones, training)
    trainings = [candidate.training for candidate in candidates] or [training]
    for each in trainings:
        checks.check(each, manifest)
    resources = connect(config.address)
    cache = cache_uri(training.out, config.cache)
    with hold_lease(training.out):
        features, rows = collect(trainings, manifest, resources, cache)
        probed = [
            _probe(config, each, manifest, of_network, rows)
            for each, of_network in zip(trainings, features, strict=True)
        ]
        best = max(range(len(probed)), key=lambda number: probed[number][1].sum())
        advice, correct_N = probed[best]
        if config.race and trainings[best].model.init in PRETRAINED:
            race = run_race(config, trainings[best], manifest, resources)
            advice = replace(advice, race=race)
            probed[best] = advice, correct_N
        remove_advice(training.out)
        for each, (of_network, _) in zip(trainings, probed, strict=True):
            _write(of_network, each.out)
        if candidates:
            return compare(candidates, probed, manifest, training.out)
        print_advice(advice, manifest, training.out)
        return advice.to_dict()


def _probe(
    config: AdviseConfig,
    training: FinetuneConfig,
    manifest: Manifest,
    features: Features,
    rows: Mapping[str, np.ndarray],
) -> tuple[Advice, np.ndarray]:
    """Probe one network; return also which validation images the best classifier gets right."""
    stages, correct_N = probe_stages(training.model.backbone, features, rows)
    val_counts = manifest.split("val").class_counts
    quadrant = find_quadrant(
        stages,
        chance=max(val_counts) / sum(val_counts),
        images_per_class=median(manifest.split("train").class_counts),
        little_per_class=config.little_per_class,
    )
    advice = Advice(
        data=training.data,
        fingerprint=manifest.fingerprint,
        fold=config.fold,
        backbone=training.model.backbone,
        init=training.model.init,
        weights=training.model.weights,
        normalization=training.model.normalization,
        size_px=config.size_px,
        epochs=config.epochs,
        global_batch_size=config.global_batch_size,
        policy=config.policy,
        verdict=quadrant,
        stages=stages,
    )
    return advice, correct_N


def _write(advice: Advice, out: str) -> None:
    storage.write_bytes(storage.join(out, "advice.png"), draw_advice(advice))
    storage.write_bytes(advice_uri(out), json.dumps(advice.to_dict(), indent=1).encode())
