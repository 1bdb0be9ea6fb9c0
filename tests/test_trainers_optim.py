"""Keras' Adam, decay and clipping, to the letter; schedules at first, middle and last step."""

from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.support.small import with_head
from trainers.config import OptimConfig, ScheduleConfig
from trainers.metrics import stage_metrics
from trainers.networks.backbones import build
from trainers.networks.freezing import freeze
from trainers.step.optim import (
    KERAS_EPSILON,
    build_optimizer,
    carry_state,
    clip_gradients,
    learning_rate_at,
    set_learning_rate,
)

pytestmark = pytest.mark.usefixtures("toy_backbone")
CONSTANT = ScheduleConfig()


def with_gradients(*gradients: list[float], stages: list[int] | None = None) -> Optimizer:
    """One parameter a gradient, each in the stage given, the first by default."""
    parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    stages = stages or [0] * len(parameters)
    return torch.optim.SGD(
        [{"params": [p], "stage": s} for p, s in zip(parameters, stages, strict=True)], lr=1
    )


def gradients_of(optimizer: Optimizer) -> list[list[float]]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [p.grad.tolist() for p in parameters if p.grad is not None]


# Clipping


def test_clipnorm_clips_each_tensor_to_that_norm():
    optimizer = with_gradients([3.0, 4.0], [0.3, 0.4])
    told = clip_gradients(optimizer, OptimConfig(clipnorm=1.0))
    assert gradients_of(optimizer) == [pytest.approx([0.6, 0.8]), pytest.approx([0.3, 0.4])]
    assert told["clip/grad_norm"].item() == pytest.approx(sqrt(25.25))
    assert told["clip/grad_norm_after"].item() == pytest.approx(sqrt(1.25))
    assert told["clip/clipped_share"].item() == 0.5


def test_global_clipnorm_clips_all_tensors_together():
    optimizer = with_gradients([3.0, 0.0], [0.0, 4.0])
    told = clip_gradients(optimizer, OptimConfig(global_clipnorm=1.0))
    assert gradients_of(optimizer) == [pytest.approx([0.6, 0]), pytest.approx([0, 0.8])]
    assert told["clip/grad_norm"].item() == pytest.approx(5)
    assert told["clip/grad_norm_after"].item() == pytest.approx(1)
    assert told["clip/clipped_share"].item() == 1


@pytest.mark.parametrize(
    "config", [OptimConfig(), OptimConfig(clipnorm=5.0), OptimConfig(global_clipnorm=5.0)]
)
def test_gradients_within_the_norm_stay_bit_identical(config: OptimConfig):
    optimizer = with_gradients([3.0, 0.1], [0.0, 3.7])
    before = gradients_of(optimizer)
    told = clip_gradients(optimizer, config)
    assert gradients_of(optimizer) == before
    assert told["clip/clipped_share"].item() == 0
    assert told["clip/grad_norm_after"] == pytest.approx(told["clip/grad_norm"].item())


def test_each_stage_tells_its_norms_and_the_share_of_its_tensors_that_was_clipped():
    optimizer = with_gradients([3.0, 4.0], [0.3, 0.4], [0.0, 2.0], stages=[1, 1, 3])
    told = clip_gradients(optimizer, OptimConfig(clipnorm=1.0))
    expected = [sqrt(25.25), sqrt(1.25), 0.5, 2.0, 1.0, 1.0]
    assert told["clip/stages"].tolist() == pytest.approx(expected)
    assert stage_metrics(["layer4", "head"])[::3] == [
        "clip/layer4/grad_norm",
        "clip/head/grad_norm",
    ]


def test_a_stage_whose_gradient_overflows_leaves_the_others_readable():
    optimizer = with_gradients([3.0, 4.0], [float("inf"), 0.0], stages=[0, 1])
    told = clip_gradients(optimizer, OptimConfig())
    assert told["clip/stages"][:3].tolist() == [5.0, 5.0, 0.0]
    assert not told["clip/grad_norm"].isfinite()


def test_parameters_without_a_gradient_do_not_count():
    optimizer = with_gradients([3.0, 4.0], [0.0, 0.0])
    idle = optimizer.param_groups[1]["params"][0]
    idle.grad = None
    told = clip_gradients(optimizer, OptimConfig(clipnorm=1.0))
    assert told["clip/clipped_share"].item() == 1
    assert idle.grad is None


def test_a_gradient_of_zeros_stays_zero():
    optimizer = with_gradients([0.0, 0.0])
    clip_gradients(optimizer, OptimConfig(clipnorm=1e-3))
    assert gradients_of(optimizer) == [[0.0, 0.0]]


# Learning rate: 10 epochs of 20 steps


def rates(config: OptimConfig, schedule: ScheduleConfig, steps: list[int]) -> list[float]:
    return [
        learning_rate_at(
            step, config.learning_rate, config, schedule, steps_per_epoch=20, num_epochs=10
        )
        for step in steps
    ]


def test_decay_divides_as_keras_does():
    config = OptimConfig(learning_rate=1e-3, decay=0.01)
    assert rates(config, CONSTANT, [0, 100, 199]) == pytest.approx([1e-3, 5e-4, 1e-3 / 2.99])


def test_without_schedule_or_decay_the_rate_stays():
    assert rates(OptimConfig(learning_rate=0.3), CONSTANT, [0, 100, 199]) == [0.3, 0.3, 0.3]


def test_warmup_rises_by_equal_parts_to_the_peak():
    schedule = ScheduleConfig(warmup_epochs=2)
    found = rates(OptimConfig(learning_rate=0.4), schedule, [0, 19, 39, 40, 199])
    assert found == pytest.approx([0.01, 0.2, 0.4, 0.4, 0.4])


def test_cosine_falls_from_the_peak_to_nearly_zero():
    found = rates(OptimConfig(learning_rate=0.4), ScheduleConfig(schedule="cosine"), [0, 100, 199])
    assert found == pytest.approx([0.4, 0.2, 0.2 * (1 - np.cos(np.pi / 200))])


def test_cosine_starts_where_warmup_ends_and_decay_multiplies():
    schedule = ScheduleConfig(schedule="cosine", warmup_epochs=2)
    found = rates(OptimConfig(learning_rate=0.4, decay=0.1), schedule, [0, 40, 120])
    assert found == pytest.approx([0.01, 0.4 / 5, 0.2 / 13])


def test_a_fraction_of_an_epoch_warms_up():
    schedule = ScheduleConfig(warmup_epochs=0.25)
    found = rates(OptimConfig(learning_rate=1.0), schedule, [0, 1, 4, 5])
    assert found == pytest.approx([0.2, 0.4, 1.0, 1.0])


# Optimizers


def keras_adam_float64(
    weights: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float, clipnorm: float
) -> np.ndarray:
    """Keras' optimizer_v2 Adam of one tensor, from its formulas, in NumPy."""
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    for iterations, g in enumerate(gradients):
        g = g * clipnorm / max(np.linalg.norm(g), clipnorm)
        lr_t = lr / (1 + decay * iterations)
        t = iterations + 1
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        weights = weights - lr_t * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
    return weights


def quadratic_model() -> nn.Module:
    model = with_head(nn.Linear(4, 3).double())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    return model


@pytest.mark.parametrize("scale", [1.0, 1e-7])  # at 1e-7 the place of epsilon decides
@pytest.mark.parametrize("restart", [False, True])
def test_adam_equals_keras_over_20_steps_with_clipnorm_and_decay(scale: float, restart: bool):
    config = OptimConfig(learning_rate=1e-2, clipnorm=scale, decay=0.05)
    model = quadratic_model()
    optimizer = build_optimizer(model, "toy", config)
    rng = np.random.default_rng(0)
    gradients = {
        name: [rng.normal(size=tuple(p.shape)) * scale for _ in range(20)]
        for name, p in model.named_parameters()
    }
    start = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    for step in range(20):
        if restart and step == 9:  # the count of iterations travels with the state
            saved = optimizer.state_dict()
            optimizer = build_optimizer(model, "toy", config)
            optimizer.load_state_dict(saved)
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradients[name][step].copy())
        set_learning_rate(optimizer, rates(config, CONSTANT, [step])[0])
        clip_gradients(optimizer, config)
        optimizer.step()
    for name, parameter in model.named_parameters():
        expected = keras_adam_float64(start[name], gradients[name], 1e-2, 0.05, scale)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-13)


def test_the_first_step_of_adam_by_hand():
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    head = nn.Module()
    head.register_parameter("weight", parameter)
    parameter.grad = torch.full((1,), 1e-6, dtype=torch.float64)
    build_optimizer(with_head(head), "toy", OptimConfig(learning_rate=1.0)).step()
    expected = -sqrt(0.001) / 0.1 * 1e-7 / (sqrt(0.001) * 1e-6 + KERAS_EPSILON)  # far from torch's
    assert parameter.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_spares_biases_and_normalization(optimizer: str):
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model = with_head(nn.Linear(4, 2), stem)
    config = OptimConfig(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5)  # pyright: ignore
    before: dict[str, Tensor] = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # what moves now is moved by the decay
    build_optimizer(model, "toy", config).step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if name in ("stem.0.weight", "fc.weight") else 1)
        torch.testing.assert_close(parameter.detach(), expected)


def test_sgd_keeps_momentum_without_nesterov():
    head = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(head.weight)
    config = OptimConfig(optimizer="sgd", learning_rate=0.1, momentum=0.5)
    optimizer = build_optimizer(with_head(head), "toy", config)
    for _ in range(2):
        head.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert head.weight.item() == pytest.approx(-0.1 * (1 + 1.5))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_only_trainable_parameters_are_optimized(optimizer: str):
    model = build("mobilenet_v2", 4)
    freeze(model, "mobilenet_v2", 6)
    built = build_optimizer(model, "mobilenet_v2", OptimConfig(optimizer=optimizer))  # pyright: ignore
    held = {id(p) for group in built.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    set_learning_rate(built, 0.25)
    assert {group["lr"] for group in built.param_groups} == {0.25}


def test_layer_decay_gives_each_stage_its_share_of_the_head_s_rate():
    model = build("mobilenet_v2", 4)
    freeze(model, "mobilenet_v2", 5)
    optimizer = build_optimizer(model, "mobilenet_v2", OptimConfig(layer_decay=0.5))
    set_learning_rate(optimizer, 0.8)
    assert {group["stage"]: group["lr"] for group in optimizer.param_groups} == {
        5: pytest.approx(0.2),
        6: pytest.approx(0.4),
        7: 0.8,
    }


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_phase_change_keeps_the_state_of_parameters_that_go_on(name: str):
    model = build("mobilenet_v2", 4)
    config = OptimConfig(optimizer=name)  # pyright: ignore[reportArgumentType]
    freeze(model, "mobilenet_v2", 7)
    head_only = build_optimizer(model, "mobilenet_v2", config)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        head_only.step()
    before = {p: dict(state) for p, state in head_only.state.items()}
    freeze(model, "mobilenet_v2", 6)
    deeper = build_optimizer(model, "mobilenet_v2", config)
    carry_state(head_only, deeper)

    assert before and set(deeper.state) == set(model.get_submodule("classifier").parameters())
    for parameter, state in before.items():
        for key, value in state.items():
            torch.testing.assert_close(deeper.state[parameter][key], value)
    if name == "adam":  # Keras' epsilon counts iterations by group
        assert [g["iterations"] for g in deeper.param_groups if g["stage"] == 7] == [3, 3]
        assert all(g["iterations"] == 0 for g in deeper.param_groups if g["stage"] == 6)
