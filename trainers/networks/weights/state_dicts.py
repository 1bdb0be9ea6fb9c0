"""Finds a network's tensors in what training scripts save: wrappers, prefixes, averages.

Names of formats that are no state dicts, with the way out. Pure functions of contents.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Set
from typing import Any, NamedTuple

from torch import Tensor

MAX_NESTING = 4
IGNORED_PARTS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Put anywhere in names by torch.compile, FSDP and activation checkpointing."""
AVERAGES = ("ema", "averaged", "average", "avg", "swa", "teacher")
"""Parts of the keys of averaged weights, which evaluate better than the raw ones beside them."""
HEADS = {"backbone.": "head."}
"""Prefix of a network -> that of the head beside it, in files of MMPretrain."""
CLASS_KEYS = (
    *("classes", "CLASSES", "class_names", "class_to_idx", "idx_to_class", "id2label"),
    "label_names",
)
CONFIG_KEYS = ("meta", "dataset_meta", "hyper_parameters", "config")
_NAMES_SHOWN = 3
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")
"""Of a file that has a part of a large model."""


class Found(NamedTuple):
    """Tensors of a file by their names in the network, and where they were."""

    tensors: dict[str, Tensor]
    where: str
    """Key and prefix, for messages; empty for a bare state dict."""
    others: tuple[str, ...]
    """Other places with as many of the network's tensors."""

    @property
    def is_average(self) -> bool:
        return _is_average(self.where)


def find_tensors(values: Mapping[Any, Any], wanted: Set[str]) -> Found:
    """Return the tensors of the nested dict, under the prefix, that most of `wanted` are in.

    Of several with as many, averages come first, then the order of the file.
    """
    best = list[tuple[int, str, dict[str, Tensor]]]()
    for key, tensors in _list_state_dicts(values):
        for prefix, num_found in _list_prefixes(tensors, wanted):
            stripped = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix) or not prefix
            }
            if head := HEADS.get(prefix):
                beside = {name: tensors.get(f"{head}{name}") for name in wanted - stripped.keys()}
                stripped |= {name: tensor for name, tensor in beside.items() if tensor is not None}
            where = " ".join(filter(None, (key, prefix and f"prefix {prefix!r}")))
            best.append((num_found, where, stripped))
    if not best:
        return Found({}, "", ())
    most = max(num_found for num_found, _, _ in best)
    places = [(where, tensors) for num_found, where, tensors in best if num_found == most]
    places.sort(key=lambda place: not _is_average(place[0]))
    (where, tensors), *rest = places
    return Found(tensors, where, tuple(other for other, _ in rest) if most else ())


def find_classes(values: Mapping[Any, Any], depth: int = 2) -> tuple[str, ...] | None:
    """Return class names that a script saved beside the weights, in the order of the outputs."""
    for key in CLASS_KEYS:
        given = values.get(key)
        if isinstance(given, Mapping) and given:
            by_number = {
                int(number): str(name)
                for pair in given.items()
                for number, name in [pair if _begins_with_number(key, pair) else pair[::-1]]
                if str(number).isdigit()
            }
            if sorted(by_number) == list(range(len(given))):
                return tuple(by_number[number] for number in range(len(given)))
        if isinstance(given, list | tuple) and given and all(isinstance(n, str) for n in given):
            return tuple(given)
    configs = (values.get(key) for key in CONFIG_KEYS if depth)
    found = (find_classes(config, depth - 1) for config in configs if isinstance(config, Mapping))
    return next(filter(None, found), None)


def _begins_with_number(key: str, pair: tuple[Any, Any]) -> bool:
    """Whether a pair under a key of CLASS_KEYS is number and name; names may be numbers too."""
    return key != "class_to_idx" and str(pair[0]).isdigit()


def _list_state_dicts(
    values: Mapping[Any, Any], key: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each dict that has tensors, with its key; outer ones first."""
    tensors = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            name = str(name)
            for part in IGNORED_PARTS:
                name = name.replace(part, "")
            tensors[name] = value
    if tensors:
        yield key, tensors
    if depth < MAX_NESTING:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from _list_state_dicts(value, f"{key}.{name}".strip("."), depth + 1)


def _list_prefixes(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> list[tuple[str, int]]:
    """Return the prefixes under which the most names are wanted, and how many; none wanted: ''."""
    votes = Counter[str]()
    for name in tensors:
        start = 0
        while True:
            if name[start:] in wanted:
                votes[name[:start]] += 1
            start = name.find(".", start) + 1
            if not start:
                break
    most = max(votes.values(), default=0)
    return [(prefix, num) for prefix, num in votes.items() if num == most] or [("", 0)]


def _is_average(where: str) -> bool:
    words = where.casefold().replace(".", "_").replace("'", "_").replace(" ", "_").split("_")
    return any(word in AVERAGES for word in words)


def describe_mismatch(given: Collection[str], wanted: Collection[str]) -> str:
    """Show the first names of a file beside the first of the network."""
    first, ours = (", ".join([*names][:_NAMES_SHOWN]) for names in (given, wanted))
    return f"its first are {first or 'none'}, the network's {ours}"


def name_format(content: bytes, uri: str) -> str | None:
    """Describe a file of another kind, and the way to weights; None where it may be torch's."""
    name = uri.rstrip("/").rpartition("/")[2].casefold()
    convert = "load it there, and save its tensors by the names of this network as .safetensors"
    if content.startswith(b"\x89HDF\r\n\x1a\n"):
        return (
            "this is Keras' HDF5, whose layers have other names; use --init imagenet for the same "
            f"network, or {convert}"
        )
    if (
        content.startswith(b"PK\x03\x04")
        and b"model.weights.h5" in content[:4096] + content[-4096:]
    ):
        return (
            "this is Keras' archive (.keras), whose layers have other names; use --init imagenet "
            f"for the same network, or {convert}"
        )
    if name.endswith((".pb", ".index", ".meta")) or ".data-0000" in name:
        return f"this is TensorFlow's checkpoint or SavedModel; {convert}"
    if content[4:8] == b"TFL3":
        return f"this is TensorFlow Lite, made for inference; {convert}"
    if name.endswith(".onnx"):
        return "this is ONNX, made for inference; give the state dict that it was exported from"
    if name.endswith((".npz", ".msgpack")):
        return f"this is of NumPy or Flax, whose layouts differ; {convert}"
    if content.startswith(b"PK\x03\x04") and b"/code/__torch__" in content[-(2**20) :]:
        return "this is TorchScript, which has code; save model.state_dict() of it instead"
    if content.startswith(b"version https://git-lfs"):
        return "this is a pointer of Git LFS; fetch the file itself with `git lfs pull`"
    if content[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "this is a web page, so the download failed; fetch the file again"
    if name.endswith((".distcp", ".metadata")):
        return (
            "this is of torch.distributed.checkpoint; join it with `python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth`"
        )
    if name.endswith(".index.json"):
        return "this lists the shards of a large model; join them into one .safetensors file"
    if (shard := _SHARD.search(name)) and int(shard[1]) > 1:
        number = int(shard[1])
        return f"this is one of {number} shards of a model; join them into one .safetensors file"
    return None
