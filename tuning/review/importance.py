"""Importance of each axis of a sweep."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from tuning.axes.axis import LEARNING_RATE
from tuning.point import Point, compared_fields
from tuning.record.results import TrialResult

MIN_TRIALS = 6
"""With fewer, the best trials say nothing about the axes."""
TOP_SHARE = 0.25
"""Trials that count as the best."""
ABSENT = "(does not apply)"
"""The value of a field where its axis does not apply."""
MAX_CHOICES = 6
"""A number with more values was drawn from a range."""


def rank_axes(trials: Sequence[TrialResult]) -> dict[str, float]:
    """Return the share of each axis, the largest first, of equals the network; together they are 1.

    PED-ANOVA compares the distribution of the best quarter of the trials with that of all: an axis
    matters if the best are concentrated on some of its values.

    Source: Watanabe et al. 2023, https://arxiv.org/abs/2304.10255.

    Returns:
        By dotted config path; empty if fewer than 6 trials have a val/top1, or the worst is as good
        as the best quarter. An axis of one value has 0.
    """
    measured = [row for row in trials if row.val_top1 is not None]
    top1s = sorted((row.val_top1 or 0.0 for row in measured), reverse=True)
    if len(top1s) < MIN_TRIALS or top1s[ceil(TOP_SHARE * len(top1s)) - 1] == top1s[-1]:
        return {}
    points = [row.point for row in measured]
    fields = compared_fields(points)
    columns = {field: _take_column(field, points) for field in fields}
    searched = {
        field: _distribution(field, _distinct(values))
        for field, values in columns.items()
        if len(_distinct(values)) > 1
    }
    if not searched:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.create_trial(
                params={field: columns[field][number] for field in searched},
                distributions=searched,
                value=row.val_top1,
            )
            for number, row in enumerate(measured)
        ]
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=TOP_SHARE)
    found = evaluator.evaluate(study)
    total = sum(found.values())
    if total == 0:
        return {}
    shares = {field: found.get(field, 0.0) / total for field in fields}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


def _take_column(field: str, points: Sequence[Point]) -> list[Any]:
    """Return the value of each point; where the axis applies to some points alone, categories."""
    values = [point.get(field, ABSENT) for point in points]
    present = _distinct(value for value in values if value != ABSENT)
    if len(present) == len(_distinct(values)) or not _is_drawn(field, present):
        return values
    median = sorted(present)[len(present) // 2]
    return [v if v == ABSENT else "low" if v < median else "high" for v in values]


def _is_drawn(field: str, values: Sequence[Any]) -> bool:
    are_numbers = all(type(value) in (int, float) for value in values)
    return are_numbers and (field == LEARNING_RATE or len(values) > MAX_CHOICES)


def _distribution(field: str, choices: list[Any]) -> BaseDistribution:
    if not _is_drawn(field, choices):
        return CategoricalDistribution(choices)
    low, high = min(choices), max(choices)
    is_log = low > 0 and (field == LEARNING_RATE or high >= 10 * low)
    return FloatDistribution(low, high, log=is_log)
