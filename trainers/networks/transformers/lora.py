"""LoRA: low-rank matrices beside the frozen linear layers of attention, by peft.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685; alpha is the rank, so that the sum is not
scaled.
"""

import importlib.util
from collections.abc import Mapping
from functools import cache, partial

import torch
from torch import Tensor, nn

from cluster.io.errors import UserError, require
from trainers.networks.backbones import find, on_meta
from trainers.networks.torch_internals import without_compiler

PACKAGE = "peft>=0.21,<0.22"
"""As the extra `lora` in pyproject.toml."""
BASE, DOWN, UP = ".base_layer.", "lora_A.default.weight", "lora_B.default.weight"
"""In peft's names of tensors."""


@cache
def attention_layers(backbone: str) -> tuple[str, ...]:
    """Return the linear layers of a network's attention that its forward pass calls."""
    network, called = on_meta(backbone, 2), list[str]()
    layers = {
        f"{path}.{name}": layer
        for path, module in network.named_modules()
        if "Attention" in type(module).__name__
        for name, layer in module.named_children()
        if isinstance(layer, nn.Linear)
    }
    if not layers:
        return ()
    for path, layer in layers.items():
        layer.register_forward_hook(partial(_note, called, path))
    size_px = find(backbone).size_px
    with without_compiler(), torch.no_grad():
        network(torch.zeros(1, 3, size_px, size_px, device="meta"))
    return tuple(dict.fromkeys(called))


def _note(called: list[str], name: str, *_: object) -> None:
    called.append(name)


def require_adapters(backbone: str, depth: object, field: str) -> None:
    """Refuse LoRA where it is not possible.

    Args:
        field: that the depth is of, for the error.

    Raises:
        UserError: for a network without attention, or without peft.
    """
    require(
        bool(attention_layers(backbone)),
        field,
        depth,
        f"{backbone} has no attention; use a number of stages, or a transformer",
    )
    if importlib.util.find_spec("peft") is None:
        raise UserError(
            f"{field} is {depth!r}: it needs peft; pip install '{PACKAGE}' on every "
            "node, or freeze a number of stages"
        )


def add_adapters(network: nn.Module, backbone: str, rank: int, *, seed: int) -> None:
    """Add an adapter to each linear layer of attention, in place; it changes no output yet.

    Its first matrix is drawn from the seed, the second one is zero.
    """
    from peft import LoraConfig, inject_adapter_in_model  # with transformers, seconds to import

    layers = list(attention_layers(backbone))
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, network)


def load_base(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of a network without adapters into one that has them."""
    names = [name for name in network.state_dict() if not is_adapter(name)]
    network.load_state_dict({name: tensors[_plain(name)] for name in names}, strict=False)


def is_adapter(name: str) -> bool:
    return name.endswith((DOWN, UP))


def merge(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a network with its adapters added to the layers they are beside."""
    merged = {}
    for name, tensor in tensors.items():
        layer, base, kind = name.rpartition(BASE)
        if base and kind == "weight":
            update = tensors[f"{layer}.{UP}"].float() @ tensors[f"{layer}.{DOWN}"].float()
            tensor = (tensor.float() + update).to(tensor.dtype)
        if not is_adapter(name):
            merged[_plain(name)] = tensor
    return merged


def _plain(name: str) -> str:
    return name.replace(BASE, ".")
