"""Activations that leave their place: the same values and gradients, where nothing else reads."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.config import ComputeConfig
from trainers.networks.activations import avoid_in_place
from trainers.networks.backbones import build
from trainers.step.state import place_model


def in_place(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if getattr(module, "inplace", False)]


def values_and_gradients(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    torch.manual_seed(0)  # dropout
    outputs = model(inputs)
    outputs.square().mean().backward()
    return [outputs.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        "resnet50",  # calls a ReLU three times in a block, the last one on a sum
        "densenet121",
        "mobilenetv3_small_050",  # timm's BatchNormAct2d
        "tf_mobilenetv3_small_minimal_100",  # whose convolutions look at the size of their input
    ],
)
def test_a_network_computes_the_same(name: str, one_thread: None) -> None:
    torch.manual_seed(0)
    model = build(name, 5).train()
    before = copy.deepcopy(model)

    avoid_in_place(model)

    assert in_place(before) and not in_place(model)
    for key, tensor in before.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
    images_BCHW = torch.rand(2, 3, 64, 64)
    right, ours = (values_and_gradients(each, images_BCHW) for each in (before, model))
    assert len(right) == len(ours) > 20
    assert all(map(torch.equal, right, ours))


class Reading(nn.Module):
    """A layer, an activation in place, and what the forward pass makes of them."""

    def __init__(self, forward: Callable[["Reading", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.act = nn.ReLU6(inplace=True)
        self._forward = forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self._forward(self, inputs)


def reads_twice(net: Reading, inputs: Tensor) -> Tensor:
    hidden = net.norm(net.conv(inputs))
    return net.act(hidden) + hidden


def reads_a_view(net: Reading, inputs: Tensor) -> Tensor:
    hidden = net.norm(net.conv(inputs))
    return net.act(hidden[:, :2]) + hidden[:, :2]


def adds_to_what_is_read_later(net: Reading, inputs: Tensor) -> Tensor:
    hidden = net.norm(net.conv(inputs))
    total = hidden
    total += 1.0
    return net.act(total) + hidden


def ignores_the_output(net: Reading, inputs: Tensor) -> Tensor:
    hidden = net.norm(net.conv(inputs))
    net.act(hidden)
    return hidden


def is_once_read_twice(net: Reading, inputs: Tensor) -> Tensor:
    return net.act(net.norm(net.conv(inputs))) + reads_twice(net, inputs)


def looks_at_its_inputs(net: Reading, inputs: Tensor) -> Tensor:
    return net.act(net.conv(inputs if inputs.sum() > 0 else -inputs))


@pytest.mark.parametrize(
    "forward",
    [
        reads_twice,
        reads_a_view,
        adds_to_what_is_read_later,
        ignores_the_output,
        is_once_read_twice,
        looks_at_its_inputs,
        lambda net, inputs: net.norm(net.conv(net.act(inputs))),
    ],
)
def test_an_activation_whose_input_others_read_stays_in_place(
    forward: Callable[[Reading, Tensor], Tensor],
) -> None:
    net = Reading(forward)
    right = net(torch.ones(2, 3, 4, 4))

    avoid_in_place(net)

    assert in_place(net) == ["act"]
    assert torch.equal(net(torch.ones(2, 3, 4, 4)), right)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, inputs: net.act(net.norm(net.conv(inputs))),
        lambda net, inputs: net.act(F.batch_norm(net.conv(inputs), None, None, training=True)),
        lambda net, inputs: net.act(net.norm(net.conv(inputs)) + inputs[:, :1]),
    ],
)
def test_an_activation_that_reads_alone_leaves_its_place(
    forward: Callable[[Reading, Tensor], Tensor],
) -> None:
    net = Reading(forward)
    avoid_in_place(net)
    assert in_place(net) == []


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_only_models_in_bfloat16_do(precision: str) -> None:
    model = build("mobilenet_v2", 5)
    place_model(model, ComputeConfig(precision=precision), torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    assert bool(in_place(model)) == (precision == "fp32")
