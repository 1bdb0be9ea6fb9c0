"""Heat maps lie where the class is, whatever is frozen; the sheet shows what teaches most."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.config import OptimConfig
from trainers.evaluation.config import ExplainConfig
from trainers.evaluation.explain import grad_cam, order
from trainers.networks.backbones import build, find
from trainers.step.step import StepSettings

SETTINGS = StepSettings(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), optim=OptimConfig())
RED, BLUE = 0, 1


def colour_detector(*after: nn.Module) -> nn.Module:
    """A network whose class 0 is the amount of red and class 1 that of blue."""
    convolution, head = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, 0] = convolution.weight[1, 2] = 1
        head.weight.copy_(torch.eye(2))
    layers = (convolution, nn.MaxPool2d(4), *after, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return nn.Sequential(*layers).eval()


def two_corners() -> Tensor:
    """Two images, dark, with a red patch at the top left and a blue one at the bottom right."""
    images_BHWC = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    images_BHWC[:, :8, :8, 0] = 255
    images_BHWC[:, -8:, -8:, 2] = 255
    return images_BHWC


@pytest.mark.parametrize("after", [(), (nn.ReLU(inplace=True),)], ids=["plain", "in place"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_map_of_a_class_peaks_in_the_corner_that_determines_it(
    frozen: bool, after: tuple[nn.Module, ...]
) -> None:
    model = colour_detector(*after).requires_grad_(not frozen)
    both = torch.tensor([[RED, BLUE], [BLUE, RED]])

    probabilities_BK, heats_BJHW = grad_cam(model, two_corners(), both, SETTINGS)

    assert heats_BJHW.shape == (2, 2, 32, 32)
    assert probabilities_BK.tolist() == [[pytest.approx(0.5)] * 2] * 2  # as much red as blue
    for heat_HW in (heats_BJHW[0, 0], heats_BJHW[1, 1]):
        assert heat_HW.max() == heat_HW[2, 2] == 1 and heat_HW[12:].max() == 0
    for heat_HW in (heats_BJHW[0, 1], heats_BJHW[1, 0]):
        assert heat_HW.max() == heat_HW[-3, -3] == 1 and heat_HW[:20].max() == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_maps_whose_channels_are_last_have_the_same_heat() -> None:
    """As in MambaOut, which pools within its last stage."""

    class ToChannelsLast(nn.Module):
        def forward(self, maps_BCHW: Tensor) -> Tensor:
            return maps_BCHW.permute(0, 2, 3, 1)

    class Average(nn.Module):
        def forward(self, maps_BHWC: Tensor) -> Tensor:
            return maps_BHWC.mean((1, 2))

    model, both = colour_detector(), torch.tensor([[RED, BLUE], [BLUE, RED]])
    convolution, max_pool, *_, head = model.children()
    other = nn.Sequential(convolution, max_pool, ToChannelsLast(), Average(), head)

    _, known_BJHW = grad_cam(model, two_corners(), both, SETTINGS)
    _, found_BJHW = grad_cam(other, two_corners(), both, SETTINGS)

    torch.testing.assert_close(found_BJHW, known_BJHW)


def test_a_class_that_speaks_nowhere_has_an_empty_map() -> None:
    model = colour_detector()
    only_red = two_corners()
    only_red[..., 2] = 0

    _, heats_BJHW = grad_cam(model, only_red, torch.tensor([[BLUE], [BLUE]]), SETTINGS)

    assert heats_BJHW.abs().max() == 0


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_real_backbones_are_explained(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, 4).eval().requires_grad_(False)
    images_BHWC = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)

    probabilities_BK, heats_BJHW = grad_cam(
        model, images_BHWC, torch.tensor([[0, 1], [2, 3]]), SETTINGS
    )

    assert probabilities_BK.sum(1).tolist() == pytest.approx([1, 1])
    assert heats_BJHW.shape == (2, 2, 96, 96)
    assert heats_BJHW.min() >= 0 and heats_BJHW.amax((2, 3)).max() == 1
    assert heats_BJHW.isfinite().all()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_places_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)).eval()

    with pytest.raises(ValueError, match="without convolutional layers"):
        grad_cam(model, two_corners(), torch.tensor([[0], [1]]), SETTINGS)


def row(number: int, label: str, predicted: str, confidence: float) -> dict[str, Any]:
    return {"row": number, "label": label, "predicted": predicted, "confidence": confidence}


ROWS = [
    row(0, "a", "b", 0.9),
    row(1, "a", "b", 0.8),
    row(2, "b", "a", 0.7),
    row(3, "a", "a", 0.6),
    row(4, "b", "b", 0.95),
    row(5, "a", "a", 0.99),
]


def test_every_pair_has_its_turn_before_a_pair_comes_again() -> None:
    assert [found["row"] for found in order(ROWS, "mistakes", 0)] == [0, 2, 1]
    assert [found["row"] for found in order(ROWS, "confident", 0)] == [5, 4, 3]


def test_a_random_choice_follows_its_seed() -> None:
    drawn = [[found["row"] for found in order(ROWS, "random", seed)] for seed in (0, 0, 1)]

    assert sorted(drawn[0]) == [0, 1, 2, 3, 4, 5]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_sheet_of_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="num_images is 0: use 1 to 60"):
        ExplainConfig(run="runs/head", num_images=0)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_tokens_have_a_map_as_well(name: str) -> None:
    """Patches of the last block have no part in the logits of a class token."""
    model = build(name, 2, 96).eval()
    images_BHWC = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    _, heats_BJHW = grad_cam(
        model, images_BHWC, torch.tensor([[0, 1], [1, 0]]), SETTINGS, find(name)
    )
    assert heats_BJHW.shape == (2, 2, 96, 96)
    assert heats_BJHW.amax((2, 3)).max() == 1 and heats_BJHW.std() > 0
