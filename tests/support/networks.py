"""Configs and state dicts of small networks for the tests of initializers."""

from pathlib import Path

import torch
from torch import Tensor, nn

from trainers.config import Init, ModelConfig
from trainers.networks.backbones import build

SEED = 3


def mobilenet_config(init: Init, weights: Path | None = None) -> ModelConfig:
    return ModelConfig(
        backbone="mobilenet_v2", init=init, weights=None if weights is None else str(weights)
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def random_state(backbone: str, num_classes: int) -> dict[str, Tensor]:
    """A state dict that no initializer would make: every float tensor uniform from 0 to 1."""
    generator = torch.Generator().manual_seed(11)
    return {
        name: torch.rand(t.shape, generator=generator) if t.is_floating_point() else t + 5
        for name, t in build(backbone, num_classes).state_dict().items()
    }
