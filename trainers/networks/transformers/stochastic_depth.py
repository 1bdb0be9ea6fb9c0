"""Stochastic depth: residual branches of networks of timm that are left out at random in training.

Source: Huang et al. 2016, https://arxiv.org/abs/1603.09382.
"""

from functools import cache

from torch import nn

from cluster.io.errors import require
from trainers.networks.backbones import on_meta


@cache
def has_branches(backbone: str) -> bool:
    """Whether timm names the residual branches of a network."""
    return bool(_find_branches(on_meta(backbone, 2)))


def require_branches(backbone: str, rate: float) -> None:
    """Refuse a rate for a network without such branches.

    Raises:
        UserError: for a rate above zero.
    """
    require(
        not rate or has_branches(backbone),
        "model.drop_path",
        rate,
        f"{backbone} has no residual branches that can be left out; use 0",
    )


def drop_branches(network: nn.Module, rate: float) -> None:
    """Leave out the branches of a block for an image with a probability that rises from 0 in the
    first block to `rate` in the last, as timm does; in place, in train mode only."""
    from timm.layers.drop import DropPath

    blocks = _find_branches(network)
    for number, (path, names) in enumerate(blocks.items()):
        block = network.get_submodule(path)
        for name in names:
            setattr(block, name, DropPath(rate * number / max(1, len(blocks) - 1)))


def _find_branches(network: nn.Module) -> dict[str, list[str]]:
    """Return the modules that leave a branch out, or would, by the path of their block."""
    found: dict[str, list[str]] = {}
    for path, module in network.named_modules():
        block, _, name = path.rpartition(".")
        if name.startswith("drop_path") and not list(module.children()):
            found.setdefault(block, []).append(name)
    return found
