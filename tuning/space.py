"""The search space of a sweep: points, which are dicts of dotted config paths and values.

Freezing layers that were drawn at random is degenerate: nothing in them was learned. So a random
initialization is only ever paired with freeze depth 0.
"""

import random
from dataclasses import replace
from itertools import cycle, islice, product
from math import exp, inf, log
from typing import Any, Protocol

from cluster.io.errors import UserError
from cluster.io.markers import flatten, replace_at
from trainers.config import PRETRAINED, FinetuneConfig, FreezeDepth, Init
from tuning.config import DEFAULT_TRIALS, SpaceConfig

Point = dict[str, object]

FREEZE_DEPTH = "model.freeze_depth"
INIT = "model.init"
LEARNING_RATE = "optim.learning_rate"
CLIPNORM = "optim.clipnorm"
POINT = {
    FREEZE_DEPTH: FreezeDepth,
    INIT: Init,
    LEARNING_RATE: float,
    CLIPNORM: float | None,
}
"""Types of a point in a file."""
AXES = {FREEZE_DEPTH: "freeze", LEARNING_RATE: "lr", CLIPNORM: "clip", INIT: "init"}
"""The axes and their short names."""


class Suggester(Protocol):
    """The part of an Optuna trial that `suggest` uses."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...


def apply(config: FinetuneConfig, point: Point) -> FinetuneConfig:
    """Return `config` with the fields at the point's dotted paths replaced, all at once.

    Raises:
        UserError: for a path that the config lacks, or values that don't go together.
    """
    known = flatten(config.to_dict())
    for path in point:
        if path not in known:
            raise UserError(f"point has {path!r}: the config has no such field")
    return replace_at(config, point)


def training_of(base: FinetuneConfig, point: Point) -> FinetuneConfig:
    """Return the training at a point: `base` with it applied, weights only where they are used."""
    config = apply(base, point)
    if config.model.init in PRETRAINED:
        return config
    return replace(config, model=replace(config.model, weights=None))


def points(space: SpaceConfig, search: str, trials: int | None, seed: int) -> list[Point]:
    """List the points of a grid, or draw distinct ones at random.

    A random search of a space with fewer points than `trials` has only those. Where learning
    rates are drawn from a range, the other axes are visited evenly. The tighter a point clips, the
    later it comes: by then the same training without clipping may be recorded.
    """
    return sorted(
        _draw(space, search, trials, seed), key=lambda point: -order_clipnorm(point[CLIPNORM])
    )


def order_clipnorm(clipnorm: object) -> float:
    """Return a sort key of clipnorms: none clips nothing and is the largest."""
    return clipnorm if isinstance(clipnorm, int | float) else inf


def _draw(space: SpaceConfig, search: str, trials: int | None, seed: int) -> list[Point]:
    grid = _grid(space)
    if search == "grid":
        return grid
    rng = random.Random(seed)
    rng.shuffle(grid)
    num_trials = trials or DEFAULT_TRIALS
    if space.learning_rate_range is None:
        return grid[:num_trials]
    low, high = (log(rate) for rate in space.learning_rate_range)
    return [
        point | {LEARNING_RATE: float(f"{exp(rng.uniform(low, high)):.3g}")}
        for point in islice(cycle(grid), num_trials)
    ]


def _grid(space: SpaceConfig) -> list[Point]:
    """All points; where rates come from a range, all combinations of the other axes."""
    rates = space.learning_rates if space.learning_rate_range is None else (None,)
    return [
        model | {LEARNING_RATE: rate, CLIPNORM: clipnorm}
        for model in models(space)
        for rate, clipnorm in product(rates, space.clipnorms)
    ]


def _depths(space: SpaceConfig, init: str) -> tuple[FreezeDepth, ...]:
    return space.freeze_depths if init in PRETRAINED else (0,)


def models(space: SpaceConfig) -> list[Point]:
    """List the networks of a space: its pairs of initialization and freeze depth."""
    return [
        {INIT: init, FREEZE_DEPTH: depth} for init in space.inits for depth in _depths(space, init)
    ]


def left_out(space: SpaceConfig) -> str | None:
    """Name the pairs that the space leaves out in one line; None where there are none."""
    random_inits = [init for init in space.inits if init not in PRETRAINED]
    frozen = [depth for depth in space.freeze_depths if depth != 0]
    if not random_inits or not frozen:
        return None
    return (
        f"left out {len(random_inits) * len(frozen)} pairs: {', '.join(random_inits)} with freeze "
        f"depth {', '.join(map(str, frozen))} (frozen random layers have learned nothing); "
        "random initializations train whole"
    )


def suggest(trial: Suggester, space: SpaceConfig) -> Point:
    """Draw one point by Optuna, define-by-run; returns what was set without a draw."""
    init = trial.suggest_categorical(INIT, space.inits)
    trial.suggest_categorical(CLIPNORM, space.clipnorms)
    if space.learning_rate_range is None:
        trial.suggest_categorical(LEARNING_RATE, space.learning_rates)
    else:
        trial.suggest_float(LEARNING_RATE, *space.learning_rate_range, log=True)
    if init not in PRETRAINED:
        return {FREEZE_DEPTH: 0}
    trial.suggest_categorical(FREEZE_DEPTH, space.freeze_depths)
    return {}


def depth_of(point: Point) -> FreezeDepth:
    depth: Any = point[FREEZE_DEPTH]
    return depth


def describe(point: Point) -> str:
    """Write a point in one short line: `freeze=all lr=0.001 clip=none init=imagenet`."""
    return " ".join(f"{AXES[axis]}={show(point[axis])}" for axis in AXES)


def show(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
