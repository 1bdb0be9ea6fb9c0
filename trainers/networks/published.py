"""Published ImageNet weights: torchvision's, and timm's. timm is optional, imported where used."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import Tensor
from torchvision import models

from cluster.io.errors import UserError

TIMM = "timm>=1.0.31,<2"  # as the extra `zoo` in pyproject.toml
HUB_FILE = "model.safetensors"
IMAGENET_CLASSES = tuple(models.ResNet50_Weights.DEFAULT.meta["categories"])
"""Names of the 1000 outputs of every network pretrained on ImageNet."""
VERSIONS = ("IMAGENET1K_V1", "IMAGENET1K_V2")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One set of pretrained weights."""

    name: str
    """As its publisher calls it."""
    url: str
    read: Callable[[], dict[str, Tensor]]
    """Return the tensors by their names in the network, downloaded or cached."""
    is_cached: Callable[[], bool]
    """Whether `read` downloads nothing."""
    top1: float | None
    """Percent of ImageNet's validation images, as published; None where unknown."""
    top5: float | None


def import_timm(backbone: str) -> Any:
    """Import timm.

    Raises:
        UserError: where it is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise UserError(
            f"model.backbone is {backbone!r}: it comes from timm; pip install '{TIMM}' on every "
            "node"
        ) from error


def from_torchvision(name: str) -> dict[str, Published]:
    """Return torchvision's weights by `model.init`; imagenet is the newest."""
    weights = models.get_model_weights(name)
    members = {"imagenet": weights["DEFAULT"]} | {
        member.name.replace("IMAGENET1K", "imagenet").lower(): member
        for member in weights
        if member.name in VERSIONS
    }
    return {init: _describe(member) for init, member in members.items()}


def _describe(member: models.WeightsEnum) -> Published:
    accuracy = member.meta["_metrics"]["ImageNet-1K"]
    return Published(
        name=member.name,
        url=member.url,
        read=partial(member.get_state_dict, check_hash=True, progress=False, weights_only=True),
        is_cached=partial(_in_torch_hub, member.url),
        top1=accuracy["acc@1"],
        top5=accuracy["acc@5"],
    )


def from_timm(
    architecture: str, tag: str, top1: float | None, top5: float | None, *, url: str | None = None
) -> Published:
    """Return timm's weights, on Hugging Face or at `url`.

    Args:
        top1, top5: percent, as in timm's results/results-imagenet.csv.
    """
    name = f"{architecture}.{tag}"
    hub = f"timm/{name}"
    return Published(
        name=tag,
        url=url or f"https://huggingface.co/{hub}/resolve/main/{HUB_FILE}",
        read=partial(_read_timm, name),
        is_cached=partial(_in_torch_hub, url) if url else partial(_in_hugging_face_hub, hub),
        top1=top1,
        top5=top5,
    )


def _read_timm(name: str) -> dict[str, Tensor]:
    """Read through timm's model, which renames old tensors; timm reads no pickled code either."""
    return import_timm(name).create_model(name, pretrained=True).state_dict()


def _in_torch_hub(url: str) -> bool:
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).exists()


def _in_hugging_face_hub(repository: str) -> bool:
    return isinstance(huggingface_hub.try_to_load_from_cache(repository, HUB_FILE), str)
