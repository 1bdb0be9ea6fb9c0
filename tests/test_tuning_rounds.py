"""Which head-only trials train together, without training."""

import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from trainers import metrics
from trainers.config import FinetuneConfig, OptimConfig
from tuning.config import TuningConfig
from tuning.search import SweepASHA, build_scheduler
from tuning.sharing.quantiles import quantiles_of_others
from tuning.sharing.rounds import (
    NUM_COMPARED,
    HeadProgress,
    HeadRounds,
    start_rounds,
)

CONFIG = TuningConfig(base=FinetuneConfig(data="cars", epochs=9), grace_epochs=1)


def head(number: int, clipnorm: float | None = None) -> FinetuneConfig:
    optim = OptimConfig(learning_rate=1e-3 * (1 + number % 100), clipnorm=clipnorm)
    return FinetuneConfig(data="cars", epochs=9, out=str(number), optim=optim)


def progress(top1s: dict[int, float], peak_norm: float = 2.0) -> HeadProgress:
    epoch = max(top1s)
    return HeadProgress(epoch, top1s, peak_norm, is_over=epoch == 9)


def names(rounds: HeadRounds, out: str) -> list[str]:
    found = rounds.take(out)
    assert found is not None
    return [config.out for config in found.configs]


@pytest.fixture
def rounds() -> HeadRounds:
    rounds = HeadRounds(CONFIG, max_together=5, num_concurrent=1)
    for number in range(6):
        rounds.add(head(number), "cars")
    return rounds


def test_a_rung_is_trained_by_all_before_the_next(rounds: HeadRounds) -> None:
    first = rounds.take("0")
    assert first is not None and first.until == 1
    assert [config.out for config in first.configs] == ["0", "1", "2", "3", "4"]
    rounds.note({str(i): progress({1: top1}) for i, top1 in enumerate((0.5, 0.4, 0.6, 0.3, 0.7))})
    # Trial 0 is to continue, but one more can reach the first rung first.
    assert names(rounds, "0") == ["5"]
    rounds.note({"5": progress({1: 0.65})})
    following = rounds.take("0")
    assert following is not None and following.until == 3
    # 0 waits; the others are those that are better than two thirds of the rest.
    assert [config.out for config in following.configs] == ["0", "4", "5"]
    assert rounds.take("4") is None, "0 trains it"


def test_a_trial_reports_once_those_after_it_are_as_far(rounds: HeadRounds) -> None:
    rounds.take("0")
    rounds.note({str(i): progress({1: 0.5}) for i in range(5)})
    assert not rounds.may_report("0"), "5 has not begun"
    assert rounds.take("1", waits=False) is not None
    assert not rounds.may_report("0"), "5 is being trained"
    rounds.note({"5": progress({1: 0.9})})
    rounds.release("1")
    assert rounds.may_report("0")
    rounds.note({"5": progress({1: 0.9, 3: 0.9})})
    assert rounds.may_report("5") and rounds.may_report("0")
    assert rounds.top1s(3) == {"5": 0.9}
    rounds.end("4")
    assert rounds.may_report("3"), "those that are over are not waited for"


def test_a_trial_waits_for_few_of_many() -> None:
    rounds = HeadRounds(CONFIG, max_together=1 + NUM_COMPARED, num_concurrent=1)
    for number in range(2 * NUM_COMPARED):
        rounds.add(replace(head(number), out=str(number)), "cars")
    taken = names(rounds, "0")
    rounds.note({out: progress({1: 0.5}) for out in taken})
    assert rounds.may_report("0") and not rounds.may_report("1")


@pytest.mark.parametrize("share", [0.5, 2 / 3, 0.75])
@pytest.mark.parametrize("size", [2, 3, 4, 7, 100])
def test_quantiles_are_those_of_numpy_without_the_value(size: int, share: float) -> None:
    values_N = np.random.default_rng(size).integers(0, size, size) / size  # some are equal
    expected = [np.quantile(np.delete(values_N, i), share) for i in range(size)]
    np.testing.assert_allclose(quantiles_of_others(values_N, share), expected)


def test_the_first_result_is_compared_with_nothing() -> None:
    assert quantiles_of_others(np.array([0.5]), 0.5).tolist() == [-np.inf]


@pytest.mark.ray
def test_asha_compares_with_heads_whose_trials_have_not_started(ray_cluster: str) -> None:
    """In ascending order, where each trial is better than all that reported before it."""
    configs = [replace(head(number), out=f"sweep/trials/{number}") for number in range(6)]
    rounds = start_rounds(
        CONFIG, [(config, "cars") for config in configs], max_together=9, num_concurrent=1
    )
    results = {config.out: progress({1: 0.1 * i}) for i, config in enumerate(configs)}
    ray.get(rounds.note.remote(results))
    scheduler: Any = build_scheduler(CONFIG, rounds)
    scheduler.set_search_properties(metrics.VAL_TOP1, "max")

    def decide(number: int) -> str:
        trial: Any = SimpleNamespace(trial_id=str(number))
        scheduler.on_trial_add(None, trial)
        result = {metrics.EPOCH: 1, metrics.VAL_TOP1: 0.1 * number}
        return scheduler.on_trial_result(None, trial, result)

    decisions = [decide(number) for number in range(6)]
    assert decisions == ["STOP"] * 4 + ["CONTINUE"] * 2
    assert isinstance(pickle.loads(pickle.dumps(scheduler)), SweepASHA), "without the actor"
    again = SimpleNamespace(trial_id="5")
    worse = {metrics.EPOCH: 1, metrics.VAL_TOP1: 0.0}
    assert scheduler.on_trial_result(None, again, worse) == "CONTINUE", "it has passed"


def test_a_process_trains_others_while_its_own_trial_is_trained() -> None:
    rounds = HeadRounds(CONFIG, max_together=5, num_concurrent=2)
    for number in range(6):
        rounds.add(head(number), "cars")
    assert names(rounds, "0") == ["0", "1", "2"]
    assert names(rounds, "1") == ["3", "4"]
    rounds.end("0")  # it failed: its round is free again, and so is that of 1, which asks again
    assert names(rounds, "1") == ["1", "2", "3"]


def test_a_tighter_clipnorm_waits_for_the_looser_one() -> None:
    """They may be one training, which the second is then copied from."""
    rounds = HeadRounds(CONFIG, max_together=9, num_concurrent=1)
    for out, number, clipnorm in (("a", 0, None), ("b", 0, 3.0), ("c", 0, 1.0), ("d", 1, None)):
        rounds.add(replace(head(number, clipnorm), out=out), "cars")
    assert names(rounds, "a") == ["a", "d"]
    rounds.note({"a": progress({1: 0.5}), "d": progress({1: 0.1})})
    rounds.end("a")
    # The largest gradient, 2, was clipped by 1 and not by 3; b is trained as it waits for it.
    assert names(rounds, "d") == ["d"], "d continues; c is not next, as b has not begun"
    rounds.note({"d": progress({1: 0.1, 3: 0.1})})
    assert names(rounds, "b") == ["b"]
    rounds.note({"b": progress({1: 0.5})})
    assert names(rounds, "b") == ["c"]


def test_trials_of_other_features_train_apart(rounds: HeadRounds) -> None:
    rounds.add(replace(head(7), out="7"), "other")
    assert names(rounds, "7") == ["7"]
