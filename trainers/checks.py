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
from trainers.networks.freezing import adapter_rank, resolve_depth
from trainers.networks.transformers.lora import require_adapters
from trainers.networks.transformers.stochastic_depth import require_branches
from trainers.networks.weights.initialization import initialize
from trainers.networks.weights.pretrained import license_note, pretrained_available
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
    depths = [resolve_depth(config.model.backbone, p.freeze_depth) for p in config.phases]
    if min(depths) > 0 and config.model.init in RANDOM:
        logger.warning(
            "freeze depth %d keeps stages at random weights, as init %s draws them: use "
            "--freeze-depth 0, or pretrained weights",
            min(depths),
            config.model.init,
        )
    _check_adapters(config)
    if config.model.drop_path != AUTO:
        require_branches(config.model.backbone, config.model.drop_path)
    check_network(config, manifest.classes, resumes=resumes)


def _check_adapters(config: FinetuneConfig) -> None:
    depths = [phase.freeze_depth for phase in config.phases]
    rank = adapter_rank(depths[0])
    for depth in depths:
        require(
            adapter_rank(depth) == rank,
            "schedule.phases",
            depth,
            "use LoRA in all phases or in none, with one rank",
        )
    if rank is not None:
        require_adapters(config.model.backbone, depths[0])


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
