"""Optimizers, learning rate and gradient clipping, with Keras' exact meaning where it has one.

T counts the parameter tensors that have a gradient.
"""

from collections.abc import Iterable
from math import cos, pi, sqrt
from typing import Any

import torch
from torch import (
    Tensor,
    _foreach_mul_,  # pyright: ignore[reportPrivateImportUsage] torch's own clip_grad_norm_ uses
    _foreach_norm,  # pyright: ignore[reportPrivateImportUsage] them: a kernel for all tensors
    nn,
)
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainers.config import OptimConfig, ScheduleConfig
from trainers.metrics import CLIPPED_SHARE, GRAD_NORM

KERAS_EPSILON = 1e-7


class KerasAdam(Adam):
    """Adam as Keras writes it: p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + epsilon).

    torch adds its epsilon after the bias correction of v, so Keras' epsilon is torch's times
    sqrt(1 - b2^t). Source: keras/optimizers/optimizer_v2/adam.py, `epsilon hat` in Kingma & Ba.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(params, lr=lr, eps=KERAS_EPSILON, foreach=True)
        for group in self.param_groups:
            group["iterations"] = 0  # in the group, so that it travels in the state dict

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["iterations"] += 1
            beta2 = group["betas"][1]
            group["eps"] = KERAS_EPSILON / sqrt(1 - beta2 ** group["iterations"])
        return super().step(closure)


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Build the optimizer of the parameters that require gradients."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},  # biases, norms
    ]
    if config.optimizer == "adam":
        return KerasAdam(groups, lr=config.learning_rate)
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.learning_rate, foreach=True)
    return SGD(groups, lr=config.learning_rate, momentum=config.momentum, foreach=True)


def learning_rate_at(
    step: int,
    config: OptimConfig,
    schedule: ScheduleConfig,
    steps_per_epoch: int,
    num_epochs: int,
) -> float:
    """Return the learning rate of a step; steps count from 0, as Keras' iterations do.

    Warm-up rises by equal parts to the peak, which its last step has; cosine falls from there and
    would reach zero one step after the run's last. Keras' decay then divides by 1 + decay * step.
    """
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    total_steps = num_epochs * steps_per_epoch
    rate = config.learning_rate / (1 + config.decay * step)
    if step + 1 < warmup_steps:
        return rate * (step + 1) / warmup_steps
    if schedule.schedule == "cosine":
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        return rate * (1 + cos(pi * min(max(progress, 0.0), 1.0))) / 2
    return rate


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(parameters: Iterable[nn.Parameter], config: OptimConfig) -> dict[str, Tensor]:
    """Clip gradients in place and say how much, without waiting for the device.

    `clipnorm` clips each tensor's gradient to that norm, `global_clipnorm` the norm of all
    together: g * c / max(norm, c).

    Returns:
        0-dim tensors: the global norm before clipping, and the share of tensors clipped
        (globally: 0 or 1).
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms_T = torch.stack(_foreach_norm(gradients))
    global_norm = torch.linalg.vector_norm(norms_T)
    clipped_share = torch.zeros_like(global_norm)
    if config.clipnorm is not None:
        scales_T = config.clipnorm / norms_T.clamp(min=config.clipnorm)
        _foreach_mul_(gradients, scales_T.unbind())
        clipped_share = (norms_T > config.clipnorm).to(norms_T.dtype).mean()
    elif config.global_clipnorm is not None:
        scale = config.global_clipnorm / global_norm.clamp(min=config.global_clipnorm)
        _foreach_mul_(gradients, scale)
        clipped_share = (global_norm > config.global_clipnorm).to(norms_T.dtype)
    return {GRAD_NORM: global_norm, CLIPPED_SHARE: clipped_share}
