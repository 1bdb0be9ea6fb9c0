"""How each network divides into stages: the unit of freezing, from the input to the head.

A torchvision classifier becomes a backbone by one entry below.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision import models

Stage = tuple[str, tuple[str, ...]]  # name, and the modules that belong to it


@dataclass(frozen=True, kw_only=True)
class Backbone:
    build: Callable[..., nn.Module]
    """torchvision's function: (weights, num_classes) -> model."""
    stages: tuple[Stage, ...]
    """From the input to the features; together with the head they hold every tensor once."""
    head: str
    """The module that turns features into logits_BK; never frozen."""
    weights: type[models.WeightsEnum]
    """Where torchvision publishes the pretrained weights."""

    def stage_of(self, name: str) -> int:
        """Return the stage index of a parameter or buffer, `len(stages)` for the head.

        Raises:
            KeyError: for a name that lies in no stage.
        """
        owners = [*(modules for _, modules in self.stages), (self.head,)]
        for index, modules in enumerate(owners):
            if any(name.startswith(f"{module}.") for module in modules):
                return index
        raise KeyError(name)


def _features(first: int, last: int) -> tuple[str, ...]:
    return tuple(f"features.{index}" for index in range(first, last + 1))


BACKBONES = {
    "resnet50": Backbone(
        build=models.resnet50,
        stages=(
            ("stem", ("conv1", "bn1")),
            ("layer1", ("layer1",)),
            ("layer2", ("layer2",)),
            ("layer3", ("layer3",)),
            ("layer4", ("layer4",)),
        ),
        head="fc",
        weights=models.ResNet50_Weights,
    ),
    "mobilenet_v2": Backbone(
        build=models.mobilenet_v2,
        stages=(  # a new one at each reduction of the resolution, and where the width steps up
            ("stem", _features(0, 1)),
            ("stage1", _features(2, 3)),
            ("stage2", _features(4, 6)),
            ("stage3", _features(7, 10)),
            ("stage4", _features(11, 13)),
            ("stage5", _features(14, 17)),
            ("stage6", _features(18, 18)),
        ),
        head="classifier",
        weights=models.MobileNet_V2_Weights,
    ),
}


def find(name: str) -> Backbone:
    """Look a backbone up.

    Raises:
        ValueError: for an unknown name, with the names to choose from.
    """
    if name not in BACKBONES:
        raise ValueError(f"model.backbone is {name!r}: choose from {', '.join(BACKBONES)}")
    return BACKBONES[name]


def build(name: str, num_classes: int) -> nn.Module:
    """Build a network on the CPU; `initializers.initialize` then decides its weights."""
    with torch.random.fork_rng(devices=[]):  # torchvision draws weights nobody will see
        return find(name).build(weights=None, num_classes=num_classes)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network itself where `model` is its DDP wrapper."""
    return model.module if isinstance(model, DistributedDataParallel) else model
