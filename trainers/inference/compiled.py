"""Networks compiled by OpenVINO, which infers on CPUs more than twice as fast as torch.

B images of a batch, S size in pixels, C channels.
"""

import sys
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functionalize  # pyright: ignore

from trainers.config import FinetuneConfig
from trainers.networks.measure import count_backbone_flops
from trainers.step.step import StepSettings, to_inputs

# Hidden: `import openvino` would tell Intel of each import by it.
sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))

LEAST_FLOPS = 1e12
"""With fewer, torch has computed all images before OpenVINO has compiled the network, in 2 s."""
MANY_IMAGES = 3000
"""Assumed where features are kept: later passes over more images must compute them alike."""


def is_compiled(config: FinetuneConfig, num_images: int = MANY_IMAGES, *, use_gpu: bool) -> bool:
    """Return whether the network of a training is compiled to infer so many images."""
    if use_gpu:
        return False
    flops = count_backbone_flops(config.model.backbone, config.ingest.size_px)
    return num_images * flops >= LEAST_FLOPS


class CompiledNetwork:
    """A network in eval mode, compiled for batches of one size; smaller ones are padded to it."""

    def __init__(
        self, network: nn.Module, settings: StepSettings, shape_BSSC: tuple[int, int, int, int]
    ) -> None:
        """Compile for as many threads as torch has.

        Raises:
            Exception: any, where torch can't trace the network or OpenVINO lacks an operation.
        """
        self._batch_size = shape_BSSC[0]
        model = _convert(network, settings, torch.zeros(shape_BSSC, dtype=torch.uint8))
        is_half = settings.autocast_dtype is torch.bfloat16
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if is_half else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # the actors of a machine would share its first CPUs
        }
        self._compiled = _open_core().compile_model(model, "CPU", options)

    def __call__(self, images_BSSC: Tensor) -> tuple[Tensor, ...]:
        """Return the float32 outputs for uint8 images."""
        padding = (0, 0, 0, 0, 0, 0, 0, self._batch_size - len(images_BSSC))
        padded_BSSC = F.pad(images_BSSC, padding).contiguous().numpy()
        outputs: Sequence[np.ndarray] = self._compiled([padded_BSSC], share_inputs=True).to_tuple()
        return tuple(torch.from_numpy(output)[: len(images_BSSC)] for output in outputs)


@cache
def _open_core() -> Any:
    """Return OpenVINO's plugins, one set for the life of the process.

    Each set gives its thread a stack for signal handlers. Two that end in the order in which they
    began leave the thread one that is freed: the next Ctrl-C would be a segmentation fault.
    """
    from openvino import Core

    return Core()


def _convert(network: nn.Module, settings: StepSettings, images_BSSC: Tensor) -> Any:
    """Return OpenVINO's model of a network and of the normalization of its images.

    Some networks, such as LeViT, keep tensors between passes. Those of the trace are no numbers:
    modules are copied, and share their tensors with the network's.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
    from torch.fx.experimental.proxy_tensor import make_fx  # imports torch's compiler: a second

    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied = deepcopy(network, shared)

    def compute(images_BSSC: Tensor) -> Any:
        return copied(to_inputs(images_BSSC, settings))

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        to_inputs(images_BSSC, settings)  # makes the constants of normalization, which are kept
        trace = make_fx(functionalize(compute), tracing_mode="fake", _allow_non_fake_inputs=True)
        graph = trace(images_BSSC)
    decoder = TorchFXPythonDecoder(
        graph, input_shapes=[images_BSSC.shape], input_types=[images_BSSC.dtype]
    )
    frontend = FrontEndManager().load_by_framework("pytorch")
    return frontend.convert(frontend.load(decoder))
