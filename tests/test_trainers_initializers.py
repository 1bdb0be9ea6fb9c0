"""Random initializations against theory; why zeros do not learn (docs/initialization.md)."""

from math import log, sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.networks import SEED, mobilenet_config, random_state, state
from trainers.config import RANDOM, Init, ModelConfig
from trainers.networks.backbones import build, find
from trainers.networks.weights.initialization import initialize
from trainers.networks.weights.initializers import INITIALIZERS
from trainers.networks.weights.loading import LoadReport

pytestmark = pytest.mark.usefixtures("one_thread")
LENET5_ZEROS = ModelConfig(backbone="lenet5", init="zeros")


@pytest.mark.parametrize(
    ("init", "std", "bound"),
    [
        ("xavier", sqrt(2 / (512 * 9 + 512 * 9)), sqrt(6 / (512 * 9 + 512 * 9))),
        ("he", sqrt(2 / (512 * 9)), None),
        ("normal", 0.01, None),
    ],
)
def test_weights_follow_their_distribution(init: Init, std: float, bound: float | None):
    model = nn.Sequential(nn.Conv2d(512, 512, 3))  # 2.4 million draws
    initialize(model, ModelConfig(init=init), seed=SEED)
    weight = model.get_parameter("0.weight")
    assert abs(weight.mean().item()) < 5 * std / sqrt(weight.numel())
    assert weight.std().item() == pytest.approx(std, rel=5e-3)
    within_one_std = (weight.abs() < std).float().mean().item()
    if bound is None:
        assert within_one_std == pytest.approx(0.6827, abs=2e-3)  # a normal distribution
    else:
        assert within_one_std == pytest.approx(1 / sqrt(3), abs=2e-3)  # a uniform one
        assert weight.abs().max().item() == pytest.approx(bound, rel=1e-4)
        assert weight.abs().max().item() <= bound * (1 + 1e-6)


def test_orthogonal_rows_have_unit_length_and_no_overlap():
    model = build("mobilenet_v2", 20)
    initialize(model, mobilenet_config("orthogonal"), seed=SEED)
    for name in ("features.18.0.weight", "features.2.conv.0.0.weight", "classifier.1.weight"):
        rows = model.get_parameter(name).flatten(1)
        short = rows if rows.shape[0] <= rows.shape[1] else rows.T
        torch.testing.assert_close(short @ short.T, torch.eye(len(short)), atol=1e-5, rtol=0)


def test_zeros_leaves_nothing_to_learn_from():
    model = build("mobilenet_v2", 20)
    initialize(model, mobilenet_config("zeros"), seed=SEED)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert not module.weight.any()
            assert module.bias is None or not module.bias.any()
    assert not model.eval()(torch.rand(2, 3, 32, 32)).any()


@pytest.mark.parametrize("init", RANDOM)
def test_biases_are_zero_and_normalization_is_reset(init: Init):
    model = build("mobilenet_v2", 20)
    model.load_state_dict(random_state("mobilenet_v2", 20))
    report = initialize(model, mobilenet_config(init), seed=SEED)
    assert report == LoadReport()
    assert not model.get_parameter("classifier.1.bias").any()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            fresh = nn.BatchNorm2d(module.num_features).state_dict()
            assert all(torch.equal(t, fresh[name]) for name, t in module.state_dict().items())


@pytest.mark.parametrize("init", ["xavier", "he", "normal", "orthogonal"])
def test_the_seed_decides_and_the_random_state_stays(init: Init):
    def drawn(seed: int) -> Tensor:
        model = build("mobilenet_v2", 20)
        initialize(model, mobilenet_config(init), seed=seed)
        return model.get_parameter("features.3.conv.0.0.weight")

    first = drawn(SEED)
    torch.rand(7)
    before = torch.get_rng_state()
    assert torch.equal(drawn(SEED), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(drawn(SEED + 1), first)


@pytest.mark.parametrize("init", RANDOM)
@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(8, 16, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv3d(4, 8, 3), nn.Linear(32, 8)],
    ids=lambda layer: type(layer).__name__,
)
def test_convolutions_of_every_dimension_are_drawn(init: Init, layer: nn.Module):
    model = nn.Sequential(layer)
    before = state(model)
    initialize(model, mobilenet_config(init), seed=SEED)
    torch.default_generator.manual_seed(SEED)
    INITIALIZERS[init](before["0.weight"])
    assert torch.equal(model.get_parameter("0.weight"), before["0.weight"])
    assert not model.get_parameter("0.bias").any()


@pytest.mark.parametrize(("name", "init"), [("efficientnet_v2_b0", "xavier"), ("lenet5", "he")])
def test_no_tensor_of_a_network_is_left_to_chance(name: str, init: Init):
    config = ModelConfig(backbone=name, init=init)
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        initialize(model := build(name, 5), config, seed=SEED)
        states.append(state(model))
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def test_parameters_outside_of_layers_keep_the_start_of_their_network():
    model = build("convnext_tiny", 5)
    initialize(model, ModelConfig(backbone="convnext_tiny", init="he"), seed=SEED)
    scale = model.get_parameter("features.1.0.layer_scale")
    assert torch.equal(scale, torch.full_like(scale, 1e-6))


# The lesson of zeros: docs/initialization.md quotes these numbers

BALANCED_B = torch.arange(32) % 4
SKEWED_B = torch.tensor([0] * 16 + [1] * 8 + [2] * 4 + [3] * 4)


def banded(labels_B: Tensor) -> Tensor:
    """Images of noise with a bright band, a quarter of the height, where the class says."""
    generator = torch.Generator().manual_seed(5)
    images_BCHW = 0.3 * torch.randn(len(labels_B), 3, 32, 32, generator=generator)
    for image_CHW, label in zip(images_BCHW, labels_B.tolist(), strict=True):
        image_CHW[:, 8 * label : 8 * label + 8] += 1
    return images_BCHW


def fit(model: nn.Module, images_BCHW: Tensor, labels_B: Tensor) -> float:
    """Return the loss after 50 steps of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(50):
        optimizer.zero_grad()
        F.cross_entropy(model(images_BCHW), labels_B).backward()
        optimizer.step()
    return F.cross_entropy(model(images_BCHW), labels_B).item()


@pytest.mark.parametrize("name", ["lenet5", "resnet50", "convnext_tiny", "mobilenet_v1"])
def test_with_zeros_a_gradient_reaches_the_last_bias_alone(name: str):
    model = build(name, 4)
    initialize(model, ModelConfig(backbone=name, init="zeros"), seed=SEED)
    F.cross_entropy(model.train()(torch.rand(4, 3, 32, 32)), torch.tensor([0, 1, 2, 2])).backward()
    moving = [key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert len(moving) == 1
    assert moving[0].startswith(find(name).head) and moving[0].endswith(".bias")


@pytest.mark.parametrize(
    ("labels_B", "entropy", "loss"),
    [(BALANCED_B, log(4), 1.3863), (SKEWED_B, 1.75 * log(2), 1.2138)],
    ids=["balanced", "skewed"],
)
def test_zeros_learn_how_often_a_class_occurs_and_no_more(
    labels_B: Tensor, entropy: float, loss: float
):
    initialize(model := build("lenet5", 4), LENET5_ZEROS, seed=SEED)
    images_BCHW = banded(labels_B)
    assert fit(model, images_BCHW, labels_B) == pytest.approx(loss, abs=2e-4)
    assert loss == pytest.approx(entropy, abs=1e-3)
    assert len(model(images_BCHW).unique(dim=0)) == 1  # whatever the image, the same answer


@pytest.mark.parametrize("init", ["xavier", "he", "orthogonal"])
def test_random_weights_learn_the_same_images(init: Init):
    initialize(model := build("lenet5", 4), ModelConfig(backbone="lenet5", init=init), seed=SEED)
    assert fit(model, banded(BALANCED_B), BALANCED_B) < 0.001


def test_too_small_random_weights_have_not_begun():
    config = ModelConfig(backbone="lenet5", init="normal")  # LeNet-5 has no normalization layers
    initialize(model := build("lenet5", 4), config, seed=SEED)
    assert fit(model, banded(BALANCED_B), BALANCED_B) == pytest.approx(1.3863, abs=1e-4)


def test_equal_weights_stay_equal():
    """Not zero but 0.01 everywhere: it learns, with every layer as one unit, many times over."""
    model, labels_B = build("lenet5", 2), torch.arange(32) % 2
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    generator = torch.Generator().manual_seed(5)
    images_BCHW = 0.3 * torch.randn(32, 3, 32, 32, generator=generator)
    images_BCHW += 2 * labels_B[:, None, None, None] - 1  # dark or bright: one unit separates them
    assert fit(model, images_BCHW, labels_B) < 0.001
    for layer in ("conv1", "conv2", "dense1", "dense2"):
        weight = model.get_parameter(f"{layer}.weight")
        assert (weight - weight[:1]).abs().max() < 1e-6
    assert not torch.equal(model.get_parameter("dense2.weight"), torch.full((84, 120), 0.01))
