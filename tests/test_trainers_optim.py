"""Keras' Adam, decay and clipping, to the letter; schedules at first, middle and last step."""

from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainers.backbones import build
from trainers.config import OptimConfig, ScheduleConfig
from trainers.freezing import freeze
from trainers.optim import (
    KERAS_EPSILON,
    build_optimizer,
    clip_gradients,
    learning_rate_at,
    set_learning_rate,
)

CONSTANT = ScheduleConfig()


def with_gradients(*gradients: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return parameters


def gradient(parameter: nn.Parameter) -> list[float]:
    assert parameter.grad is not None
    return parameter.grad.tolist()


# Clipping


def test_clipnorm_clips_each_tensor_to_that_norm():
    large, small = with_gradients([3.0, 4.0], [0.3, 0.4])
    told = clip_gradients([large, small], OptimConfig(clipnorm=1.0))
    assert gradient(large) == pytest.approx([0.6, 0.8])
    assert gradient(small) == pytest.approx([0.3, 0.4])
    assert told["clip/grad_norm"].item() == pytest.approx(sqrt(25.25))
    assert told["clip/clipped_share"].item() == 0.5


def test_global_clipnorm_clips_all_tensors_together():
    parameters = with_gradients([3.0, 0.0], [0.0, 4.0])
    told = clip_gradients(parameters, OptimConfig(global_clipnorm=1.0))
    assert [gradient(p) for p in parameters] == [pytest.approx([0.6, 0]), pytest.approx([0, 0.8])]
    assert told["clip/grad_norm"].item() == pytest.approx(5)
    assert told["clip/clipped_share"].item() == 1


@pytest.mark.parametrize(
    "config", [OptimConfig(), OptimConfig(clipnorm=5.0), OptimConfig(global_clipnorm=5.0)]
)
def test_gradients_within_the_norm_stay_bit_identical(config: OptimConfig):
    parameters = with_gradients([3.0, 0.1], [0.0, 3.7])
    before = [gradient(p) for p in parameters]
    told = clip_gradients(parameters, config)
    assert [gradient(p) for p in parameters] == before
    assert told["clip/clipped_share"].item() == 0


def test_parameters_without_a_gradient_do_not_count():
    parameters = [*with_gradients([3.0, 4.0]), nn.Parameter(torch.ones(2))]
    told = clip_gradients(parameters, OptimConfig(clipnorm=1.0))
    assert told["clip/clipped_share"].item() == 1
    assert parameters[1].grad is None


def test_a_gradient_of_zeros_stays_zero():
    (parameter,) = with_gradients([0.0, 0.0])
    clip_gradients([parameter], OptimConfig(clipnorm=1e-3))
    assert gradient(parameter) == [0.0, 0.0]


# Learning rate: 10 epochs of 20 steps


def rates(config: OptimConfig, schedule: ScheduleConfig, steps: list[int]) -> list[float]:
    return [learning_rate_at(step, config, schedule, 20, 10) for step in steps]


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
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    return model


@pytest.mark.parametrize("scale", [1.0, 1e-7])  # at 1e-7 the place of epsilon decides
@pytest.mark.parametrize("restart", [False, True])
def test_adam_equals_keras_over_20_steps_with_clipnorm_and_decay(scale: float, restart: bool):
    config = OptimConfig(learning_rate=1e-2, clipnorm=scale, decay=0.05)
    model = quadratic_model()
    optimizer = build_optimizer(model, config)
    rng = np.random.default_rng(0)
    gradients = {
        name: [rng.normal(size=tuple(p.shape)) * scale for _ in range(20)]
        for name, p in model.named_parameters()
    }
    start = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    for step in range(20):
        if restart and step == 9:  # the count of iterations travels with the state
            saved = optimizer.state_dict()
            optimizer = build_optimizer(model, config)
            optimizer.load_state_dict(saved)
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradients[name][step].copy())
        set_learning_rate(optimizer, learning_rate_at(step, config, CONSTANT, 20, 1))
        clip_gradients(model.parameters(), config)
        optimizer.step()
    for name, parameter in model.named_parameters():
        expected = keras_adam_float64(start[name], gradients[name], 1e-2, 0.05, scale)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-13)


def test_the_first_step_of_adam_by_hand():
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    model = nn.Module()
    model.register_parameter("weight", parameter)
    parameter.grad = torch.full((1,), 1e-6, dtype=torch.float64)
    build_optimizer(model, OptimConfig(learning_rate=1.0)).step()
    expected = -sqrt(0.001) / 0.1 * 1e-7 / (sqrt(0.001) * 1e-6 + KERAS_EPSILON)  # far from torch's
    assert parameter.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_spares_biases_and_normalization(optimizer: str):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    config = OptimConfig(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5)  # pyright: ignore
    before: dict[str, Tensor] = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # what moves now is moved by the decay
    build_optimizer(model, config).step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if name in ("0.weight", "3.weight") else 1)
        torch.testing.assert_close(parameter.detach(), expected)


def test_sgd_keeps_momentum_without_nesterov():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    config = OptimConfig(optimizer="sgd", learning_rate=0.1, momentum=0.5)
    optimizer = build_optimizer(model, config)
    for _ in range(2):
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert model.weight.item() == pytest.approx(-0.1 * (1 + 1.5))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_only_trainable_parameters_are_optimized(optimizer: str):
    model = build("mobilenet_v2", 4)
    freeze(model, "mobilenet_v2", 6)
    built = build_optimizer(model, OptimConfig(optimizer=optimizer))  # pyright: ignore
    held = {id(p) for group in built.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    set_learning_rate(built, 0.25)
    assert {group["lr"] for group in built.param_groups} == {0.25}
