"""Published weights: torchvision's, and timm's on Hugging Face. timm is imported where used."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from trainers.networks.downloads import HubFiles, Origin, WebFile, list_files
from trainers.networks.torch_internals import models

IMAGENET_CLASSES = tuple(models.ResNet50_Weights.DEFAULT.meta["categories"])
"""Names of the 1000 outputs of every network pretrained on ImageNet."""
VERSIONS = ("IMAGENET1K_V1", "IMAGENET1K_V2")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One set of pretrained weights."""

    name: str
    """As its publisher calls it."""
    origin: Origin
    read: Callable[[], dict[str, Tensor]]
    """Return the tensors by their names in the network, downloaded or cached."""
    top1: float | None
    """Percent of ImageNet's validation images, as published; None where unknown."""
    top5: float | None
    license: str | None = None
    """As its publisher states it; None where none is stated."""
    classes: tuple[str, ...] | None = IMAGENET_CLASSES
    """Names of the outputs; None where there are none, or they have no names."""

    @property
    def url(self) -> str:
        return self.origin.url


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
        origin=WebFile(member.url),
        read=partial(member.get_state_dict, check_hash=True, progress=False, weights_only=True),
        top1=accuracy["acc@1"],
        top5=accuracy["acc@5"],
    )


def from_timm(
    architecture: str,
    tag: str,
    top1: float | None,
    top5: float | None,
    *,
    url: str | None = None,
) -> Published:
    """Return timm's weights, on Hugging Face or at `url`.

    Args:
        top1, top5: percent, as in timm's results/results-imagenet.csv.
    """
    name = f"{architecture}.{tag}"
    published = from_hub(tag, f"timm/{name}", url=url, read=partial(_read_timm, name))
    return replace(published, top1=top1, top5=top5, license="apache-2.0")


def from_hub(
    name: str,
    repository: str,
    *,
    read: Callable[[], dict[str, Tensor]],
    file: str | None = None,
    url: str | None = None,
    license: str | None = None,
    classes: tuple[str, ...] | None = IMAGENET_CLASSES,
) -> Published:
    """Return weights of a repository of timm's on Hugging Face, or at `url`.

    Args:
        repository: may end in @REVISION.
        file: in it; by default one of the usual names.
    """
    return Published(
        name=name,
        origin=WebFile(url) if url else HubFiles(repository, list_files(file)),
        read=read,
        top1=None,
        top5=None,
        license=license,
        classes=classes,
    )


def _read_timm(name: str) -> dict[str, Tensor]:
    """Read through timm's model, which renames old tensors; timm reads no pickled code either."""
    import timm

    return timm.create_model(name, pretrained=True).state_dict()
