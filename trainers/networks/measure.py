"""Parameters, bytes, depth and inference time of a network, whatever its weights.

B images, H x W pixels, C channels.
"""

import time
from functools import cache
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from trainers.networks.backbones import on_meta
from trainers.networks.torch_internals import without_compiler

WEIGHTED = (F.conv1d, F.conv2d, F.conv3d, F.linear)
NUM_WARMUPS, MIN_STEPS, MIN_S = 2, 5, 1.0
"""Steps before the timed ones; minimum of timed steps, and of seconds timed."""


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_statistics(model: nn.Module) -> int:
    """Count the means and variances of BatchNorm, which Keras counts as parameters."""
    norms = (module for module in model.modules() if isinstance(module, BatchNorm))
    return sum(
        b.numel() for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None
    )


def count_bytes(model: nn.Module) -> int:
    """Count the bytes of the state dict."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


@cache
def count_backbone_bytes(name: str) -> int:
    """Count the bytes of `count_bytes` with a head of two classes."""
    return count_bytes(on_meta(name, 2))


class _Depth(TorchFunctionMode):
    """Sets `depth` of each tensor: weighted layers on the longest path to it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        depth = max((getattr(tensor, "depth", 0) for tensor in given), default=0)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                tensor.depth = depth + (func in WEIGHTED)  # pyright: ignore[reportAttributeAccessIssue]
        return result


def measure_depth(model: nn.Module, size_px: int) -> int:
    """Count the convolutions and dense layers on the longest path from the image to the logits.

    It is the number in the name: 50 for ResNet50, 16 for VGG16, 121 for DenseNet121.

    Args:
        model: in eval mode, on the meta device.
    """
    with without_compiler(), torch.inference_mode(), _Depth():
        logits_BK = model(torch.zeros(1, 3, size_px, size_px, device="meta"))
    return logits_BK.depth


def count_flops(model: nn.Module, size_px: int) -> float:
    """Count the FLOPs (multiply-adds x 2) of an image's inference step.

    Args:
        model: in eval mode, on the meta device.
    """
    return run_counted(model, size_px)[0]


def run_counted(model: nn.Module, size_px: int) -> tuple[float, Any]:
    """Return the FLOPs of `count_flops`, and the output."""
    with without_compiler(), FlopCounterMode(display=False) as counter, torch.no_grad():
        output = model(torch.zeros(1, 3, size_px, size_px, device="meta"))
    return float(counter.get_total_flops()), output


@cache
def count_backbone_flops(name: str, size_px: int) -> float:
    """Count the FLOPs of `count_flops` with a head of two classes."""
    return count_flops(on_meta(name, 2, size_px), size_px)


def describe_devices() -> str:
    """Return the names of the devices of `time_step`."""
    devices = [f"{torch.get_num_threads()} CPU threads"]
    if torch.cuda.is_available():
        devices.append(torch.cuda.get_device_name())
    return " and ".join(devices)


def time_step(
    name: str, num_classes: int, shape_BCHW: tuple[int, int, int, int]
) -> dict[str, float]:
    """Return the median milliseconds of a float32 inference step by device: cpu, and cuda if any.

    All weights are zero: dense kernels take as long as with others, without slow denormal numbers.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    times_ms = {}
    for device in devices:
        model = on_meta(name, num_classes).to_empty(device=device)
        for tensor in (*model.parameters(), *model.buffers()):  # also those of no state dict
            tensor.detach().zero_()
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        images_BCHW = torch.rand(shape_BCHW, device=device).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            for _ in range(NUM_WARMUPS):
                _time_once(model, images_BCHW)
            steps_ms: list[float] = []
            while len(steps_ms) < MIN_STEPS or sum(steps_ms) < 1000 * MIN_S:
                steps_ms.append(_time_once(model, images_BCHW))
        times_ms[device] = round(median(steps_ms), 2)
    return times_ms


def _time_once(model: nn.Module, images_BCHW: Tensor) -> float:
    start = time.perf_counter()
    model(images_BCHW)
    if images_BCHW.is_cuda:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)
