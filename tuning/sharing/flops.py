"""FLOPs of a network and of its frozen prefixes, counted without computing anything."""

from collections.abc import Sequence
from functools import cache

from trainers.config import FinetuneConfig
from trainers.networks.backbones import on_meta
from trainers.networks.cut import Suffix, build_prefix
from trainers.networks.measure import count_backbone_flops, run_counted


def count_flops(
    base: FinetuneConfig, depths: Sequence[int]
) -> tuple[float, dict[int, tuple[float, tuple[int, ...], str]]]:
    """Count the FLOPs of an image's forward pass.

    Returns:
        Those of the whole network; by depth those of the prefix, the shape of an image's features,
        and why the network can't be cut there (empty where it can).
    """
    name, size_px = base.model.backbone, base.ingest.size_px
    return count_backbone_flops(name, size_px), {
        depth: _count_prefix(name, size_px, depth) for depth in depths
    }


@cache
def _count_prefix(name: str, size_px: int, depth: int) -> tuple[float, tuple[int, ...], str]:
    network = on_meta(name, 2, size_px)
    try:
        Suffix(network, name, depth)
        prefix = build_prefix(network, name, [depth])
    except ValueError as error:
        return count_backbone_flops(name, size_px), (), str(error)
    flops, (features,) = run_counted(prefix, size_px)
    return flops, tuple(features.shape[1:]), ""
