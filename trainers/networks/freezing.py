"""Freeze depth: the number of frozen stages, counted from the input."""

import re
from functools import cache
from math import floor

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from cluster.io.errors import require
from trainers.config import FreezeDepth, ModelConfig
from trainers.networks.backbones import find, on_meta, unwrap
from trainers.networks.torch_internals import without_compiler
from trainers.networks.transformers.lora import is_adapter

LORA = re.compile(r"lora:([1-9]\d{0,3})")


def adapter_rank(depth: FreezeDepth) -> int | None:
    """Return the rank in `lora:8`; None for another freeze depth."""
    found = LORA.fullmatch(depth) if isinstance(depth, str) else None
    return found and int(found[1])


def name_stages(backbone: str) -> list[str]:
    """Return the names of a network's stages, from the input on."""
    return [name for name, _ in find(backbone).stages]


def keeps_stages(backbone: str, depth: FreezeDepth) -> bool:
    """Whether stages keep their weights: those that are frozen, or all beside adapters (LoRA)."""
    return adapter_rank(depth) is not None or resolve_depth(backbone, depth) > 0


def resolve_depth(backbone: str, depth: FreezeDepth, field: str = "model.freeze_depth") -> int:
    """Return the number of frozen stages, whose features never change: none with adapters (LoRA).

    `all` is every stage, -2 all but the last two; a share such as 0.5 is rounded, halves up; a
    stage's name freezes the stages up to it.

    Args:
        field: that the depth is of, for the error.

    Raises:
        UserError: for an unknown backbone or a depth it does not have.
    """
    names = name_stages(backbone)
    if depth == "all":
        return len(names)
    if adapter_rank(depth) is not None:
        return 0
    if depth in names:
        return names.index(str(depth)) + 1
    is_share = isinstance(depth, float) and 0 <= depth <= 1
    require(
        is_share or (isinstance(depth, int) and -len(names) <= depth <= len(names)),
        field,
        depth,
        f"{backbone} has {len(names)} stages ({', '.join(names)}): use -{len(names)} to "
        f"{len(names)}, or `all`, or a share from 0.0 to 1.0, or a stage's name, or lora:RANK",
    )
    if is_share:
        return floor(float(depth) * len(names) + 0.5)
    return int(depth) if int(depth) >= 0 else len(names) + int(depth)


def describe_frozen(backbone: str, depth: FreezeDepth) -> tuple[str, float]:
    """Return the last frozen stage, or `none`, `all` or `lora:8`, and the share of frozen stages;
    raises as `resolve_depth`."""
    names, number = name_stages(backbone), resolve_depth(backbone, depth)
    if adapter_rank(depth) is not None:
        return str(depth), 1.0
    last = {0: "none", len(names): "all"}.get(number) or names[number - 1]
    return last, round(number / len(names), 3)


def show_frozen(backbone: str, depth: FreezeDepth) -> str:
    """Write a freeze depth as `layer3 80%`; raises as `resolve_depth`."""
    last, share = describe_frozen(backbone, depth)
    return f"{last} {share:.0%}"


def count_frozen(config: ModelConfig) -> int:
    """Return the number of frozen stages; raises as `resolve_depth`."""
    return resolve_depth(config.backbone, config.freeze_depth)


def is_head_only(config: ModelConfig) -> bool:
    """Whether every stage is frozen and only the head trains."""
    return count_frozen(config) == len(find(config.backbone).stages)


def freeze(model: nn.Module, backbone_name: str, depth: int) -> None:
    """Set `requires_grad` of the stages from `depth` on and the head, and unset all others.

    Of a network with adapters (LoRA), only they and the head train. Call it before DDP wraps the
    model, which reads `requires_grad` once.
    """
    backbone = find(backbone_name)
    names = [name for name, _ in model.named_parameters()]
    if adapters := set(filter(is_adapter, names)):
        depth = len(backbone.stages)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(backbone.stage_of(name) >= depth or name in adapters)


def train_mode(
    model: nn.Module, backbone_name: str, depth: int, *, freeze_batchnorm: bool = False
) -> None:
    """Put the model in train mode and its first `depth` stages in eval mode.

    BatchNorm of a frozen stage uses and keeps its statistics, and its dropout is off.
    `freeze_batchnorm` keeps the statistics of all stages.
    """
    model.train()
    network = unwrap(model)
    for _, modules in find(backbone_name).stages[:depth]:
        for module in modules:
            network.get_submodule(module).eval()
    if freeze_batchnorm:
        for module in network.modules():
            if isinstance(module, BatchNorm):
                module.eval()


@cache
def trains_on_one_image(
    backbone: str, size_px: int, depth: int, *, freeze_batchnorm: bool = False
) -> bool:
    """Whether a network trains on a batch of one image: a map of one pixel is a single value a
    channel then, which BatchNorm refuses."""
    model = on_meta(backbone, 2, size_px)
    train_mode(model, backbone, depth, freeze_batchnorm=freeze_batchnorm)
    try:
        with without_compiler(), torch.no_grad():
            model(torch.zeros(1, 3, size_px, size_px, device="meta"))
    except ValueError:
        return False
    return True


def has_live_batchnorm(model: nn.Module) -> bool:
    """Whether a training step changes BatchNorm statistics, after `train_mode`."""
    return any(isinstance(module, BatchNorm) and module.training for module in model.modules())
