"""Several networks as one: the log of the mean of their probabilities.

    RUN/ensemble.json   the network of each member; the checkpoint has the tensors of all of them

B images, H x W pixels, C channels, K classes; M members.
"""

import json
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cluster.io import storage
from cluster.io.records import read_object

PREFIX = "members"
"""Of the names of tensors: members.0.features.0.weight."""


class Ensemble(nn.Module):
    """images_BCHW -> logits_BK, of members that take the same pixels."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        log_MBK = torch.stack([member(images_BCHW).log_softmax(1) for member in self.members])
        return log_MBK.logsumexp(0) - math.log(len(self.members))


def join_tensors(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the state dict of an ensemble from those of its members."""
    return {
        f"{PREFIX}.{number}.{name}": tensor
        for number, tensors in enumerate(members)
        for name, tensor in tensors.items()
    }


def write_ensemble(run: str, backbones: Sequence[str]) -> None:
    """Write ensemble.json: the network of each member."""
    text = json.dumps({"backbones": list(backbones)}, indent=1).encode()
    storage.write_bytes(storage.join(run, "ensemble.json"), text)


def read_ensemble(run: str) -> list[str] | None:
    """Read the networks of an ensemble; None for a run of one network."""
    uri = storage.join(run, "ensemble.json")
    if not storage.exists(uri):
        return None
    return read_object(uri, {"backbones": list[str]})["backbones"]
