"""LP-FT: heads trained on the frozen network, once, for all deeper trials to start from.

SWEEP/heads/INIT-RATE/         a head-only run for each learning rate of the space
SWEEP/heads/INIT.safetensors   the best of them
"""

import json
from dataclasses import replace

import safetensors.torch

from cluster.io import storage
from cluster.io.terminal import count, report
from trainers import launch, metrics
from trainers.config import PRETRAINED, FinetuneConfig
from trainers.networks.freezing import is_head_only
from trainers.networks.initializers import head_tensors
from trainers.prepare import prepare_run
from trainers.run.folder import load_best_model
from trainers.tracking.mirror import RunMirror, follow
from tuning.config import TuningConfig
from tuning.sharing.reuse import record
from tuning.space import (
    CLIPNORM,
    FREEZE_DEPTH,
    INIT,
    LEARNING_RATE,
    Point,
    models,
    show,
    training_of,
)
from tuning.trial import Shared


def train_heads(config: TuningConfig, shared: Shared) -> dict[str, str]:
    """Train the heads that deeper trials start from, unless that is done.

    Returns:
        The URI of the best head by initialization.
    """
    deeper = {
        training.model.init
        for model in models(config.space)
        if not is_head_only((training := training_of(config.base, model)).model)
    }
    inits = [init for init in config.space.inits if init in deeper and init in PRETRAINED]
    heads = {init: storage.join(config.out, "heads", f"{init}.safetensors") for init in inits}
    missing = {init: _points(config, init) for init in inits if not storage.exists(heads[init])}
    if not missing:
        return heads
    with count("Training heads", sum(map(len, missing.values())), "heads") as advance:
        for init, points in missing.items():
            trained: list[tuple[FinetuneConfig, float]] = []
            for point in points:
                trained.append(_train(config, shared, point))
                advance(1)
            _write_best(heads[init], trained)
    return heads


def _points(config: TuningConfig, init: str) -> list[Point]:
    rates = config.space.learning_rate_range or config.space.learning_rates
    clipnorm = config.space.clipnorms[0]
    return [
        {INIT: init, FREEZE_DEPTH: "all", LEARNING_RATE: rate, CLIPNORM: clipnorm} for rate in rates
    ]


def _train(config: TuningConfig, shared: Shared, point: Point) -> tuple[FinetuneConfig, float]:
    """Train a head, whose result a trial of the same point will be copied from."""
    name = f"{point[INIT]}-{show(point[LEARNING_RATE])}"
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
        result = launch.fit_in_process(run)
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
