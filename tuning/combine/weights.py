"""Averages of the weights of networks with one architecture and one start. B images."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from trainers.networks.freezing import train_mode
from trainers.step.step import StepSettings, predict

Tensors = Mapping[str, Tensor]


def average(networks: Sequence[Tensors]) -> dict[str, Tensor]:
    """Return the mean of each tensor; counters are those of the first network.

    Source: Wortsman et al. 2022, Model soups, https://arxiv.org/abs/2203.05482.
    """
    first = networks[0]
    return {
        name: _mean([tensors[name] for tensors in networks])
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if all(torch.equal(tensor, tensors[0]) for tensor in tensors[1:]):
        return tensors[0]  # frozen: bit-identical, which a sum may round away
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)


def interpolate(
    start: Tensors, end: Tensors, share: float, *, keep: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Return (1 - share) * start + share * end; counters, and tensors in `keep`, are those of
    `end`.

    Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (WiSE-FT),
    https://arxiv.org/abs/2109.01903.
    """
    kept = set(keep)
    return {
        name: tensor
        if name in kept or not tensor.is_floating_point()
        else torch.lerp(start[name].double(), tensor.double(), share).to(tensor.dtype)
        for name, tensor in end.items()
    }


def list_live(
    model: nn.Module, backbone: str, depth: int, *, freeze_batchnorm: bool
) -> list[BatchNorm]:
    """Return the BatchNorms whose statistics a training of that freeze depth changes; leaves the
    network in eval mode."""
    train_mode(model, backbone, depth, freeze_batchnorm=freeze_batchnorm)
    live = [m for m in model.modules() if isinstance(m, BatchNorm) and m.training]
    model.eval()
    return live


@torch.no_grad()
def recompute_statistics(
    model: nn.Module,
    live: Sequence[BatchNorm],
    batches: Iterable[Tensor],
    settings: StepSettings,
) -> None:
    """Set BatchNorm statistics to the mean over batches of training images.

    Statistics are of the activations of one network's weights; those of averaged weights have less
    variance than the average of the variances says. All else is in eval mode: frozen statistics
    and dropout don't change.

    Args:
        batches: images_BHWC.

    Source: Izmailov et al. 2018, Averaging Weights Leads to Wider Optima, section 3.2.
    """
    momenta = [module.momentum for module in live]
    for module in live:
        module.reset_running_stats()
        module.momentum = None  # a mean over all batches
        module.train()
    for images_BHWC in batches:
        predict(model, images_BHWC, settings)
    for module, momentum in zip(live, momenta, strict=True):
        module.momentum = momentum
        module.eval()
