"""Files of a head alone, for `model.head`: what they hold, and how they are loaded."""

from collections.abc import Sequence

from torch import Tensor, nn

from cluster.io.errors import UserError
from trainers.config import ModelConfig
from trainers.networks.backbones import find
from trainers.networks.weights.class_rows import match_head, same_classes
from trainers.networks.weights.files import read_weights
from trainers.networks.weights.state_dicts import find_classes
from trainers.networks.weights.tensors import parse_metadata, parse_safetensors, refuse_not_finite


def head_tensors(model: nn.Module, backbone_name: str) -> dict[str, Tensor]:
    """Return the tensors of a network's heads: the content of a file for `model.head`."""
    backbone = find(backbone_name)
    return {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if backbone.stage_of(name) == len(backbone.stages)
    }


def load_head(model: nn.Module, config: ModelConfig, classes: Sequence[str] | None) -> str | None:
    """Load the head in `model.head`; return a note where it is for other classes."""
    assert config.head is not None
    fresh = head_tensors(model, config.backbone)
    origin = f"model.head is {config.head!r}"
    try:
        content = read_weights(config.head)
    except FileNotFoundError as error:
        raise UserError(f"{origin}: it can't be read ({error}); give a .safetensors file") from None
    given, note = parse_safetensors(content, origin), None
    source = find_classes(parse_metadata(content))
    if source and classes and not same_classes(source, classes):
        matched = (
            match_head(given, fresh, source, classes) if fresh.keys() <= given.keys() else None
        )
        if matched is not None and matched.kept:
            given, note = matched.tensors, matched.describe()
    if {name: t.shape for name, t in given.items()} != {n: t.shape for n, t in fresh.items()}:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in fresh.items())
        raise UserError(f"{origin}: not a head of this network, whose tensors are {shapes}")
    refuse_not_finite(given, origin)
    model.load_state_dict(given, strict=False)
    return note
