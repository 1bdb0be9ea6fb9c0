"""The settings of a step, which are the same in every step of a run."""

from dataclasses import replace

import torch
from torch import nn

from cluster.memory_allocator import keep_memory
from datasets.manifest import Manifest
from trainers.config import NORMALIZATIONS, FinetuneConfig
from trainers.networks.backbones import find
from trainers.step.mixing import build_mix
from trainers.step.state import autocast_dtype, place_model
from trainers.step.step import StepSettings
from trainers.worker import WorkerContext


def step_settings(config: FinetuneConfig, device: torch.device) -> StepSettings:
    """Return the settings of evaluation."""
    of_model = config.model.normalization
    if of_model == "auto":
        of_model = find(config.model.backbone).normalization
    mean, std = NORMALIZATIONS[of_model] if isinstance(of_model, str) else of_model
    return StepSettings(
        mean=mean,
        std=std,
        optim=config.optim,
        autocast_dtype=autocast_dtype(config.compute, device),
        channels_last=config.compute.channels_last,
    )


def train_settings(
    config: FinetuneConfig, manifest: Manifest, worker: WorkerContext
) -> StepSettings:
    """Return the settings of training."""
    weights_K = None
    if config.loss.class_weights == "balanced":
        counts_K = torch.tensor(manifest.split(config.train_on).class_counts, device=worker.device)
        weights_K = counts_K.sum() / (len(counts_K) * counts_K.clamp(min=1))
    return replace(
        step_settings(config, worker.device),
        images_per_rank=config.global_batch_size / worker.world_size,
        label_smoothing=config.loss.label_smoothing,
        class_weights_K=weights_K,
        mix=build_mix(config.loss, len(manifest.classes)),
        accumulation_steps=config.compute.accumulation_steps,
    )


def start_computing(threads: int) -> None:
    """Prepare this process to compute on CPUs."""
    keep_memory()
    torch.set_num_threads(threads)


def prepare_inference(
    model: nn.Module, config: FinetuneConfig, *, threads: int, use_gpu: bool
) -> tuple[torch.device, StepSettings]:
    """Move a network to the device of this process; return the device and the settings."""
    start_computing(threads)
    device = torch.device("cuda" if use_gpu else "cpu")
    place_model(model, config.compute, device)
    return device, step_settings(config, device)
