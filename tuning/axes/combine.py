"""The axes of a space in order: short options and given axes as one list.

An axis comes after those that its conditions name. Freezing layers that were drawn at random is
degenerate, since nothing in them was learned: with a random initialization, freeze depth is 0.
"""

from collections.abc import Sequence
from dataclasses import replace

from cluster.io.errors import UserError
from trainers.config import PRETRAINED
from tuning.axes.axis import (
    BACKBONE,
    CLIPNORM,
    FREEZE_DEPTH,
    INIT,
    LEARNING_RATE,
    NORMALIZATION,
    WEIGHTS,
    Axis,
    AxisValue,
    Condition,
    is_same,
)
from tuning.axes.backbones import NamedBackbone

ORDER = (BACKBONE, INIT, WEIGHTS, NORMALIZATION, FREEZE_DEPTH, LEARNING_RATE, CLIPNORM)


def combine(short: Sequence[Axis], given: Sequence[Axis]) -> tuple[Axis, ...]:
    """Return all axes in order; a given one replaces the short option of its field.

    Raises:
        UserError: for a condition on no other axis, or on a value that it does not have.
    """
    own = {axis.field for axis in given}
    axes = [*(axis for axis in short if axis.field not in own), *given]
    ordered = _sort(_pair_inits(axes))
    for axis in ordered:
        for condition in axis.when:
            _check(condition, [other for other in ordered if other.field == condition.field])
    return ordered


def axes_of_backbones(networks: Sequence[NamedBackbone], inits: Sequence[AxisValue]) -> list[Axis]:
    """Return the axes of networks, each with its own initializations, weights and normalization;
    of none, the initializations of the base's.

    Args:
        inits: of a network that names none.
    """
    if not networks:
        return [Axis(field=INIT, values=tuple(inits))]
    names = tuple(dict.fromkeys(network.name for network in networks))
    axes = [Axis(field=BACKBONE, values=names)]
    for name in names:
        of_name = [network for network in networks if network.name == name]
        here = Condition(field=BACKBONE, values=(name,))
        own = [init for n in of_name for init in ([n.init] if n.init else inits)]
        axes.append(Axis(field=INIT, values=tuple(dict.fromkeys(own)), when=(here,)))
        files = tuple(network.weights for network in of_name if network.weights)
        from_file = (here, Condition(field=INIT, values=("file",)))
        if files:
            axes.append(Axis(field=WEIGHTS, values=files, when=from_file))
        for network in of_name:
            if network.normalization is None:
                continue
            at = list(from_file if network.weights else (here,))
            if network.weights:
                at.append(Condition(field=WEIGHTS, values=(network.weights,)))
            elif network.init:
                at.append(Condition(field=INIT, values=(network.init,)))
            values = (network.normalization,)
            axes.append(Axis(field=NORMALIZATION, values=values, when=tuple(at)))
    return axes


def _pair_inits(axes: list[Axis]) -> list[Axis]:
    """Let freeze depths other than 0 apply to pretrained initializations alone."""
    values = dict.fromkeys(value for axis in axes if axis.field == INIT for value in axis.values)
    random = tuple(value for value in values if value not in PRETRAINED)
    if not random or not any(axis.field == FREEZE_DEPTH for axis in axes):
        return axes
    pretrained = tuple(value for value in values if value in PRETRAINED)
    others = [axis for axis in axes if axis.field != FREEZE_DEPTH]
    depths = [axis for axis in axes if axis.field == FREEZE_DEPTH]
    condition = Condition(field=INIT, values=pretrained)
    paired = [replace(axis, when=(*axis.when, condition)) for axis in depths] if pretrained else []
    whole = Axis(field=FREEZE_DEPTH, values=(0,), when=(Condition(field=INIT, values=random),))
    return [*others, *paired, whole]


def _sort(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    left = sorted(axes, key=lambda a: ORDER.index(a.field) if a.field in ORDER else len(ORDER))
    ordered: list[Axis] = []
    while left:
        waiting = {axis.field for axis in left}
        ready = next((a for a in left if waiting.isdisjoint(c.field for c in a.when)), None)
        if ready is None:
            raise UserError(
                f"space.axes: the condition of {left[0].describe()!r} depends on itself; leave it "
                "out"
            )
        left.remove(ready)
        ordered.append(ready)
    return tuple(ordered)


def _check(condition: Condition, axes: Sequence[Axis]) -> None:
    if not axes:
        raise UserError(
            f"when is {condition.describe()!r}: {condition.field} is no axis of this space; add "
            f"--axis {condition.field} VALUE ..."
        )
    if any(axis.range is not None for axis in axes):
        raise UserError(
            f"when is {condition.describe()!r}: {condition.field} is drawn from a range; list its "
            "values"
        )
    values = [value for axis in axes for value in axis.values]
    for value in condition.values:
        if not any(is_same(value, other) for other in values):
            known = ", ".join(dict.fromkeys(map(str, values)))
            raise UserError(
                f"when is {condition.describe()!r}: {condition.field} is never {value!r}; choose "
                f"from {known}"
            )
