"""The pretrained weights that a config names: read, their origin and license, and whether they are
available.
"""

import platform
import re
from dataclasses import replace

import huggingface_hub
from torch import Tensor, nn

from cluster.io import storage
from cluster.io.errors import UserError
from trainers.config import RANDOM, ModelConfig
from trainers.networks.backbones import find
from trainers.networks.cut import before
from trainers.networks.downloads import (
    DOWNLOAD_ERRORS,
    READ_ERRORS,
    HubFiles,
    describe_remedy,
    explain,
)
from trainers.networks.published import Published
from trainers.networks.timm_models import adapt
from trainers.networks.weights.files import (
    Weights,
    describe_missing,
    find_file,
    read_file,
    read_weights,
)
from trainers.networks.weights.tensors import parse_pickle

PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "unknown")
NON_COMMERCIAL = ("-nc", "noncommercial", "apple-amlr")
"""Licenses by their names at timm."""
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")  # norm.1 is norm1 today


def read_pretrained(model: nn.Module, config: ModelConfig) -> Weights:
    """Read the weights of `config`, renamed and resized to the tensors of `model`."""
    if config.weights:
        weights = read_file(config.weights, model)
        if config.init != "file":  # stands in for the download
            weights = replace(weights, classes=_published(config).classes)
    else:
        published = _published(config)
        weights = Weights(tensors=_download(config, published), classes=published.classes)
    renamed = {OLD_DENSENET.sub(r"\1", name): tensor for name, tensor in weights.tensors.items()}
    if not _fits(renamed, model, config.backbone):
        renamed = adapt(renamed, model)
    return replace(weights, tensors=renamed)


def _fits(tensors: dict[str, Tensor], model: nn.Module, backbone_name: str) -> bool:
    """Whether the tensors before the head are those of the network."""
    wanted = before(model.state_dict(), backbone_name, len(find(backbone_name).stages))
    return all(name in tensors and tensors[name].shape == t.shape for name, t in wanted.items())


def pretrained_available(config: ModelConfig) -> str | None:
    """Return None where the weights of `config` are available, else the reason in one sentence.

    Looks for the file, then in the cache, then asks the server; downloads nothing.

    Raises:
        UserError: where no weights `config.init` are published.
    """
    if config.init in RANDOM:
        return None
    if config.weights is not None:
        if storage.exists(find_file(config.weights)):
            return None
        return f"model.weights is {config.weights!r}: {describe_missing(config.weights)}"
    published = _published(config)
    if published.origin.is_cached():
        return None
    origin = _describe_origin(config, published)
    remedy = "fetch that file elsewhere and give it with --weights"
    if huggingface_hub.is_offline_mode():
        return f"{origin} can't be downloaded (HF_HUB_OFFLINE is set): {remedy}"
    try:
        published.origin.ask()
    except DOWNLOAD_ERRORS as error:
        return (
            f"{origin} can't be downloaded from {published.origin.server} ({explain(error)}): "
            f"{describe_remedy(error)}{remedy}"
        )
    return None


def _download(config: ModelConfig, published: Published) -> dict[str, Tensor]:
    """Read published weights, downloaded or cached.

    Raises:
        UserError: naming this node, as another one may have them.
    """
    try:
        if isinstance(published.origin, HubFiles):
            file = published.origin.download()
            if not file.endswith(".safetensors"):
                parse_pickle(read_weights(file), file)  # refuses what would run code, or unpack
        return published.read()
    except READ_ERRORS as error:
        remedy = describe_remedy(error)
        if not isinstance(error, DOWNLOAD_ERRORS):
            remedy = "delete it from the cache of that node, or "
        raise UserError(
            f"{_describe_origin(config, published)} can't be read on node {platform.node()} "
            f"({explain(error)}): {remedy}put that file on storage that all nodes share, and give "
            "it with --weights"
        ) from error


def _describe_origin(config: ModelConfig, published: Published) -> str:
    return (
        f"model.init is {config.init!r}: weights {published.name} of {config.backbone}, "
        f"{published.url},"
    )


def describe_weights(config: ModelConfig) -> tuple[str, str | None]:
    """Return the origin of the initial weights, and their license; None where none is stated."""
    published = find(config.backbone).published.get(config.init)
    if published is None:
        return f"{config.init} {config.weights or ''}".strip(), None
    file = f", read from {config.weights}" if config.weights else ""
    return f"{published.name}, {published.url}{file}", published.license


def license_note(config: ModelConfig) -> str | None:
    """Return what a user must know before training from weights of such a license."""
    origin, name = describe_weights(config)
    if name is None or name in PERMISSIVE:
        return None
    terms = (
        "forbids commercial use"
        if any(mark in name for mark in NON_COMMERCIAL)
        else ("has terms of its own: read them before you use or share the network")
    )
    return f"license {name} of the weights {origin} {terms}"


def _published(config: ModelConfig) -> Published:
    published = find(config.backbone).published
    if config.init not in published:
        remedy = f"use {' or '.join(published)}" if published else "use a random one such as he"
        raise UserError(
            f"model.init is {config.init!r}: no such weights of {config.backbone} are published; "
            f"{remedy}, or give a file with --init file --weights URI"
        )
    return published[config.init]
