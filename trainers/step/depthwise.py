"""Gradients of depthwise convolutions in bfloat16 on CPUs, for which oneDNN has no fast kernels.

Milliseconds of a depthwise convolution of 32 x 144 x 56 x 56 on two cores of a Xeon with
avx512_bf16 and AMX (torch 2.14):

| kernel, stride | gradient of | bfloat16 | here |
|---|---|---|---|
| 3, 1 | inputs | 6 | 3, as a convolution with the kernel turned around |
| 3, 2 | inputs | 64 | 8, in float32 |
| 5, 1 | weights | 321 | 65, in float32 |
| 7, 1 | weights | 315 | 101, in float32 |

B images, C channels, H x W pixels, a kernel of k x l, M x N outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

MAX_FAST_KERNEL = 3
"""Up to this size, the gradient of the weights is fast in bfloat16."""


class Geometry(NamedTuple):
    """Of a convolution, in pixels down and across."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]


class DepthwiseConv(torch.autograd.Function):
    """A depthwise convolution whose gradients take the fastest way."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs_BCHW: Tensor,
        weights_C1kl: Tensor,
        bias_C: Tensor | None,
        geometry: Geometry,
    ) -> Tensor:
        ctx.save_for_backward(inputs_BCHW, weights_C1kl)
        ctx.geometry = geometry
        return F.conv2d(inputs_BCHW, weights_C1kl, bias_C, *geometry, groups=len(weights_C1kl))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCMN: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] torch has *grads
        inputs, weights = ctx.saved_tensors
        of_inputs, of_weights, of_bias, _ = ctx.needs_input_grad
        return (
            _grad_of_inputs(grad_BCMN, inputs, weights, ctx.geometry) if of_inputs else None,
            _grad_of_weights(grad_BCMN, inputs, weights, ctx.geometry) if of_weights else None,
            grad_BCMN.sum((0, 2, 3)) if of_bias else None,
            None,
        )


class FastGradients(TorchFunctionMode):
    """Within it, depthwise convolutions of autocast have fast gradients."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        convolve = _conv2d if func is F.conv2d and not torch.compiler.is_compiling() else func
        return convolve(*args, **(kwargs or {}))


@contextmanager
def fast_gradients(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Compute depthwise convolutions with fast gradients, where autocast to `dtype` has slow ones.

    Enter it around the forward pass.
    """
    if device.type == "cpu" and dtype is torch.bfloat16 and torch.is_grad_enabled():
        with FastGradients():
            yield
    else:
        yield


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv2d`, with its names of arguments."""
    is_depthwise = 1 < groups == len(weight) == input.shape[-3] and input.ndim == 4
    if not is_depthwise or isinstance(padding, str):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    tensors = [each if each is None else each.bfloat16() for each in (input, weight, bias)]
    geometry = Geometry(*map(_pair, (stride, padding, dilation)))
    with torch.autocast("cpu", enabled=False):
        return DepthwiseConv.apply(*tensors, geometry)  # pyright: ignore[reportReturnType] torch leaves it untyped


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _grad_of_inputs(
    grad_BCMN: Tensor, inputs_BCHW: Tensor, weights_C1kl: Tensor, geometry: Geometry
) -> Tensor:
    stride, padding, dilation = geometry
    channels, _, *kernel = weights_C1kl.shape
    turned = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    if stride == [1, 1] and min(turned) >= 0:
        return F.conv2d(grad_BCMN, weights_C1kl.flip(2, 3), None, 1, turned, dilation, channels)
    like_inputs = torch.empty_like(inputs_BCHW, dtype=torch.float32)  # only its shape is read
    grad, _ = _backward(
        grad_BCMN.float(), like_inputs, weights_C1kl.float(), geometry, [True, False]
    )
    return grad.to(inputs_BCHW.dtype)


def _grad_of_weights(
    grad_BCMN: Tensor, inputs_BCHW: Tensor, weights_C1kl: Tensor, geometry: Geometry
) -> Tensor:
    is_fast = max(weights_C1kl.shape[2:]) <= MAX_FAST_KERNEL
    dtype = weights_C1kl.dtype if is_fast else torch.float32
    grad, inputs, weights = (each.to(dtype) for each in (grad_BCMN, inputs_BCHW, weights_C1kl))
    _, of_weights = _backward(grad, inputs, weights, geometry, [False, True])
    return of_weights.to(weights_C1kl.dtype)


def _backward(
    grad_BCMN: Tensor,
    inputs_BCHW: Tensor,
    weights_C1kl: Tensor,
    geometry: Geometry,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the inputs and of the weights, those that are wanted."""
    stride, padding, dilation = geometry
    of_inputs, of_weights, _ = torch.ops.aten.convolution_backward(
        *(grad_BCMN, inputs_BCHW, weights_C1kl, None, stride, padding, dilation),
        *(False, [0, 0], len(weights_C1kl), [*wanted, False]),
    )
    return of_inputs, of_weights
