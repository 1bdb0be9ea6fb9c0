"""Computes the features behind a training's frozen stages, in actors of Ray.

N images, S size in pixels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor, nn

from trainers.config import FinetuneConfig
from trainers.inference.actors import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from trainers.inference.features import pool
from trainers.networks.backbones import build, find
from trainers.networks.cut import before, build_prefix
from trainers.networks.folding import fold_batchnorm
from trainers.networks.weights.initialization import initialize
from trainers.step.settings import prepare_inference, step_settings
from trainers.step.step import StepSettings, to_inputs


@dataclass(frozen=True, kw_only=True)
class FrozenNetwork:
    """A training's initial network, in eval mode on the CPU."""

    config: FinetuneConfig
    model: nn.Module
    pooled: bool = False
    """Average the maps of each stage: features for linear probes, not for training on."""

    def tensors(self, depth: int) -> dict[str, Tensor]:
        """Return the tensors of the first `depth` stages."""
        return before(self.model.state_dict(), self.config.model.backbone, depth)

    def describe(self, depth: int, *, use_gpu: bool) -> dict[str, Any]:
        """Return all that the features behind a depth depend on, JSON-safe."""
        settings = step_settings(self.config, torch.device("cuda" if use_gpu else "cpu"))
        stage, _ = find(self.config.model.backbone).stages[depth - 1]
        return {
            "backbone": self.config.model.backbone,
            "stage": stage,
            "pooled": self.pooled,
            "weights_sha256": hash_tensors(self.tensors(depth)),
            "mean": settings.mean,
            "std": settings.std,
            "computed_in": str(settings.autocast_dtype or torch.float32),
            "size_px": self.config.ingest.size_px,
        }

    def shapes(self, depths: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the shape of an image's features behind each depth.

        Raises:
            UserError: where the network can't be cut there.
        """
        size_px = self.config.ingest.size_px
        compute = _Stages(self, depths)
        with torch.inference_mode():
            outputs = compute(torch.zeros(1, 3, size_px, size_px))
        return [tuple(output.shape[1:]) for output in outputs]


class _Stages(nn.Module):
    """images_BCHW -> the features behind each of some depths."""

    def __init__(self, network: FrozenNetwork, depths: Sequence[int]) -> None:
        super().__init__()
        graph = build_prefix(network.model, network.config.model.backbone, depths)
        self.graph = fold_batchnorm(graph)
        self._pooled = network.pooled
        self._channels_last = find(network.config.model.backbone).channels_last

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.graph(images_BCHW)
        if not self._pooled:
            return outputs
        return tuple(pool(output, "avg", self._channels_last) for output in outputs)


class PrefixActor:
    """Turns uint8 images_NSSC into float32 features on the device of its actor: those of some
    depths of each network, one network after the other."""

    def __init__(
        self,
        networks: "Sequence[tuple[ray.ObjectRef[FrozenNetwork], Sequence[int]]]",
        *,
        threads: int,
        use_gpu: bool,
    ) -> None:
        self._networks: list[tuple[_Stages, torch.device, StepSettings]] = []
        for network, depths in networks:
            loaded = ray.get(network)
            stages = _Stages(loaded, depths)
            device, settings = prepare_inference(
                stages, loaded.config, threads=threads, use_gpu=use_gpu
            )
            self._networks.append((stages, device, settings))
        self._batch_size = GPU_BATCH_SIZE if use_gpu else CPU_BATCH_SIZE

    @torch.inference_mode()
    def __call__(self, images_NSSC: np.ndarray) -> list[np.ndarray]:
        return [
            output
            for network in self._networks
            for output in self._compute(*network, images_NSSC=images_NSSC)
        ]

    def _compute(
        self,
        stages: _Stages,
        device: torch.device,
        settings: StepSettings,
        *,
        images_NSSC: np.ndarray,
    ) -> list[np.ndarray]:
        dtype = settings.autocast_dtype
        batches: list[list[Tensor]] = []
        for start in range(0, len(images_NSSC), self._batch_size):
            images_BHWC = torch.tensor(images_NSSC[start : start + self._batch_size])
            inputs = to_inputs(images_BHWC.to(device), settings)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                outputs: tuple[Tensor, ...] = stages(inputs)
            batches.append([output.float().cpu() for output in outputs])
        return [torch.cat(of_depth).numpy() for of_depth in zip(*batches, strict=True)]


def open_frozen(config: FinetuneConfig, num_classes: int, *, pooled: bool = False) -> FrozenNetwork:
    """Load a training's initial network.

    Raises:
        UserError: where its weights can't be read.
    """
    model = build(config.model.backbone, num_classes, config.ingest.size_px)
    initialize(model, replace(config.model, freeze_depth=0), seed=config.seed)
    return FrozenNetwork(config=config, model=model.eval(), pooled=pooled)


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
