"""Files of a head alone, for `model.head`: what they hold, and how they are loaded."""

from collections.abc import Sequence

from torch import Tensor, nn

from cluster.io.errors import UserError
from trainers.config import ModelConfig
from trainers.networks.backbones import find
from trainers.networks.weights.class_rows import describe_names, match_head, same_classes
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
    """Load the head in `model.head`; return a note where it is for other classes, or names none.

    Raises:
        UserError: for a file that can't be read, a head of another network, or of other classes.
    """
    assert config.head is not None
    fresh = head_tensors(model, config.backbone)
    origin = f"model.head is {config.head!r}"
    try:
        content = read_weights(config.head)
    except FileNotFoundError as error:
        raise UserError(f"{origin}: it can't be read ({error}); give a .safetensors file") from None
    given, note = parse_safetensors(content, origin), None
    source = find_classes(parse_metadata(content))
    if classes and source is None:
        note = f"head: kept by position, as {config.head} does not name its classes"
    elif classes and source and fresh.keys() <= given.keys() and not same_classes(source, classes):
        matched = match_head(given, fresh, source, classes)
        if not matched.kept:
            raise UserError(
                f"{origin}: its classes are {describe_names(source)}, and none of them is in this "
                f"data set ({describe_names(classes)}); give a head of the same classes, or none"
            )
        given, note = matched.tensors, matched.describe()
    if {name: t.shape for name, t in given.items()} != {n: t.shape for n, t in fresh.items()}:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in fresh.items())
        raise UserError(f"{origin}: not a head of this network, whose tensors are {shapes}")
    refuse_not_finite(given, origin)
    model.load_state_dict(given, strict=False)
    return note
