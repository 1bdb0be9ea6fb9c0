"""The user's errors in a training, found before anything starts."""

import logging
from dataclasses import replace
from functools import cache

from cluster.io.errors import UserError, require
from cluster.io.markers import flatten
from cluster.io.terminal import report
from datasets.manifest import Manifest
from trainers.config import AUTO, RANDOM, FinetuneConfig, ModelConfig
from trainers.networks.backbones import build, require_size
from trainers.networks.freezing import (
    adapter_rank,
    keeps_stages,
    resolve_depth,
    trains_on_one_image,
)
from trainers.networks.transformers.lora import require_adapters
from trainers.networks.transformers.stochastic_depth import require_branches
from trainers.networks.weights.initialization import initialize
from trainers.networks.weights.pretrained import license_note, pretrained_available
from trainers.step.step import count_parts
from trainers.unused import why_unused

logger = logging.getLogger(__name__)

DEFAULTS = flatten(FinetuneConfig(data="").to_dict())


def check(config: FinetuneConfig, manifest: Manifest, *, resumes: bool = False) -> None:
    """Find the user's errors before anything starts: splits, network, freeze depth, weights.

    Args:
        resumes: it has weights of its own; those it started from are not needed.

    Raises:
        UserError: naming the field, the value and the remedy.
    """
    require(
        config.out.rstrip("/") != config.data.rstrip("/"),
        "out",
        config.out,
        "the data set is in this folder; use another one",
    )
    for split in ("train", "val") if config.validates else ("train",):
        manifest.split(split)
    num_images = manifest.split(config.train_on).num_images
    require(
        config.global_batch_size <= num_images,
        "global_batch_size",
        config.global_batch_size,
        f"there are {num_images} training images; use at most as many",
    )
    _check_depths(config, "schedule.phases" if config.schedule.phases else "model.freeze_depth")
    if config.model.drop_path != AUTO:
        require_branches(config.model.backbone, config.model.drop_path)
    check_network(config, manifest.classes, resumes=resumes)
    check_parts(config, config.cluster.num_workers or 1)


def _check_depths(config: FinetuneConfig, field: str) -> None:
    backbone, depths = config.model.backbone, [phase.freeze_depth for phase in config.phases]
    rank = adapter_rank(depths[0])
    for depth in depths:
        resolve_depth(backbone, depth, field)
        require(
            adapter_rank(depth) == rank,
            field,
            depth,
            "use LoRA in all phases or in none, with one rank",
        )
    if rank is not None:
        require_adapters(backbone, depths[0], field)
    if config.model.init in RANDOM and all(keeps_stages(backbone, depth) for depth in depths):
        logger.warning(
            "freeze depth %s keeps stages at random weights, as init %s draws them: use "
            "--freeze-depth 0, or pretrained weights",
            min(depths, key=lambda depth: resolve_depth(backbone, depth)),
            config.model.init,
        )


def check_parts(config: FinetuneConfig, num_workers: int) -> None:
    """Refuse parts of a batch of one image each where BatchNorm can't have one.

    Raises:
        UserError: naming the field, the value and the remedy.
    """
    batch_size, steps = config.global_batch_size, config.compute.accumulation_steps
    num_workers = max(1, num_workers)
    shares = {batch_size // num_workers, -(-batch_size // num_workers)}
    if min(share // count_parts(share, steps) for share in shares) > 1:
        return
    model, size_px = config.model, config.ingest.size_px
    for phase in config.phases:
        depth = resolve_depth(model.backbone, phase.freeze_depth)
        require(
            trains_on_one_image(
                model.backbone, size_px, depth, freeze_batchnorm=model.freeze_batchnorm
            ),
            "global_batch_size",
            batch_size,
            f"it is cut into parts of one image (cluster.num_workers {num_workers}, "
            f"compute.accumulation_steps {steps}), of which BatchNorm of {model.backbone} has a "
            f"single value at {size_px} px; use a larger batch, fewer --accumulation-steps or "
            "workers, or --freeze-batchnorm",
        )


def check_network(
    config: FinetuneConfig, classes: tuple[str, ...], *, resumes: bool = False
) -> None:
    """Find the user's errors in the network, the size of its images and its weights.

    Args and raises: as `check`.
    """
    require_size(
        config.model.backbone, config.ingest.size_px, field="ingest.size_px", training=True
    )
    for path, value in flatten(config.to_dict()).items():
        why = why_unused(config, path)
        if why is not None and value != DEFAULTS[path]:
            logger.warning("%s is not used: %s", path, why)
    if not resumes:
        _check_weights(replace(config.model, freeze_depth=0), classes, config.ingest.size_px)


@cache
def _check_weights(config: ModelConfig, classes: tuple[str, ...], size_px: int) -> None:
    """Load the weights and head that are given once, here, rather than fail in every worker; report
    which."""
    if config.init in RANDOM and config.head is None:
        return
    if (problem := pretrained_available(config)) is not None:
        raise UserError(problem)
    network = build(config.backbone, len(classes), size_px)
    loaded = initialize(network, config, seed=0, classes=classes)
    for note in filter(None, (license_note(config), *loaded.notes)):
        report(f"Weights: {note}")
