"""Initial weights: ImageNet's, a file's, or drawn from a seed."""

import http.client
import json
import re
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import huggingface_hub
import torch
from pyarrow import fs
from torch import Tensor, nn

from cluster.io import filesystems, storage
from cluster.io.errors import UserError
from cluster.io.records import read_object
from cluster.io.uris import name_of, parent_of
from datasets.prepare.classes import clean
from trainers.config import RANDOM, ModelConfig
from trainers.networks.backbones import find
from trainers.networks.class_rows import MatchedHead, match_head
from trainers.networks.cut import before
from trainers.networks.published import IMAGENET_CLASSES, Published
from trainers.networks.state_dicts import (
    describe_mismatch,
    find_classes,
    find_tensors,
    name_format,
)
from trainers.networks.tensors import (
    parse_pickle,
    parse_safetensors,
    read_metadata,
    refuse_not_finite,
)
from trainers.networks.timm_models import adapt
from trainers.networks.transformers.lora import merge

CONNECT_TIMEOUT_S = 4.0
MAX_WEIGHTS_BYTES = 8 * 2**30
PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "unknown")
NON_COMMERCIAL = ("-nc", "noncommercial", "apple-amlr")
"""Licenses by their names at timm."""
NAMES_SHOWN = 4
WEIGHTS_FILES = (
    *("pytorch_model.bin", "model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin.index.json", ".metadata", "saved_model.pb", "tf_model.h5"),
    *("flax_model.msgpack",),
)
"""In a folder; all but the first two are of kinds that `name_format` describes."""
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
    notes: tuple[str, ...] = ()
    """Which of several state dicts was loaded, and what became of the head, for the user."""

    def __str__(self) -> str:
        """Return counts, and the first names of tensors that were not loaded."""
        return (
            f"{len(self.loaded)} tensors loaded; "
            f"{len(self.replaced)} of a head replaced{_first(self.replaced)}; "
            f"{len(self.missing)} missing{_first(self.missing)}; "
            f"{len(self.unexpected)} unexpected{_first(self.unexpected)}"
        )


def _first(names: tuple[str, ...]) -> str:
    return f" ({_describe_names(names)})" if names else ""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors by their names in the network, and the classes of their head."""

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None = None
    """None where they are not known."""
    notes: tuple[str, ...] = ()


def initialize(
    model: nn.Module,
    config: ModelConfig,
    *,
    seed: int,
    classes: Sequence[str] | None = None,
) -> LoadReport:
    """Initialize a model on the CPU; the same seed gives the same tensors.

    A random initialization draws all convolutions and linear layers, the heads included, and resets
    normalization (weight 1, bias 0). A pretrained one loads tensors that fit; a head of another
    number of classes, and modules that the file lacks, get torch's default initialization from the
    seed. The global random state is unchanged.

    Args:
        classes: of the model's outputs. Rows of a pretrained head follow their names, where the
            weights have names.

    Raises:
        UserError: for weights that can't be read, or belong to another network.
    """
    with _seeded(seed):
        if config.init in RANDOM:
            _draw(model, INITIALIZERS[config.init])
            return LoadReport()
        report = _load(model, _read_pretrained(model, config), config, classes)
    if config.head is not None:
        note = _load_head(model, config, classes)
        report = replace(report, notes=(*report.notes, *filter(None, [note])))
    return report


def head_tensors(model: nn.Module, backbone_name: str) -> dict[str, Tensor]:
    """Return the tensors of a network's heads: the content of a file for `model.head`."""
    backbone = find(backbone_name)
    return {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if backbone.stage_of(name) == len(backbone.stages)
    }


def _load_head(model: nn.Module, config: ModelConfig, classes: Sequence[str] | None) -> str | None:
    """Load the head in `model.head`; return a note where it is for other classes."""
    assert config.head is not None
    fresh = head_tensors(model, config.backbone)
    origin = f"model.head is {config.head!r}"
    try:
        content = read_weights(config.head)
    except FileNotFoundError as error:
        raise UserError(f"{origin}: it can't be read ({error}); give a .safetensors file") from None
    given, note = parse_safetensors(content, origin), None
    source = find_classes(_parse_metadata(content))
    if source and classes and list(map(clean, source)) != list(map(clean, classes)):
        matched = (
            match_head(given, fresh, source, classes) if fresh.keys() <= given.keys() else None
        )
        if matched is not None and matched.kept:
            given, note = matched.tensors, _describe_head(matched)
    if {name: t.shape for name, t in given.items()} != {n: t.shape for n, t in fresh.items()}:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in fresh.items())
        raise UserError(f"{origin}: not a head of this network, whose tensors are {shapes}")
    refuse_not_finite(given, origin)
    model.load_state_dict(given, strict=False)
    return note


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
    reason = "HF_HUB_OFFLINE is set"
    if not huggingface_hub.is_offline_mode():
        request = urllib.request.Request(published.url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S).close()
            return None
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
    return (
        f"weights {published.name} of {config.backbone} can't be downloaded from {published.url} "
        f"({reason}): fetch that file elsewhere and give it with --weights"
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


def _read_pretrained(model: nn.Module, config: ModelConfig) -> Weights:
    if config.weights:
        weights = _read_file(config.weights, model)
        if config.init != "file":  # stands in for the download
            weights = replace(weights, classes=_published(config).classes)
    else:
        published = _published(config)
        weights = Weights(tensors=published.read(), classes=published.classes)
    renamed = {OLD_DENSENET.sub(r"\1", name): tensor for name, tensor in weights.tensors.items()}
    if find(config.backbone).takes_size and not _fits(renamed, model, config.backbone):
        renamed = adapt(renamed, model)
    return replace(weights, tensors=renamed)


def _fits(tensors: dict[str, Tensor], model: nn.Module, backbone_name: str) -> bool:
    """Whether the tensors before the head are those of the network."""
    wanted = before(model.state_dict(), backbone_name, len(find(backbone_name).stages))
    return all(name in tensors and tensors[name].shape == t.shape for name, t in wanted.items())


def _weights_file(uri: str) -> str:
    """Return `uri`, or the weights in it where it is a folder: of a checkpoint, of Hugging Face, or
    of a repository in Hugging Face's cache."""
    filesystem, path = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        is_folder = filesystem.get_file_info(path).type == fs.FileType.Directory
    if not is_folder:
        return uri
    if storage.exists(revision := storage.join(uri, "refs", "main")):
        uri = storage.join(uri, "snapshots", storage.read_bytes(revision).decode().strip())
    found = (file for name in WEIGHTS_FILES if storage.exists(file := storage.join(uri, name)))
    return next(found, storage.join(uri, "model.safetensors"))


def _read_file(uri: str, model: nn.Module) -> Weights:
    """Read a file's tensors by name, unwrapped from what training scripts save them in."""
    file, origin = _weights_file(uri), f"model.weights is {uri!r}"
    try:
        content = read_weights(file)
    except FileNotFoundError:
        raise UserError(
            f"{origin}: no file there; give a state dict that torch.save or safetensors wrote, or "
            "a checkpoint folder of Thaw"
        ) from None
    if (found := name_format(content, file)) is not None:
        raise UserError(f"{origin}: {found}")
    if file.endswith(".safetensors"):
        values: Any = parse_safetensors(content, origin)
        classes = find_classes(_parse_metadata(content))
    else:
        values = parse_pickle(content, origin)
        classes = find_classes(values) if isinstance(values, dict) else None
    if not isinstance(values, dict):
        raise UserError(f"{origin}: not a state dict, save model.state_dict()")
    state_dict = find_tensors(values, model.state_dict().keys())
    notes = []
    if state_dict.others:
        notes.append(
            f"{origin}: {state_dict.where}{', the average,' * state_dict.is_average} is used; also "
            f"there: {', '.join(state_dict.others)}"
        )
    return Weights(
        tensors=merge(state_dict.tensors),
        classes=classes or _read_classes_beside(file),
        notes=tuple(notes),
    )


def _parse_metadata(content: bytes) -> dict[str, Any]:
    """Return the metadata of a safetensors file, values of JSON parsed."""
    values = {}
    for name, text in read_metadata(content).items():
        with suppress(ValueError):
            values[name] = json.loads(text)
    return values


def _read_classes_beside(file: str) -> tuple[str, ...] | None:
    """Read the classes of a checkpoint of Thaw, or of a model of Hugging Face, from its folder."""
    if name_of(file) not in ("model.safetensors", "pytorch_model.bin"):
        return None
    for name in ("progress.json", "config.json"):
        try:
            values = read_object(storage.join(parent_of(file), name))
        except (FileNotFoundError, UserError):  # another program's: it names no classes
            continue
        if (classes := find_classes(values)) is not None:
            return classes
    return None


def read_weights(uri: str) -> bytes:
    """Read a file of weights.

    Raises:
        FileNotFoundError: where it does not exist.
        UserError: for a file of more than MAX_WEIGHTS_BYTES.
    """
    filesystem, path = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        size = filesystem.get_file_info(path).size or 0
    if size > MAX_WEIGHTS_BYTES:
        raise UserError(
            f"{uri} has {size} bytes, more than the {MAX_WEIGHTS_BYTES} of any network here; save "
            "the bare state dict, without the state of the optimizer"
        )
    return storage.read_bytes(uri)


def _load(
    model: nn.Module, weights: Weights, config: ModelConfig, classes: Sequence[str] | None
) -> LoadReport:
    backbone, wanted, given = find(config.backbone), model.state_dict(), weights.tensors
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
            f"{config.backbone} ({describe_mismatch(given, wanted)}); give weights of the same "
            "network"
        )
    notes, source = list(weights.notes), weights.classes
    rows = {given[name].shape[0] for name in in_head if given[name].ndim == 2}
    if source is None and rows == {len(IMAGENET_CLASSES)}:
        source = IMAGENET_CLASSES
    if source is not None and rows and rows != {len(source)}:
        source = None
    replaced = misfits
    if classes is not None and source is not None:
        if list(map(clean, source)) != list(map(clean, classes)):
            of_classes = {name for name in in_head if given[name].shape[:1] == (len(source),)}
            replaced = misfits | of_classes
    elif classes is not None and in_head - misfits:
        notes.append(
            "head: kept by position, as the weights do not name their classes; give a checkpoint "
            "of Thaw, whose classes have names, where the order may differ"
        )
    report = LoadReport(
        loaded=tuple(name for name in common if name not in replaced),
        replaced=tuple(name for name in common if name in replaced),
        missing=tuple(
            name
            for name in wanted
            # Files of torch before 0.4.1 lack counters of a BatchNorm, which nothing here reads.
            if name not in given
            and name.replace("num_batches_tracked", "running_mean") not in given
        ),
        unexpected=tuple(name for name in given if name not in wanted),
    )
    loaded = {name: given[name] for name in common if name not in misfits or source is not None}
    refuse_not_finite(loaded, f"model.weights is {config.weights!r}")
    incomplete = [name.rpartition(".")[0] for name in (*report.replaced, *report.missing)]
    for module in dict.fromkeys(incomplete):
        _reset(model.get_submodule(module))
    loaded = {name: given[name] for name in report.loaded}
    if classes is not None and source is not None and replaced:
        fresh = {name: wanted[name] for name in report.replaced}
        matched = match_head(given, fresh, source, classes)
        if matched.kept:
            loaded |= matched.tensors
        if matched.kept or not misfits:
            notes.append(_describe_head(matched))
    model.load_state_dict(loaded, strict=False)
    return replace(report, notes=tuple(notes))


def _describe_head(head: MatchedHead) -> str:
    kept, drawn = (_describe_names(names) for names in (head.kept, head.drawn))
    if not head.kept:
        return f"head: initialized, as the weights have none of the classes {drawn}"
    return f"head: rows follow class names: {kept} kept" + f", {drawn} initialized" * bool(
        head.drawn
    )


def _describe_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
