"""The points of a sweep's space: listed, or drawn by a random search or by Optuna."""

import random
from collections.abc import Sequence
from dataclasses import replace
from math import exp, floor, log, log10
from typing import Any, Protocol

from cluster.io.errors import UserError
from trainers.config import PRETRAINED
from tuning.axes.axis import CLIPNORM, FREEZE_DEPTH, INIT, Axis
from tuning.config import DEFAULT_TRIALS, SpaceConfig
from tuning.point import Point, identify, order_clipnorm, without_optimizer

NUMBERED = "#"
"""Parts the name of an Optuna parameter from the number of its axis, where a field has several."""
MAX_POINTS = 100_000
NUM_REDRAWS = 20
"""Of a point that was drawn before, as whole numbers are."""


class Suggester(Protocol):
    """The part of an Optuna trial that `suggest` uses."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int: ...


def points(space: SpaceConfig, search: str, trials: int | None, seed: int) -> list[Point]:
    """List the points of a grid, or draw distinct ones at random.

    A random search of a space with fewer points than `trials` has only those. Where an axis is
    drawn from a range, the other axes are visited evenly. The tighter a point clips, the later it
    comes: by then the same training without clipping may be recorded.
    """
    return sorted(
        _draw(space, search, trials, seed), key=lambda point: -order_clipnorm(point.get(CLIPNORM))
    )


def _draw(space: SpaceConfig, search: str, trials: int | None, seed: int) -> list[Point]:
    grid = _grid(space.all_axes)
    if search == "grid":
        return grid
    rng = random.Random(seed)
    rng.shuffle(grid)
    num_trials = trials or DEFAULT_TRIALS
    drawn: dict[object, Point] = {}
    for _ in range(num_trials):
        for point in grid[: num_trials - len(drawn)]:
            redrawn = (_draw_ranges(point, rng) for _ in range(NUM_REDRAWS))
            new = next((new for new in redrawn if identify(new) not in drawn), point)
            if not _has_ranges(new):
                drawn[identify(new)] = new
        grid = list(filter(_has_ranges, grid))
        if not grid or len(drawn) == num_trials:
            break
    return list(drawn.values())


def _has_ranges(point: Point) -> bool:
    return any(isinstance(value, Axis) for value in point.values())


def _draw_ranges(point: Point, rng: random.Random) -> Point:
    return {
        field: _draw_number(value, rng) if isinstance(value, Axis) else value
        for field, value in point.items()
    }


def _draw_number(axis: Axis, rng: random.Random) -> int | float:
    assert axis.range is not None
    low, high = axis.range
    drawn = exp(rng.uniform(log(low), log(high))) if axis.log else rng.uniform(low, high)
    if axis.is_whole:
        return min(max(round(drawn), low), high)
    step = min(abs(drawn), high - low) or high - low
    rounded = round(drawn, 2 - floor(log10(step)))  # three digits, of a narrow range as well
    return float(min(max(rounded, low), high))


def _grid(axes: Sequence[Axis]) -> list[Point]:
    """Return all points; a field that is drawn from a range has its axis for a value.

    Raises:
        UserError: where two axes of a field apply to one point, or there are too many points.
    """
    grid: list[Point] = [{}]
    for axis in axes:
        values = axis.values or (axis,)
        applied = [axis.applies(point) for point in grid]
        for point, applies in zip(grid, applied, strict=True):
            if applies and axis.field in point:
                raise UserError(
                    f"space.axes: two axes of {axis.field} apply at once, one of them "
                    f"{axis.describe()!r}; give them other conditions"
                )
        grid = [
            point | {axis.field: value} if applies else point
            for point, applies in zip(grid, applied, strict=True)
            for value in (values if applies else (None,))
        ]
        if len(grid) > MAX_POINTS:
            raise UserError(
                f"space.axes: the space has more than {MAX_POINTS} points; give ranges, or fewer "
                "values"
            )
    return grid


def models(space: SpaceConfig) -> list[Point]:
    """List the networks of a space: the distinct points without the fields of the optimizer and the
    schedule, and without those drawn from a range, but for the bounds of the freeze depth: it
    decides how a trial trains."""
    found: dict[object, Point] = {}
    axes = (_at_bounds(axis) if axis.field == FREEZE_DEPTH else axis for axis in space.all_axes)
    for point in _grid([*axes]):
        model = {
            field: value
            for field, value in without_optimizer(point).items()
            if not isinstance(value, Axis)
        }
        found.setdefault(identify(model), model)
    return list(found.values())


def _at_bounds(axis: Axis) -> Axis:
    return replace(axis, values=axis.range or axis.values, range=None, log=False)


def corners(space: SpaceConfig) -> list[Point]:
    """List the points of a space, with both bounds in place of each range.

    Raises:
        UserError: for an axis that applies to no point.
    """
    axes = [*map(_at_bounds, space.all_axes)]
    grid = _grid(axes)
    for axis in axes:
        if not any(axis.applies(point) for point in grid):
            raise UserError(f"axis is {axis.describe()!r}: its conditions never hold; change them")
    return grid


def left_out(space: SpaceConfig) -> str | None:
    """Name the pairs that the space leaves out in one line; None where there are none."""
    random_inits = [init for init in space.values_of(INIT) if init not in PRETRAINED]
    frozen = [depth for depth in space.values_of(FREEZE_DEPTH) if depth != 0]
    if not random_inits or not frozen:
        return None
    return (
        f"left out {len(random_inits) * len(frozen)} pairs: {', '.join(map(str, random_inits))} "
        f"with freeze depth {', '.join(map(str, frozen))} (frozen random layers have learned "
        "nothing); random initializations train whole"
    )


def suggest(trial: Suggester, space: SpaceConfig) -> Point:
    """Draw one point by Optuna, define-by-run; returns what was set without a draw."""
    point: Point = {}
    fixed: Point = {}
    names = name_parameters(space)
    for axis, name in zip(space.all_axes, names, strict=True):
        if not axis.applies(point):
            continue
        if len(axis.values) == 1:
            (fixed[axis.field],) = axis.values
            point |= fixed
        elif axis.range is None:
            point[axis.field] = trial.suggest_categorical(name, axis.values)
        elif axis.is_whole:
            low, high = map(int, axis.range)
            point[axis.field] = trial.suggest_int(name, low, high, log=axis.log)
        else:
            point[axis.field] = trial.suggest_float(name, *axis.range, log=axis.log)
    return fixed


def name_parameters(space: SpaceConfig) -> list[str]:
    """Return the name of Optuna's parameter for each axis: a parameter has one set of values."""
    drawn = [axis.field for axis in space.all_axes if len(axis.values) != 1]
    return [
        axis.field if drawn.count(axis.field) < 2 else f"{axis.field}{NUMBERED}{number}"
        for number, axis in enumerate(space.all_axes)
    ]


def point_of(params: dict[str, Any]) -> Point:
    """Return the point in a Tune trial's config."""
    if "point" in params:
        return params["point"]
    return {name.partition(NUMBERED)[0]: value for name, value in params.items()}
