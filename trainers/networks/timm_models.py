"""Any classifier of timm by its name: found, described by its own config, built.

timm_stages.py divides it into stages.
"""

import difflib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn

from cluster.io.errors import UserError
from trainers.config import NORMALIZATIONS
from trainers.networks.downloads import (
    DOWNLOAD_ERRORS,
    HubFiles,
    describe_remedy,
    explain,
)
from trainers.networks.families import Backbone, Normalization
from trainers.networks.published import IMAGENET_CLASSES, Published, from_hub
from trainers.networks.timm_stages import NUM_CLASSES, Refused, divide
from trainers.networks.torch_internals import without_compiler
from trainers.networks.weights.state_dicts import find_classes

HUB = "hf-hub:"
CONFIG_FILE = "config.json"
MISFITS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError, AssertionError)
"""What timm's rules raise for tensors of another network: they look up its blocks by the names of
the tensors, and reshape."""


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What timm needs to create a network."""

    architecture: str
    weights: Any
    """timm's PretrainedCfg."""
    options: Mapping[str, Any]
    """Of its constructor, from the config of a repository."""


def describe(name: str) -> Backbone | None:
    """Describe a network of timm, such as `vit_small_patch14_dinov2.lvd142m`, `timm/resnet18`, or
    `hf-hub:ORG/NAME` on Hugging Face; return None for a name that timm does not have.

    Raises:
        UserError: where its stages can't be frozen one after the other, or the config of a
            repository can't be read.
    """
    if (model := _find(name)) is None:
        return None
    weights = model.weights
    size_px = (weights.test_input_size or weights.input_size)[1]
    try:
        with without_compiler(), torch.device("meta"):
            network = _create(model, num_classes=NUM_CLASSES)
            signatures = (signature(base.__init__) for base in type(network).__mro__)
            options = {name for of_class in signatures for name in of_class.parameters}
            if "dynamic_img_size" in options:  # it interpolates in every step, and can't be cut
                fixed = {**model.options, "dynamic_img_size": False}
                model = replace(model, options=fixed)
            takes_size = "img_size" in options
            if takes_size:
                network = _create(model, num_classes=NUM_CLASSES, img_size=size_px)
        division = divide(network, size_px)
    except Refused as refusal:
        raise UserError(
            f"model.backbone is {name!r}: its stages can't be frozen one after the other, as "
            f"{refusal}; choose another network"
        ) from None
    return replace(
        division,
        build=partial(_build, model),
        takes_size=takes_size,
        published=_publish(model),
        normalization=_normalization(weights.mean, weights.std),
        size_px=size_px,
    )


def list_names(pattern: str) -> list[str]:
    """List timm's names of weights that match a shell pattern, or of networks where none does."""
    import timm  # takes a second, which networks of torchvision don't pay

    return timm.list_pretrained(pattern) or timm.list_models(pattern)


def similar_names(name: str) -> list[str]:
    """Return the names of timm's networks that are most like `name`."""
    import timm

    wanted = name.removeprefix("timm/")
    tags = [n for n in timm.list_pretrained() if n.split(".")[0] == wanted.split(".")[0]]
    return tags[:3] or difflib.get_close_matches(wanted, timm.list_models(), cutoff=0.5)


def adapt(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename tensors of other programs' checkpoints as timm does, and interpolate the positions of
    another image size; return them as they are where timm has no rule for the network, or its rule
    does not fit them, as they are of another network."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        return convert(dict(tensors), network)
    except MISFITS:
        return tensors


def _find(name: str) -> _Model | None:
    import timm

    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        known = repository.removeprefix("timm/")
        if known == repository or not timm.is_model(known):
            return _read_hub_config(name, repository)
        name = known
    name = name.removeprefix("timm/")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        return None
    if tag and name not in timm.list_pretrained(f"{architecture}.*"):
        return None
    weights = timm.get_pretrained_cfg(name)
    if weights is None:
        return None
    return _Model(architecture=architecture, weights=weights, options={})


def _read_hub_config(name: str, repository: str) -> _Model:
    """Read the config of a repository, downloaded or cached."""
    from timm.models import PretrainedCfg, load_model_config_from_hf

    try:
        file = HubFiles(repository, (CONFIG_FILE,))
        url = file.url
        weights, architecture, options = load_model_config_from_hf(repository)
    except (HFValidationError, AssertionError) as error:
        raise UserError(
            f"model.backbone is {name!r}: {explain(error)}; give {HUB}ORGANIZATION/NAME, or "
            f"{HUB}ORGANIZATION/NAME@REVISION"
        ) from None
    except DOWNLOAD_ERRORS as error:
        raise UserError(
            f"model.backbone is {name!r}: {url} is neither in Hugging Face's cache "
            f"{constants.HF_HUB_CACHE} nor downloaded from {file.server} ({explain(error)}); "
            f"{describe_remedy(error)}put that file there"
        ) from None
    except (KeyError, ValueError) as error:
        raise UserError(
            f"model.backbone is {name!r}: {url} is no config of a timm network ({error})"
        ) from None
    import timm

    if not timm.is_model(architecture):
        raise UserError(
            f"model.backbone is {name!r}: its architecture {architecture!r} is none of timm "
            f"{timm.__version__}"
        )
    known = {field: value for field, value in weights.items() if hasattr(PretrainedCfg, field)}
    return _Model(architecture=architecture, weights=PretrainedCfg(**known), options=options or {})


def _create(model: _Model, **options: Any) -> Any:
    import timm

    return timm.create_model(
        model.architecture, pretrained_cfg=model.weights, **{**model.options, **options}
    )


def _build(model: _Model, *, num_classes: int, size_px: int | None = None) -> nn.Module:
    size = {} if size_px is None else {"img_size": size_px}
    return _create(model, num_classes=num_classes, **size)


def _read(model: _Model) -> dict[str, Tensor]:
    """Read through timm's model, which renames old tensors; timm reads no pickled code either."""
    return _create(model, pretrained=True).state_dict()


def _publish(model: _Model) -> dict[str, Published]:
    weights = model.weights
    if not weights.has_weights:
        return {}
    classes = IMAGENET_CLASSES if weights.num_classes == len(IMAGENET_CLASSES) else None
    named = find_classes({"label_names": weights.label_names})  # a list, or a dict by number
    if named is not None and len(named) == weights.num_classes:
        classes = named
    published = from_hub(
        weights.tag or model.architecture,
        weights.hf_hub_id,
        file=weights.hf_hub_filename,
        url=None if weights.hf_hub_id else weights.url,
        read=partial(_read, model),
        license=weights.license,
        classes=classes,
    )
    return {"imagenet": published}


def _normalization(mean: Iterable[float], std: Iterable[float]) -> Normalization:
    given = tuple(mean), tuple(std)
    return next((name for name, pair in NORMALIZATIONS.items() if pair == given), given)  # pyright: ignore[reportReturnType]
