"""A point of a sweep's space: a dict of dotted config paths and values.

The training at a point, and how a point is written.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from cluster.io.errors import UserError
from cluster.io.fields import hint_at, take_object
from cluster.io.markers import flatten, replace_at
from cluster.io.uris import name_of
from trainers.config import PRETRAINED, FinetuneConfig, ModelConfig
from trainers.networks.family import suit
from tuning.axes.axis import (
    BACKBONE,
    CLIPNORM,
    FREEZE_DEPTH,
    INIT,
    LEARNING_RATE,
    NORMALIZATION,
    WEIGHTS,
    show,
)

Point = dict[str, object]

AXES = {FREEZE_DEPTH: "freeze", LEARNING_RATE: "lr", CLIPNORM: "clip", INIT: "init"}
"""The axes with short options, and their short names."""
SHORT_NAMES = {BACKBONE: "net", **AXES, WEIGHTS: "weights", NORMALIZATION: "norm"}
"""In the order of their columns; another field's short name is its last part."""
NOT_IN_NETWORK = ("optim.", "schedule.")
"""Sections of fields that change neither images nor network."""


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
    """Return the training at a point: `base` with it applied, weights only where they are used, and
    numbers in place of `auto`."""
    config = suit(apply(base, point))
    if config.model.init in PRETRAINED:
        return config
    return replace(config, model=replace(config.model, weights=None))


def model_of(base: FinetuneConfig, point: Point) -> ModelConfig:
    """Return the network at a point, its name and freeze depth at least."""
    known: dict[str, Any] = {f: point[f] for f in (BACKBONE, FREEZE_DEPTH) if f in point}
    return replace_at(base, known).model


def take_point(values: dict[str, Any], section: str) -> Point:
    """Check a point of a file by the fields of a training.

    Raises:
        UserError: for a field that a training lacks, or a value of another type.
    """
    for path in values:
        if hint_at(FinetuneConfig, path) is None:
            raise UserError(f"{section}{path} is unknown to this version of Thaw")
    return take_object(values, {path: hint_at(FinetuneConfig, path) for path in values}, section)


def identify(point: Point) -> object:
    """Return a key that tells points apart: 1 stage is not a share of 1.0."""
    return tuple((field, type(value), value) for field, value in point.items())


def without_optimizer(point: Point) -> Point:
    """Return a point without the fields that change neither images nor network."""
    return {f: value for f, value in point.items() if not f.startswith(NOT_IN_NETWORK)}


def order_clipnorm(clipnorm: object) -> float:
    """Return a sort key of clipnorms: none clips nothing and is the largest."""
    return clipnorm if isinstance(clipnorm, int | float) else inf


def describe(point: Point) -> str:
    """Write a point in one short line: `freeze=all lr=0.001 clip=none init=imagenet`."""
    return " ".join(f"{short_name(f)}={show_at(point, f)}" for f in order_fields(point))


def show_at(point: Point, field: str) -> str:
    """Write a value of a point; `-` where its axis does not apply."""
    if field not in point:
        return "-"
    return name_of(str(point[field])) if field == WEIGHTS else show(point[field])


def short_name(field: str) -> str:
    return SHORT_NAMES.get(field) or field.rpartition(".")[2]


def order_fields(fields: Iterable[str]) -> list[str]:
    """Sort fields as their columns are: those with short names first."""
    order = {field: number for number, field in enumerate(SHORT_NAMES)}
    return sorted(dict.fromkeys(fields), key=lambda field: order.get(field, len(order)))


def compared_fields(trials: Sequence[Point]) -> list[str]:
    """Return the fields that tell points apart, beside the axes with short options: those that
    have several values among points of one network and initialization."""
    groups: dict[tuple[object, object], list[Point]] = {}
    for point in trials:
        groups.setdefault((point.get(BACKBONE), point.get(INIT)), []).append(point)
    shown: list[str] = []
    for field in order_fields(field for point in trials for field in point):
        within = field != BACKBONE
        sets = groups.values() if within else [list(trials)]
        if field in AXES or any(len({_key(point, field) for point in of}) > 1 for of in sets):
            shown.append(field)
    return shown


def _key(point: Point, field: str) -> tuple[bool, object]:
    return field in point, point.get(field)
