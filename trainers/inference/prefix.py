"""Computes the features behind a training's frozen stages, in actors of Ray.

N images, S size in pixels.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor, nn

from trainers.config import FinetuneConfig
from trainers.inference.compiled import is_compiled
from trainers.inference.features import pool
from trainers.inference.forward import ForwardPass
from trainers.networks.backbones import build, find
from trainers.networks.cut import before, build_prefix
from trainers.networks.weights.initialization import initialize
from trainers.step.settings import step_settings

logger = logging.getLogger(__name__)


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
        backbone = find(self.config.model.backbone)
        stage, _ = backbone.stages[depth - 1]
        facts: dict[str, Any] = {}
        if self.pooled and backbone.channels_last:  # once all were pooled by the last one's layout
            facts["layout"] = "of each stage"
        return facts | {
            "backbone": self.config.model.backbone,
            "stage": stage,
            "pooled": self.pooled,
            "weights_sha256": hash_tensors(self.tensors(depth)),
            "mean": settings.mean,
            "std": settings.std,
            "computed_in": str(settings.autocast_dtype or torch.float32)
            + (" by OpenVINO" if is_compiled(self.config, use_gpu=use_gpu) else ""),
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
        self.graph = build_prefix(network.model, network.config.model.backbone, depths)
        self._pooled = network.pooled
        backbone = find(network.config.model.backbone)
        stages = [backbone.stages[depth - 1][0] for depth in depths]
        self._channels_last = [stage in backbone.channels_last for stage in stages]

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.graph(images_BCHW)
        if not self._pooled:
            return outputs
        return tuple(
            pool(output, "avg", channels_last)
            for output, channels_last in zip(outputs, self._channels_last, strict=True)
        )


class PrefixActor:
    """Turns uint8 images_NSSC into float32 features on the device of its actor: those of some
    depths of each network, one network after the other."""

    def __init__(
        self,
        networks: "Sequence[tuple[ray.ObjectRef[FrozenNetwork], Sequence[int], bool]]",
        *,
        threads: int,
        use_gpu: bool,
    ) -> None:
        """`networks`: each with its depths, and whether it is compiled."""
        self._passes: list[ForwardPass] = []
        for network, depths, compiled in networks:
            loaded = ray.get(network)
            compute = ForwardPass(
                _Stages(loaded, depths),
                loaded.config,
                threads=threads,
                use_gpu=use_gpu,
                compiled=compiled,
            )
            if compiled and not compute.compiled:
                logger.warning(
                    "%s: torch computes features that are kept as OpenVINO's, as OpenVINO can't "
                    "compile the network here; they differ in the last digits",
                    loaded.config.model.backbone,
                )
            self._passes.append(compute)

    def __call__(self, images_NSSC: np.ndarray) -> list[np.ndarray]:
        images = torch.tensor(images_NSSC)
        return [output.numpy() for compute in self._passes for output in compute(images)]


def open_frozen(
    config: FinetuneConfig,
    num_classes: int,
    *,
    classes: Sequence[str] | None = None,
    pooled: bool = False,
) -> FrozenNetwork:
    """Load a training's initial network.

    Args:
        classes: as `initialize` takes them.

    Raises:
        UserError: where its weights can't be read.
    """
    model = build(config.model.backbone, num_classes, config.ingest.size_px)
    initialize(model, replace(config.model, freeze_depth=0), seed=config.seed, classes=classes)
    return FrozenNetwork(config=config, model=model.eval(), pooled=pooled)


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
