"""Gradients of depthwise convolutions in bfloat16 on CPUs: those of float32, to its precision."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.config import OptimConfig
from trainers.step.depthwise import fast_gradients
from trainers.step.step import StepSettings, predict, train_step

CPU = torch.device("cpu")


@contextmanager
def mixed_precision(*, fast: bool) -> Iterator[None]:
    with (
        torch.autocast("cpu", torch.bfloat16),
        fast_gradients(CPU, torch.bfloat16) if fast else nullcontext(),
    ):
        yield


def gradients(conv: nn.Conv2d, inputs: Tensor, *, fast: bool | None) -> list[Tensor]:
    """Return output and gradients of inputs, weights and bias; `fast` is None for float64."""
    inputs = inputs.clone().requires_grad_()
    conv.zero_grad()
    if fast is None:
        conv, inputs = conv.double(), inputs.detach().double().requires_grad_()
    with nullcontext() if fast is None else mixed_precision(fast=fast):
        outputs = conv(inputs)
    weights = torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)
    (outputs.to(weights.dtype) * weights).sum().backward()
    assert fast is not True or "DepthwiseConv" in str(outputs.grad_fn)
    grads = [tensor.grad for tensor in (inputs, *conv.parameters())]
    return [outputs.detach(), *(grad.clone() for grad in grads if grad is not None)]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 5, "padding": 2},
        {"kernel_size": 5, "padding": 2, "stride": 2, "bias": True},
        {"kernel_size": 7, "padding": 3, "bias": True},
        {"kernel_size": (3, 5), "padding": (1, 2), "stride": (2, 1)},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 0},
        {"kernel_size": 1, "padding": 3},  # wider than the kernel: not turned around
    ],
)
def test_gradients_are_those_of_float32_to_the_precision_of_bfloat16(
    options: dict[str, object], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, groups=16, **{"bias": False, **options}).to(memory_format=layout)  # pyright: ignore
    inputs = torch.randn(4, 16, 14, 13).to(memory_format=layout)

    fast = gradients(conv, inputs, fast=True)
    slow = gradients(conv, inputs, fast=False)
    exact = gradients(conv, inputs, fast=None)

    assert len(fast) == len(slow) == (4 if conv.bias is not None else 3)
    for ours, torchs, right in zip(fast, slow, exact, strict=True):
        assert ours.dtype == torchs.dtype and ours.shape == torchs.shape
        error, usual = ((each.double() - right).norm() / right.norm() for each in (ours, torchs))
        assert error < max(2 * usual, 0.005)


def is_fast(conv: nn.Module, inputs: Tensor) -> bool:
    with mixed_precision(fast=True):
        return "DepthwiseConv" in str(conv(inputs).grad_fn)


def test_other_convolutions_are_torch_s() -> None:
    inputs = torch.randn(2, 8, 9, 9)

    assert is_fast(nn.Conv2d(8, 8, 3, groups=8), inputs)
    assert not is_fast(nn.Conv2d(8, 8, 3), inputs)
    assert not is_fast(nn.Conv2d(8, 16, 3, groups=8), inputs), "two kernels a channel"
    assert not is_fast(nn.Conv2d(8, 8, 3, groups=4), inputs)
    assert not is_fast(nn.Conv2d(8, 8, 3, groups=8, padding="same"), inputs)
    assert not is_fast(nn.Conv2d(1, 1, 3), torch.randn(2, 1, 9, 9))
    assert not is_fast(nn.Conv2d(8, 8, 3, groups=8), inputs[0]), "one image without a batch"
    assert not is_fast(nn.Conv1d(8, 8, 3, groups=8), inputs[:, :, 0])


class Network(nn.Module):
    """Pixels, a depthwise convolution, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 5, groups=3)
        self.seen: list[str] = []

    def forward(self, images_BCHW: Tensor) -> Tensor:
        outputs = self.conv(images_BCHW)
        self.seen.append(str(outputs.grad_fn))
        return F.relu(outputs).mean((2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_steps_in_bfloat16_have_fast_gradients(dtype: torch.dtype | None) -> None:
    network = Network()
    optimizer = torch.optim.SGD([{"params": list(network.parameters()), "stage": 0}], lr=0.1)
    settings = StepSettings(
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), optim=OptimConfig(), autocast_dtype=dtype
    )
    images_BHWC = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)

    train_step(network, optimizer, images_BHWC, torch.arange(3), settings=settings)
    with torch.no_grad():
        predict(network.eval(), images_BHWC, settings)

    assert ["DepthwiseConv" in seen for seen in network.seen] == [dtype is not None, False]
