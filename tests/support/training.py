"""Train a config as a script does, prepared, then fitted; or a network for two steps."""

from typing import Any

import torch
from torch import Tensor, nn

from trainers import launch
from trainers.config import NORMALIZATIONS, FinetuneConfig, OptimConfig
from trainers.networks.freezing import freeze, train_mode
from trainers.prepare import prepare_run
from trainers.step.optim import build_optimizer
from trainers.step.step import StepSettings, train_step


def train_here(config: FinetuneConfig, *, report: Any = None, **options: Any) -> Any:
    """Train in this process and return result.json; `options` are those of `prepare_run`."""
    return launch.fit_in_process(prepare_run(config, here=True, **options), report=report)


def train_in_workers(config: FinetuneConfig) -> Any:
    """Train in DDP workers and return result.json."""
    return launch.fit(prepare_run(config))


def train_two_steps(model: nn.Module, backbone: str, depth: int, images_BHWC: Tensor) -> set[str]:
    """Freeze `depth` stages and train on four images; return the names of tensors that changed."""
    mean, std = NORMALIZATIONS["half"]
    freeze(model, backbone, depth)
    train_mode(model, backbone, depth)
    optim = OptimConfig(optimizer="sgd", learning_rate=0.1)
    settings = StepSettings(mean=mean, std=std, optim=optim)
    optimizer = build_optimizer(model, backbone, optim)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):
        train_step(model, optimizer, images_BHWC, torch.tensor([0, 0, 1, 2]), settings=settings)
    after = model.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
