"""Initial weights: ImageNet's, a file's, or drawn from a seed."""

import http.client
import re
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyarrow import fs
from torch import Tensor, nn

from cluster.io import storage
from cluster.io.errors import UserError
from trainers.config import RANDOM, ModelConfig
from trainers.networks.backbones import find
from trainers.networks.published import Published
from trainers.networks.tensors import parse_pickle, parse_safetensors, refuse_not_finite

CONNECT_TIMEOUT_S = 4.0
MAX_WEIGHTS_BYTES = 8 * 2**30
NAMES_SHOWN = 4
DRAWN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")  # norm.1 is norm1 today

INITIALIZERS: dict[str, Callable[[Tensor], Any]] = {
    "xavier": nn.init.xavier_uniform_,
    "he": partial(
        nn.init.kaiming_normal_, nonlinearity="relu"
    ),  # by fan-in, as the paper and Keras
    "normal": partial(nn.init.normal_, std=0.01),
    "orthogonal": nn.init.orthogonal_,
    "zeros": nn.init.zeros_,  # kept as a lesson: it does not learn
}
"""Draw the weights of convolutions and linear layers; their biases are zero. Other tensors, such as
ConvNeXt's layer scale, keep the network's own initial values."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Result of loading a file, by tensor names; all empty for a random initialization."""

    loaded: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    """Of heads of another number of classes: not loaded, initialized randomly."""
    missing: tuple[str, ...] = ()
    """In the model, not in the file: initialized randomly."""
    unexpected: tuple[str, ...] = ()
    """In the file, not in the model."""

    def __str__(self) -> str:
        """Return counts, and the first names of tensors that were not loaded."""
        return (
            f"{len(self.loaded)} tensors loaded; "
            f"{len(self.replaced)} of a head replaced{_first(self.replaced)}; "
            f"{len(self.missing)} missing{_first(self.missing)}; "
            f"{len(self.unexpected)} unexpected{_first(self.unexpected)}"
        )


def _first(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f" ({shown}{more})" if names else ""


def initialize(model: nn.Module, config: ModelConfig, *, seed: int) -> LoadReport:
    """Initialize a model on the CPU; the same seed gives the same tensors.

    A random initialization draws all convolutions and linear layers, the heads included, and resets
    normalization (weight 1, bias 0). A pretrained one loads tensors that fit; a head of another
    number of classes, and modules that the file lacks, get torch's default initialization from the
    seed. The global random state is unchanged.

    Raises:
        UserError: for weights that can't be read, or belong to another network.
    """
    with _seeded(seed):
        if config.init in RANDOM:
            _draw(model, INITIALIZERS[config.init])
            return LoadReport()
        report = _load(model, _read_pretrained(config), config)
    if config.head is not None:
        _load_head(model, config)
    return report


def head_tensors(model: nn.Module, backbone_name: str) -> dict[str, Tensor]:
    """Return the tensors of a network's heads: the content of a file for `model.head`."""
    backbone = find(backbone_name)
    return {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if backbone.stage_of(name) == len(backbone.stages)
    }


def _load_head(model: nn.Module, config: ModelConfig) -> None:
    assert config.head is not None
    wanted = {name: t.shape for name, t in head_tensors(model, config.backbone).items()}
    try:
        content = read_weights(config.head)
    except FileNotFoundError as error:
        raise UserError(
            f"model.head is {config.head!r}: it can't be read ({error}); give a .safetensors file"
        ) from None
    given = parse_safetensors(content, f"model.head is {config.head!r}")
    if {name: t.shape for name, t in given.items()} != wanted:
        shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in wanted.items())
        raise UserError(
            f"model.head is {config.head!r}: not a head of this network, whose tensors are {shapes}"
        )
    refuse_not_finite(given, f"model.head is {config.head!r}")
    model.load_state_dict(given, strict=False)


def pretrained_available(config: ModelConfig) -> str | None:
    """Return None where the weights of `config` are available, else the reason in one sentence.

    Looks for the file, then in the cache, then asks the server; downloads nothing.

    Raises:
        UserError: where no weights `config.init` are published.
    """
    if config.init in RANDOM:
        return None
    if config.weights is not None:
        uri = _weights_file(config.weights)
        return (
            None if storage.exists(uri) else f"model.weights is {config.weights!r}: no file there"
        )
    published = _published(config)
    if published.is_cached():
        return None
    request = urllib.request.Request(published.url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, http.client.HTTPException) as error:
        return (
            f"ImageNet weights of {config.backbone} can't be downloaded from {published.url} "
            f"({error})"
        )
    return None


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        yield


def _draw(model: nn.Module, draw: Callable[[Tensor], Any]) -> None:
    for module in model.modules():
        if isinstance(module, DRAWN):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        else:
            _reset(module)


def _reset(module: nn.Module) -> None:
    """Give a layer torch's default initialization; containers have none."""
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()


def _published(config: ModelConfig) -> Published:
    published = find(config.backbone).published
    if config.init not in published:
        remedy = f"use {' or '.join(published)}" if published else "use a random one such as he"
        raise UserError(
            f"model.init is {config.init!r}: no such weights of {config.backbone} are published; "
            f"{remedy}, or give a file with --init file --weights URI"
        )
    return published[config.init]


def _read_pretrained(config: ModelConfig) -> dict[str, Tensor]:
    given = _read_state_dict(config.weights) if config.weights else _published(config).read()
    return {OLD_DENSENET.sub(r"\1", name): tensor for name, tensor in given.items()}


def _weights_file(uri: str) -> str:
    """Return `uri`, or the weights in it where it is a checkpoint folder."""
    filesystem, path = storage.resolve(uri)
    with storage.explaining(uri):
        is_folder = filesystem.get_file_info(path).type == fs.FileType.Directory
    return storage.join(uri, "model.safetensors") if is_folder else uri


def _read_state_dict(uri: str) -> dict[str, Tensor]:
    """Read a file's tensors by name, unwrapped from what training scripts save them in."""
    file = _weights_file(uri)
    try:
        content = read_weights(file)
    except FileNotFoundError:
        raise UserError(
            f"model.weights is {uri!r}: no file there; give a state dict that torch.save or "
            "safetensors wrote, or a checkpoint folder of Thaw"
        ) from None
    parse = parse_safetensors if file.endswith(".safetensors") else parse_pickle
    values = parse(content, f"model.weights is {uri!r}")
    for wrapper in ("state_dict", "model"):
        if isinstance(values, dict) and isinstance(values.get(wrapper), dict):
            values = values[wrapper]
    if not isinstance(values, dict):
        raise UserError(f"model.weights is {uri!r}: not a state dict, save model.state_dict()")
    return {
        str(name).removeprefix("module."): value  # DDP's prefix
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def read_weights(uri: str) -> bytes:
    """Read a file of weights.

    Raises:
        FileNotFoundError: where it does not exist.
        UserError: for a file of more than MAX_WEIGHTS_BYTES.
    """
    filesystem, path = storage.resolve(uri)
    with storage.explaining(uri):
        size = filesystem.get_file_info(path).size or 0
    if size > MAX_WEIGHTS_BYTES:
        raise UserError(
            f"{uri} has {size} bytes, more than the {MAX_WEIGHTS_BYTES} of any network here; save "
            "the bare state dict, without the state of the optimizer"
        )
    return storage.read_bytes(uri)


def _load(model: nn.Module, given: dict[str, Tensor], config: ModelConfig) -> LoadReport:
    backbone, wanted = find(config.backbone), model.state_dict()
    common = [name for name in wanted if name in given]
    misfits = {name for name in common if given[name].shape != wanted[name].shape}
    in_head = {name for name in common if backbone.stage_of(name) == len(backbone.stages)}
    for name in common:
        if name in misfits - in_head:
            raise UserError(
                f"model.weights is {config.weights!r}: its {name} has shape "
                f"{tuple(given[name].shape)}, {config.backbone} needs {tuple(wanted[name].shape)}; "
                "give weights of the same network"
            )
    if in_head.issuperset(common):
        raise UserError(
            f"model.weights is {config.weights!r}: none of its {len(given)} tensors belongs to "
            f"{config.backbone}; give weights of the same network"
        )
    report = LoadReport(
        loaded=tuple(name for name in common if name not in misfits),
        replaced=tuple(name for name in common if name in misfits),
        missing=tuple(name for name in wanted if name not in given),
        unexpected=tuple(name for name in given if name not in wanted),
    )
    loaded = {name: given[name] for name in report.loaded}
    refuse_not_finite(loaded, f"model.weights is {config.weights!r}")
    incomplete = [name.rpartition(".")[0] for name in (*report.replaced, *report.missing)]
    for module in dict.fromkeys(incomplete):
        _reset(model.get_submodule(module))
    model.load_state_dict(loaded, strict=False)
    return report
