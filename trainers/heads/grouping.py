"""Which head-only trainings train together, and how many."""

from functools import cache

from cluster.io.errors import UserError
from trainers.config import FinetuneConfig
from trainers.heads.stack import find_linear_head
from trainers.networks.backbones import find, on_meta

CPU_BYTES, GPU_BYTES, NUM_COPIES = 64 * 2**20, 4 * 2**30, 5
"""Memory of the heads of a batch: weights, gradients, Adam's moments and the average."""


def can_stack(config: FinetuneConfig) -> bool:
    """Whether a head-only training can be one of a HeadStack: its head is linear, and its step is
    one pass without loss scaling, a compiler or mixed images."""
    return (
        config.compute.precision != "fp16"
        and not config.compute.compile
        and config.compute.accumulation_steps == 1
        and not config.loss.mixup_alpha
        and not config.loss.cutmix_alpha
        and _has_linear_head(config.model.backbone, config.ingest.size_px)
    )


@cache
def _has_linear_head(backbone: str, size_px: int) -> bool:
    depth = len(find(backbone).stages)
    try:
        return find_linear_head(on_meta(backbone, 2, size_px), backbone, depth) is not None
    except UserError:  # it can't be cut
        return False


def count_together(config: FinetuneConfig, num_classes: int, *, use_gpu: bool) -> int:
    """Return how many heads one batch should hold: on CPUs as many as caches do."""
    network = on_meta(config.model.backbone, num_classes, config.ingest.size_px)
    head = network.get_submodule(find(config.model.backbone).head)
    num_values = sum(parameter.numel() for parameter in head.parameters())
    limit = GPU_BYTES if use_gpu else CPU_BYTES
    return max(1, limit // (NUM_COPIES * 4 * num_values))


def stack_key(config: FinetuneConfig) -> str:
    """Return what trainings have in common that can be one HeadStack: all but the optimizer, the
    schedule and the folder."""
    shared = config.to_dict()
    for name in ("out", "optim", "schedule"):
        del shared[name]
    averages = config.optim.ema_decay is not None
    return f"{averages} {sorted(shared.items())}"
