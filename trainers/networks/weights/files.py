"""Files of weights that a user gives: found in a folder, read, and unwrapped from what training
scripts save them in.
"""

from dataclasses import dataclass
from typing import Any

from pyarrow import fs
from torch import Tensor, nn

from cluster.io import filesystems, storage
from cluster.io.errors import UserError
from cluster.io.records import read_object
from cluster.io.uris import name_of, parent_of
from trainers.networks.transformers.lora import merge
from trainers.networks.weights.state_dicts import find_classes, find_tensors, name_format
from trainers.networks.weights.tensors import parse_metadata, parse_pickle, parse_safetensors

MAX_WEIGHTS_BYTES = 8 * 2**30
WEIGHTS_FILES = (
    *("pytorch_model.bin", "model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin.index.json", ".metadata", "saved_model.pb", "tf_model.h5"),
    *("flax_model.msgpack",),
)
"""In a folder; all but the first two are of kinds that `name_format` describes."""
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Of files that are named where a folder has none of these."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors by their names in the network, and the classes of their head."""

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None = None
    """None where they are not known."""
    notes: tuple[str, ...] = ()


def read_file(uri: str, model: nn.Module) -> Weights:
    """Read a file's tensors by name, unwrapped from what training scripts save them in."""
    file, origin = find_file(uri), f"model.weights is {uri!r}"
    try:
        content = read_weights(file)
    except FileNotFoundError:
        raise UserError(f"{origin}: {describe_missing(uri)}") from None
    if not content:
        raise UserError(f"{origin}: damaged, as the file is empty; fetch or save it again")
    if (found := name_format(content, file)) is not None:
        raise UserError(f"{origin}: {found}")
    if file.endswith(".safetensors"):
        values: Any = parse_safetensors(content, origin)
        classes = find_classes(parse_metadata(content))
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


def describe_missing(uri: str) -> str:
    """Say what a folder without weights of a usual name has, or that there is no file."""
    names = [n for n in storage.list_names(uri) if n.casefold().endswith(WEIGHTS_SUFFIXES)]
    if names:
        return f"the folder has no {' or '.join(WEIGHTS_FILES[:2])}; give {_enumerate(names)} in it"
    return (
        "no file there; give a state dict that torch.save or safetensors wrote, or a checkpoint "
        "folder of Thaw"
    )


def _enumerate(names: list[str]) -> str:
    return f"{' or '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


def find_file(uri: str) -> str:
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
