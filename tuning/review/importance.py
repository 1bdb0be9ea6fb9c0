"""Importance of each axis of a sweep."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from tuning.leaderboard import TrialResult
from tuning.space import AXES, LEARNING_RATE

MIN_TRIALS = 6
"""With fewer, the best trials say nothing about the axes."""
TOP_SHARE = 0.25
"""Trials that count as the best."""


def rank_axes(trials: Sequence[TrialResult]) -> dict[str, float]:
    """Return the share of each axis, the largest first; together they are 1.

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
    choices = {axis: _distinct(row.point[axis] for row in measured) for axis in AXES}
    searched = {axis: _distribution(axis, of) for axis, of in choices.items() if len(of) > 1}
    if not searched:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.create_trial(
                params={axis: row.point[axis] for axis in searched},
                distributions=searched,
                value=row.val_top1,
            )
            for row in measured
        ]
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=TOP_SHARE)
    found = evaluator.evaluate(study)
    total = sum(found.values())
    if total == 0:
        return {}
    shares = {axis: found.get(axis, 0.0) / total for axis in AXES}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


def _distribution(axis: str, choices: list[Any]) -> BaseDistribution:
    if axis == LEARNING_RATE:
        return FloatDistribution(min(choices), max(choices), log=True)
    return CategoricalDistribution(choices)
