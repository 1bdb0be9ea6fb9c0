"""Measure the lecture's four quadrants on a data set and recommend freeze depths for a sweep.

OUT/advice.png    the linear classifiers and the quadrant
OUT/advice.json   written last; `python -m tuning --from-advice OUT` starts the sweep

With several networks, these two lie in OUT/NAME for each, and OUT has:

OUT/backbones.png    accuracy against cost
OUT/backbones.json   the ranking
"""

import json
import shlex
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from cluster.io import storage
from cluster.io.lease import hold_lease
from cluster.runtime import connect
from datasets.shards import Manifest, read_manifest
from trainers import prepare
from trainers.config import FinetuneConfig
from trainers.inference.passes import Features, build_training, cache_uri
from tuning.advice.advice import Advice, advice_uri
from tuning.advice.candidates import plan_candidates
from tuning.advice.compare import compare
from tuning.advice.config import AdviseConfig
from tuning.advice.picture import draw_advice
from tuning.advice.quadrants import find_quadrant
from tuning.advice.stages import collect, probe_stages


def run_advise(config: AdviseConfig) -> dict[str, Any]:
    """Probe every stage; print and write the advice, and return the content of advice.json, or of
    backbones.json where several networks are compared.

    Raises:
        UserError: for a configuration that a training would refuse, or features that overflow half
            precision.
    """
    training = replace(build_training(config, config.out), fold=config.fold)
    manifest = read_manifest(training.data, config.fold)
    candidates = plan_candidates(config.backbones, training)
    trainings = [candidate.training for candidate in candidates] or [training]
    for each in trainings:
        prepare.check(each, manifest)
    resources = connect(config.address)
    cache = cache_uri(training.out, config.cache)
    with hold_lease(training.out):
        features = collect(trainings, manifest, resources, cache)
        probed = [
            _advise(config, each, manifest, of_network)
            for each, of_network in zip(trainings, features, strict=True)
        ]
        if candidates:
            return compare(candidates, probed, manifest, training.out)
        ((advice, _),) = probed
        print_advice(advice, manifest, training.out)
        return advice.to_dict()


def _advise(
    config: AdviseConfig, training: FinetuneConfig, manifest: Manifest, features: Features
) -> tuple[Advice, np.ndarray]:
    """Probe and write the advice of one network; return also which validation images the best
    classifier gets right."""
    stages, correct_N = probe_stages(training.model.backbone, features)
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
        verdict=quadrant,
        stages=stages,
    )
    storage.write_bytes(storage.join(training.out, "advice.png"), draw_advice(advice))
    values = json.dumps(advice.to_dict(), indent=1).encode()
    storage.write_bytes(advice_uri(training.out), values)
    return advice, correct_N


def print_advice(advice: Advice, manifest: Manifest, out: str) -> None:
    """Print a row per stage, the quadrant and the recommendation.

    Args:
        out: URI of the folder with the advice.
    """
    num_train, num_val = (manifest.split(split).num_images for split in ("train", "val"))
    fold = f" (fold {advice.fold} of {len(manifest.folds)})" if manifest.folds else ""
    print(
        f"\nLinear classifiers on the frozen stages of {advice.backbone} ({advice.init}), trained "
        f"on {num_train} and validated on {num_val} images{fold} of {len(manifest.classes)} "
        "classes\n"
    )
    quadrant = advice.verdict
    _print_row("stage", "depth", "features", "val/top1", "95 percent")
    for stage in advice.stages:
        _print_row(
            stage.name,
            str(stage.depth),
            str(stage.num_features),
            f"{stage.top1:.3f}",
            f"{stage.low:.3f}-{stage.high:.3f}",
        )
    _print_row("chance", "", "", f"{quadrant.chance:.3f}")
    data, task = quadrant.describe()
    first, *others = quadrant.freeze_depths
    name = advice.stages[first - 1].name if first else "nothing"
    print(f"\nData:     {data}")
    print(f"Task:     {task}")
    print(
        f"Advice:   {quadrant.advice}: freeze depth {first} of {len(advice.stages)} (up to {name})"
    )
    print(f"Compare:  freeze depths {' and '.join(map(str, others))}; the sweep tests the advice")
    print(f"Written:  {out}/advice.json, advice.png")
    print(f"Sweep it: {shlex.join(['python', '-m', 'tuning', '--from-advice', out])}")


def _print_row(stage: str, *cells: str) -> None:
    widths = (7, 10, 10, 13)
    line = "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False))
    print(f"{stage:<10}{line}".rstrip())
