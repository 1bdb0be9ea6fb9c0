"""FLOPs of a network and of its frozen prefixes, counted without computing anything."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainers.config import FinetuneConfig
from trainers.networks.backbones import on_meta
from trainers.networks.cut import Suffix, build_prefix
from trainers.networks.torch_internals import without_compiler


def count_flops(
    base: FinetuneConfig, depths: Sequence[int]
) -> tuple[float, dict[int, tuple[float, tuple[int, ...], str]]]:
    """Count the FLOPs of an image's forward pass.

    Returns:
        Those of the whole network; by depth those of the prefix, the shape of an image's features,
        and why the network can't be cut there (empty where it can).
    """
    return _count_flops(base.model.backbone, base.ingest.size_px, tuple(depths))


@cache
def _count_flops(
    name: str, size_px: int, depths: tuple[int, ...]
) -> tuple[float, dict[int, tuple[float, tuple[int, ...], str]]]:
    network = on_meta(name, 2, size_px)
    image = torch.zeros(1, 3, size_px, size_px, device="meta")
    total = _flops_of(network, image)[0]
    counted: dict[int, tuple[float, tuple[int, ...], str]] = {}
    for depth in depths:
        try:
            Suffix(network, name, depth)
            prefix = build_prefix(network, name, [depth])
        except ValueError as error:
            counted[depth] = total, (), str(error)
            continue
        flops, (features,) = _flops_of(prefix, image)
        counted[depth] = flops, tuple(features.shape[1:]), ""
    return total, counted


def _flops_of(network: torch.nn.Module, image: torch.Tensor) -> tuple[float, Any]:
    with without_compiler(), FlopCounterMode(display=False) as counter, torch.no_grad():
        output = network(image)
    return float(counter.get_total_flops()), output
