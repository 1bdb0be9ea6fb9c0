"""Files of tensors: writes safetensors; reads untrusted files, which runs no code and uses no more
memory than a file's size.
"""

import io
import json
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cluster.io.errors import UserError

INERT = (
    "argparse.Namespace",  # timm, DINO: the command line
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    *(f"numpy.dtypes.{name}DType" for name in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    *(f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool")),
    "typing.Any",
)
"""Types of values that scripts save beside weights: an `_Ignored` takes the place of each."""
CONTAINERS = (
    *("collections.defaultdict", "omegaconf.", "pytorch_lightning.", "lightning.", "mmengine."),
    *("lightning_fabric.", "mmcv.", "fvcore.", "yacs.", "easydict.", "addict.", "ml_collections."),
)
"""Beginnings of types of configs, histories and callbacks: a plain dict takes the place of each."""
MAX_HEADER_BYTES = 2**23
"""Of a safetensors file; ten thousand tensors take a megabyte."""
SAVE = "save the bare state dict, best as .safetensors"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_GROWS = b"\nbytearray\n"
"""A pickle that calls bytearray(n), which torch.load allows, allocates any amount of memory."""


def parse_safetensors(content: bytes, origin: str) -> dict[str, Tensor]:
    """Parse a safetensors file.

    Args:
        origin: begins the error: the file, or the field with its URI.

    Raises:
        UserError: where it is another kind of file, or damaged.
    """
    if content.startswith((_ZIP, _PICKLE)) and not _is_safetensors(content):
        raise UserError(f"{origin}: a pickle, not the safetensors file that its name says; {SAVE}")
    header_bytes = int.from_bytes(content[:8], "little")
    if len(content) >= 8 and header_bytes > MAX_HEADER_BYTES:
        raise UserError(
            f"{origin}: damaged, as its header would be {header_bytes} bytes long and that of a "
            f"network is {MAX_HEADER_BYTES} at most; {SAVE}"
        )
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{origin}: damaged, or no safetensors file ({error}); {SAVE}") from None


class _Ignored(dict[Any, Any]):
    """Takes any arguments and state, and keeps none."""

    def __init__(self, *arguments: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None: ...


class _Container:
    """Makes a dict that takes items and attributes; torch sets those of OrderedDict alone."""

    def __new__(cls, *arguments: object) -> OrderedDict[Any, Any]:
        return OrderedDict()


def parse_metadata(content: bytes) -> dict[str, Any]:
    """Return the metadata of a safetensors file that `parse_safetensors` accepts, JSON parsed."""
    header_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_bytes])
    values = {}
    for name, text in (header.get("__metadata__") or {}).items():
        with suppress(ValueError):
            values[name] = json.loads(text)
    return values


def parse_pickle(content: bytes, origin: str) -> Any:
    """Parse a file of torch.save that holds only tensors and plain values.

    Raises:
        UserError: where it is another kind of file, is damaged, would run code, or would unpack to
            more than its size.
    """
    if _is_safetensors(content):
        raise UserError(f"{origin}: a safetensors file; rename it to end in .safetensors")
    refused = f"{origin}: damaged, or a pickle that would run code, which is refused; {SAVE}"
    stand_ins: dict[str, type] = dict.fromkeys(INERT, _Ignored)
    if content.startswith(_ZIP):
        _refuse_bomb(content, origin)
        types = _list_types(content, refused)
        stand_ins |= {name: _Ignored for name in types if name.startswith("numpy.")}
        stand_ins |= {name: _Container for name in types if name.startswith(CONTAINERS)}
        if unknown := sorted(types - stand_ins.keys()):
            raise UserError(
                f"{origin}: a pickle that would run code, which is refused (it holds "
                f"{unknown[0][:100]}); {SAVE}"
            )
    if _GROWS in content:
        raise UserError(refused)
    try:
        ignored: list[Any] = [(stand_in, name) for name, stand_in in stand_ins.items()]
        # Warnings are about files that are refused anyway.
        with warnings.catch_warnings(), torch.serialization.safe_globals(ignored):
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for damaged bytes
        raise UserError(refused) from error


def _list_types(content: bytes, refused: str) -> set[str]:
    """Return the types and functions that a zip of torch.save names, other than torch's own; they
    are read, not imported."""
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)))
    except Exception as error:  # many kinds for damaged bytes
        raise UserError(refused) from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load exactly the tensors of a network.

    Raises:
        UserError: naming the first tensor that is missing, of another shape, or not finite.
    """
    wanted = model.state_dict()
    for kind, names in (("lacks", wanted.keys() - weights), ("has", weights.keys() - wanted)):
        if names:
            raise UserError(
                f"{origin} {kind} {min(names)[:200]!r}: it is not of this network; give the run of "
                "one, or train it again"
            )
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"{origin}: its {name} has shape {tuple(tensor.shape)}, this network's has "
                f"{tuple(wanted[name].shape)}; give the run of one, or train it again"
            )
    refuse_not_finite(weights, origin)
    model.load_state_dict(weights)


def refuse_not_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights that can't be trained further.

    Raises:
        UserError: naming the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.is_quantized:
            raise UserError(f"{origin}: its {name} is not a dense tensor; {SAVE}")
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{origin}: its {name} has values that are NaN or infinite; give weights of a "
                "training that did not diverge"
            )


def _is_safetensors(content: bytes) -> bool:
    """Whether 8 bytes of length are followed by a JSON object."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8


def _refuse_bomb(content: bytes, origin: str) -> None:
    """Refuse a zip that unpacks to more than its size: torch.save does not compress."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise UserError(f"{origin}: damaged ({error}); {SAVE}") from None
    unpacked = sum(record.file_size for record in records)
    if unpacked > len(content) or any(r.compress_type != zipfile.ZIP_STORED for r in records):
        raise UserError(
            f"{origin}: it would unpack from {len(content)} to {unpacked} bytes, so torch.save did "
            f"not write it; {SAVE}"
        )


def to_safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file, which holds contiguous tensors only."""
    return safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}, metadata)
