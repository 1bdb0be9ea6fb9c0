"""Optimizers, learning rate and gradient clipping, with Keras' exact meaning where it has one.

T counts the parameter tensors that have a gradient, S the stages they belong to.
"""

from collections.abc import Iterable
from functools import cache
from itertools import chain
from math import cos, pi, sqrt
from typing import Any

import torch
from torch import (
    Tensor,
    _foreach_mul_,  # pyright: ignore[reportPrivateImportUsage] torch's own clip_grad_norm_ uses
    _foreach_norm,  # pyright: ignore[reportPrivateImportUsage] them: few kernels for all tensors
    nn,
)
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainers.config import AUTO, OptimConfig, ScheduleConfig
from trainers.metrics import CLIPPED_SHARE, GRAD_NORM, GRAD_NORM_AFTER, PEAK_NORM, STAGE_CLIPPING
from trainers.networks.backbones import find

KERAS_EPSILON = 1e-7


class KerasAdam(Adam):
    """Adam as Keras writes it: p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + epsilon).

    torch adds its epsilon after the bias correction of v, so Keras' epsilon is torch's times
    sqrt(1 - b2^t). Source: keras/optimizers/optimizer_v2/adam.py, `epsilon hat` in Kingma & Ba.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, *, fused: bool) -> None:
        super().__init__(params, lr=lr, eps=KERAS_EPSILON, fused=fused, foreach=not fused)
        for group in self.param_groups:
            group["iterations"] = 0  # in the group, so that it travels in the state dict

    def step(self, closure: Any = None) -> Any:
        self.count_step()
        return super().step(closure)

    def count_step(self) -> None:
        """Set the epsilon of the next step."""
        for group in self.param_groups:
            group["iterations"] += 1
            beta2 = group["betas"][1]
            group["eps"] = KERAS_EPSILON / sqrt(1 - beta2 ** group["iterations"])


def build_optimizer(model: nn.Module, backbone_name: str, config: OptimConfig) -> Optimizer:
    """Build the optimizer of the parameters that require gradients.

    Two groups a stage: weights, and parameters without weight decay (biases, normalization, and
    those that timm names, such as tokens and positions). A group has its `stage`, as
    `Backbone.stage_of` counts, and the `rate_scale` of its learning rate.
    """
    backbone = find(backbone_name)
    assert config.layer_decay != AUTO, "`suit` has chosen it"
    undecayed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # pyright: ignore[reportCallIssue]
    parameters: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = backbone.stage_of(name), parameter.ndim > 1 and name not in undecayed
            parameters.setdefault(key, []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters[stage, is_weight],
            "weight_decay": config.weight_decay if is_weight else 0.0,
            "stage": stage,
            "is_weight": is_weight,
            "rate_scale": config.layer_decay ** (len(backbone.stages) - stage),
        }
        for stage, is_weight in sorted(parameters)
    ]
    # On CPUs the fused kernel takes a third of the time. A run that resumes keeps its own.
    on_cpu = all(parameter.is_cpu for parameter in chain.from_iterable(parameters.values()))
    if config.optimizer == "adam":
        return KerasAdam(groups, lr=config.learning_rate, fused=on_cpu)
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.learning_rate, fused=on_cpu, foreach=not on_cpu)
    return SGD(groups, lr=config.learning_rate, momentum=config.momentum, foreach=True)


def carry_state(before: Optimizer, after: Optimizer) -> None:
    """Copy the state (Adam's moments and steps, SGD's momentum) of parameters that both train.

    A stage thaws or freezes as a whole, so each group is copied as a whole or starts from zero.
    """
    known = {(group["stage"], group["is_weight"]): group for group in before.param_groups}
    for group in after.param_groups:
        old = known.get((group["stage"], group["is_weight"]))
        if old is None:
            continue
        if "iterations" in group:
            group["iterations"] = old["iterations"]
        for parameter in group["params"]:
            if parameter in before.state:
                after.state[parameter] = before.state[parameter]


def learning_rate_at(
    step: int,
    learning_rate: float,
    config: OptimConfig,
    schedule: ScheduleConfig,
    *,
    steps_per_epoch: int,
    num_epochs: int,
) -> float:
    """Return the learning rate of a step of a phase, whose peak is `learning_rate`.

    Steps count from 0, as Keras' iterations do. Warm-up rises linearly and reaches the peak at its
    last step; cosine falls from there and would reach zero one step after the phase's last.
    Keras' decay then divides by 1 + decay * step.
    """
    assert schedule.warmup_epochs != AUTO, "`suit` has chosen it"
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    total_steps = num_epochs * steps_per_epoch
    rate = learning_rate / (1 + config.decay * step)
    if step + 1 < warmup_steps:
        return rate * (step + 1) / warmup_steps
    if schedule.schedule == "cosine":
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        return rate * (1 + cos(pi * min(max(progress, 0.0), 1.0))) / 2
    return rate


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Set the learning rate of the head; a stage's is scaled by `layer_decay`."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["rate_scale"]


def clip_gradients(optimizer: Optimizer, config: OptimConfig) -> dict[str, Tensor]:
    """Clip the gradients of an optimizer's parameters in place.

    `clipnorm` clips each tensor's gradient to that norm, `global_clipnorm` the norm of all
    together: g * c / max(norm, c). Call it after DDP's all-reduce; it waits for no device.

    Returns:
        0-dim tensors: the global norm before and after clipping, the share of tensors clipped
        (globally: 0 or 1), the largest norm of a tensor before clipping; and the first three for
        the stages that train, first to last, as `STAGE_CLIPPING`: [3 * num_stages].
    """
    stages_T, gradients = [], []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                stages_T.append(group["stage"])
                gradients.append(parameter.grad)
    norms_T = torch.stack(_foreach_norm(gradients))
    global_norm = torch.linalg.vector_norm(norms_T)
    scales_T = torch.ones_like(norms_T)
    if config.clipnorm is not None:
        scales_T = config.clipnorm / norms_T.clamp(min=config.clipnorm)
        _foreach_mul_(gradients, scales_T.unbind())
    elif config.global_clipnorm is not None:
        scale = config.global_clipnorm / global_norm.clamp(min=config.global_clipnorm)
        _foreach_mul_(gradients, scale)
        scales_T = scales_T * scale
    parts_T3 = torch.stack([norms_T**2, (norms_T * scales_T) ** 2, (scales_T < 1).to(norms_T)], 1)
    members_ST = _members(tuple(stages_T), norms_T.device)
    sums_S3 = torch.where(members_ST[..., None], parts_T3, 0.0).sum(dim=1)  # not @: 0 * inf is NaN
    before_S, after_S, clipped_S = sums_S3.unbind(1)
    counts_S = members_ST.sum(dim=1)
    return {
        GRAD_NORM: global_norm,
        GRAD_NORM_AFTER: after_S.sum().sqrt(),
        CLIPPED_SHARE: clipped_S.sum() / len(gradients),
        PEAK_NORM: norms_T.max(),
        STAGE_CLIPPING: torch.stack(
            [before_S.sqrt(), after_S.sqrt(), clipped_S / counts_S], dim=1
        ).flatten(),
    }


@cache
def _members(stages_T: tuple[int, ...], device: torch.device) -> Tensor:
    """Return which tensors belong to which stage, bool [S, T]; cached on the device."""
    stages = sorted(set(stages_T))
    return torch.tensor([[of == stage for of in stages_T] for stage in stages], device=device)
