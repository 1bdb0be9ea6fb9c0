"""Which head-only trials train together, without training."""

from dataclasses import replace

import pytest

from trainers.config import FinetuneConfig, OptimConfig
from tuning.config import TuningConfig
from tuning.sharing.rounds import HeadProgress, HeadRounds

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
    # By ASHA's rule in this order: 0, the first, then what is among the best third of those before.
    assert [config.out for config in following.configs] == ["0", "2", "4", "5"]
    assert rounds.take("2") is None, "others train it"


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
