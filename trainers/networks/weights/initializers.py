"""The random initializers: draw the weights of a network from a seed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

DRAWN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside; the global random state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        yield


def draw_weights(model: nn.Module, draw: Callable[[Tensor], Any]) -> None:
    """Draw convolutions and linear layers; reset the other layers."""
    for module in model.modules():
        if isinstance(module, DRAWN):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        else:
            reset(module)


def reset(module: nn.Module) -> None:
    """Give a layer torch's default initialization; containers have none."""
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()
