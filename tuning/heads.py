"""LP-FT: heads trained on the frozen network, once, for all deeper trials to start from.

SWEEP/heads/NETWORK-RATE/         a head-only run for each learning rate of the space
SWEEP/heads/NETWORK.safetensors   the best of them
"""

import json
import re
from collections import Counter
from dataclasses import replace

import safetensors.torch

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.terminal import count, report
from datasets.passes.features import hash_facts
from trainers import launch, metrics
from trainers.config import PRETRAINED, FinetuneConfig
from trainers.networks.freezing import is_head_only
from trainers.networks.weights.head_files import head_tensors
from trainers.prepare import prepare_run
from trainers.run.folder import is_over, load_best_model
from trainers.tracking.mirror import RunMirror, follow
from tuning.axes.axis import CLIPNORM, FREEZE_DEPTH, LEARNING_RATE, show
from tuning.config import TuningConfig
from tuning.point import Point, training_of
from tuning.shared import Shared
from tuning.sharing.keys import name_networks, network_of
from tuning.sharing.reuse import record
from tuning.space import models


def train_heads(config: TuningConfig, shared: Shared) -> dict[FinetuneConfig, str]:
    """Train the heads that deeper trials start from, unless that is done.

    Returns:
        The URI of the best head by network.
    """
    names = name_networks(config)
    points: dict[FinetuneConfig, Point] = {}
    for point in models(config.space):
        training = training_of(config.base, point)
        if training.model.init in PRETRAINED and not is_head_only(training.model):
            points.setdefault(network_of(training), point)
    files = _name_files({key: names[key] for key in points})
    heads = {
        key: storage.join(config.out, "heads", f"{name}.safetensors") for key, name in files.items()
    }
    missing = [key for key in points if not storage.exists(heads[key])]
    if not missing:
        return heads
    rates = config.space.values_of(LEARNING_RATE) or (config.base.optim.learning_rate,)
    with count("Training heads", len(missing) * len(rates), "heads") as advance:
        for key in missing:
            trained: list[tuple[FinetuneConfig, float]] = []
            for rate in rates:
                point = _head_point(config, points[key], rate)
                training, top1 = _train(config, shared, point, f"{files[key]}-{show(rate)}")
                if top1 is not None:
                    trained.append((training, top1))
                advance(1)
            require(bool(trained), LEARNING_RATE, rates, "all heads diverged; give lower ones")
            _write_best(heads[key], trained)
    return heads


def _name_files(names: dict[FinetuneConfig, str]) -> dict[FinetuneConfig, str]:
    """Name the files of each network; where several have one name, such as weights of one base
    name, with a hash."""
    files = {key: re.sub(r"[^\w.-]+", "-", name) for key, name in names.items()}
    counts = Counter(files.values())
    return {
        key: name if counts[name] == 1 else f"{name}-{hash_facts(key.to_dict())[:8]}"
        for key, name in files.items()
    }


def _head_point(config: TuningConfig, network: Point, rate: object) -> Point:
    """Return the point of a head: the first of a network with all stages frozen."""
    clipnorm = next(iter(config.space.values_of(CLIPNORM)), config.base.optim.clipnorm)
    return network | {FREEZE_DEPTH: "all", LEARNING_RATE: rate, CLIPNORM: clipnorm}


def _train(
    config: TuningConfig, shared: Shared, point: Point, name: str
) -> tuple[FinetuneConfig, float | None]:
    """Train a head, whose result a trial of the same point will be copied from; return its best
    val/top1, None where it diverged."""
    training = replace(training_of(config.base, point), out=storage.join(config.out, "heads", name))
    training = replace(training, track=replace(training.track, group=config.group))
    mirror = RunMirror(
        training, shared.manifest, name=f"head {name}", group=config.group, job_type="head"
    )
    with follow(training.out, mirror, lambda row: None):
        run = prepare_run(
            training,
            manifest=shared.manifest,
            prefix=shared.prefix_of(training),
            images=shared.images,
            here=True,
        )
        try:
            result = launch.fit_in_process(run)
        except UserError as error:
            if not is_over(training.out):
                raise
            report(f"Head {name}: {error}", warning=True)
            return training, None
    if (folder := shared.results_of(training)) is not None:
        record(folder, training.out)
    top1 = result[metrics.VAL_BEST_TOP1]
    report(f"Head {name}: val/top1 {top1:.3f}")
    return training, top1


def _write_best(uri: str, heads: list[tuple[FinetuneConfig, float]]) -> None:
    best, _ = max(heads, key=lambda head: head[1])
    config, progress, model = load_best_model(best.out)
    tensors = head_tensors(model, config.model.backbone)
    metadata = {"classes": json.dumps(progress.classes)}
    storage.write_bytes(uri, safetensors.torch.save(tensors, metadata))
