"""Freeze depth: how many stages, counted from the input, keep their weights and statistics."""

from torch import nn

from datasets.config import require
from trainers.backbones import find, unwrap
from trainers.config import ModelConfig


def resolve_depth(config: ModelConfig) -> int:
    """Return the number of frozen stages; `all` is every stage of the backbone.

    Raises:
        ValueError: for an unknown backbone or a depth it does not have.
    """
    stages = find(config.backbone).stages
    if config.freeze_depth == "all":
        return len(stages)
    require(
        0 <= config.freeze_depth <= len(stages),
        "model.freeze_depth",
        config.freeze_depth,
        f"{config.backbone} has {len(stages)} stages "
        f"({', '.join(name for name, _ in stages)}): use 0 to {len(stages)}, or `all`",
    )
    return config.freeze_depth


def is_head_only(config: ModelConfig) -> bool:
    """Tell whether every stage is frozen, so that only the head trains."""
    return resolve_depth(config) == len(find(config.backbone).stages)


def freeze(model: nn.Module, backbone_name: str, depth: int) -> None:
    """Let exactly the stages from `depth` on, and the head, require gradients.

    Call it before DDP wraps the model: DDP looks at `requires_grad` once.
    """
    backbone = find(backbone_name)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(backbone.stage_of(name) >= depth)


def train_mode(model: nn.Module, config: ModelConfig) -> None:
    """Put the model in train mode and its frozen stages in eval mode.

    A frozen stage computes what it did in pretraining: its BatchNorm uses and keeps its statistics,
    its dropout is off. `config.freeze_batchnorm` keeps those of all stages.
    """
    model.train()
    network = unwrap(model)
    for _, modules in find(config.backbone).stages[: resolve_depth(config)]:
        for module in modules:
            network.get_submodule(module).eval()
    if config.freeze_batchnorm:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
