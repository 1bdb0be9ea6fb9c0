"""Updates of heads by their optimizers.

A step of torch's Adam looks up each tensor and its state, which takes as long as its kernel for a
head of 1,280 x 196 on a CPU. Here it does so in its first step alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import (
    Tensor,
    _fused_adam_,  # pyright: ignore[reportPrivateImportUsage] the kernels that `Adam.step` and
    _fused_adamw_,  # pyright: ignore[reportPrivateImportUsage] `AdamW.step` call on CPUs
)
from torch.optim import Adam, Optimizer

from trainers.networks.torch_internals import without_compiler
from trainers.step.optim import KerasAdam, set_learning_rate


class Group(NamedTuple):
    """The tensors of a parameter group."""

    options: dict[str, Any]
    numbers: list[int]
    """Of its parameters, in the optimizer."""
    tensors: tuple[list[Tensor], list[Tensor], list[Tensor]]
    """Parameters and Adam's two moments."""
    steps: list[Tensor]


class HeadUpdates:
    """Updates the parameters of one optimizer, which has its parameters in one order for good."""

    def __init__(self, optimizer: Optimizer, parameters: list[torch.nn.Parameter]) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._is_fused = isinstance(optimizer, Adam) and all(  # AdamW is an Adam
            group["fused"] and not group["amsgrad"] for group in optimizer.param_groups
        )
        self._groups: list[Group] = []

    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """Do what `optimizer.step` does.

        Args:
            gradients: of the parameters.
        """
        set_learning_rate(self._optimizer, learning_rate)
        if self._groups:
            self._step_fused(gradients)
            return
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        with without_compiler():
            self._optimizer.step()
        if self._is_fused:
            self._groups = [self._find(group) for group in self._optimizer.param_groups]
            self._optimizer.zero_grad()  # frees them

    def _find(self, options: dict[str, Any]) -> Group:
        states = [self._optimizer.state[parameter] for parameter in options["params"]]
        numbers = {id(parameter): number for number, parameter in enumerate(self._parameters)}
        return Group(
            options=options,
            numbers=[numbers[id(parameter)] for parameter in options["params"]],
            tensors=(
                [parameter.detach() for parameter in options["params"]],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
            ),
            steps=[state["step"] for state in states],
        )

    def _step_fused(self, gradients: Sequence[Tensor]) -> None:
        if isinstance(self._optimizer, KerasAdam):
            self._optimizer.count_step()
        for options, numbers, (parameters, averages, squares), steps in self._groups:
            for step in steps:
                step += 1
            kernel = _fused_adamw_ if options["decoupled_weight_decay"] else _fused_adam_
            kernel(
                parameters,
                [gradients[number] for number in numbers],
                averages,
                squares,
                [],
                steps,
                lr=options["lr"],
                beta1=options["betas"][0],
                beta2=options["betas"][1],
                weight_decay=options["weight_decay"],
                eps=options["eps"],
                amsgrad=False,
                maximize=options["maximize"],
            )
