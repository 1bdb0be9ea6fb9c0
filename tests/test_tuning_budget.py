"""The budget of a sweep: what it may take, and what happens when it is spent."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.io.errors import UserError
from tests.support.waiting import wait_until
from trainers.recipes import finetune
from tuning.budget.config import BudgetConfig, Spent, parse_duration_s
from tuning.budget.deadline import WRITE_EVERY_S, BudgetClock, read_spent
from tuning.commands import parse_sweep
from tuning.config import TuningConfig


@pytest.mark.parametrize(
    ("text", "seconds"), [("45m", 2700), ("2h", 7200), ("1h30m", 5400), ("90s", 90), ("0.5h", 1800)]
)
def test_a_duration(text: str, seconds: float) -> None:
    assert parse_duration_s("budget.time", text) == seconds


@pytest.mark.parametrize("text", ["45", "m", "", "0m", "-5m", "2 h", "1h x", "1w"])
def test_what_is_no_duration_names_the_remedy(text: str) -> None:
    with pytest.raises(ValueError, match=r"budget.time is .*: give a time such as 45m, 2h"):
        BudgetConfig(time=text)


def test_the_smallest_limit_counts() -> None:
    budget = BudgetConfig(time="2h", gpu_hours=4, cost=20, price_per_hour=10)
    assert budget.seconds(num_gpus=1) == 7200
    assert budget.seconds(num_gpus=8) == 1800
    assert replace(budget, cost=2.5).seconds(num_gpus=1) == 900
    assert BudgetConfig().seconds(num_gpus=0) is None


def test_sessions_on_clusters_of_other_sizes_and_prices(tmp_path: Path) -> None:
    """Of 4 GPU hours, or 20 of money, the first session took half an hour on 4 GPUs at 16."""
    gpus, cheap = BudgetConfig(gpu_hours=4), BudgetConfig(cost=20, price_per_hour=4)
    out = str(tmp_path)
    clock = BudgetClock(out, None, num_gpus=4, price_per_hour=16.0)
    clock._started_s = time.monotonic() - 1800
    clock.write(promoted_s=600)
    spent = read_spent(out)
    assert (spent.seconds, spent.promoted_s) == pytest.approx((1200, 600), rel=0.01)
    assert (spent.gpu_s, spent.cost) == pytest.approx((7200, 8), rel=0.01)
    assert gpus.seconds(num_gpus=1, spent=spent) == pytest.approx(1800 + 7200, rel=0.01)
    assert gpus.seconds(num_gpus=8, spent=spent) == pytest.approx(1800 + 900, rel=0.01)
    assert cheap.seconds(num_gpus=1, spent=spent) == pytest.approx(1800 + 3 * 3600, rel=0.01)
    BudgetClock(out, None, num_gpus=1).write()  # of no price
    assert read_spent(out).cost is None
    assert cheap.seconds(num_gpus=1, spent=read_spent(out)) == 5 * 3600

    (tmp_path / "spent.json").write_text(json.dumps({"seconds": 90.0}))  # of an older Thaw
    assert read_spent(out) == Spent(seconds=90.0, gpu_s=None, cost=None)
    assert gpus.seconds(num_gpus=2, spent=read_spent(out)) == 7200


def test_a_limit_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"budget.cost is 20: give the price of the cluster"):
        BudgetConfig(cost=20)
    with pytest.raises(ValueError, match=r"budget.gpu_hours is 4: the cluster has no GPU"):
        BudgetConfig(gpu_hours=4).seconds(num_gpus=0)


def test_the_command_line() -> None:
    options = [
        "--data",
        "cars",
        "--budget",
        "45m",
        "--budget-cost",
        "20",
        "--price-per-hour",
        "3.5",
    ]
    sweep = parse_sweep("finetune", options, "")
    assert isinstance(sweep, TuningConfig)
    assert sweep.budget == BudgetConfig(time="45m", cost=20, price_per_hour=3.5)
    assert TuningConfig.from_dict(sweep.to_dict()) == sweep


def test_half_of_a_budget_is_for_the_promotion() -> None:
    options = ["--data", "cars", "--budget", "1h"]
    alone, promoted = (parse_sweep("finetune", options + more, "") for more in ([], ["--promote"]))
    assert isinstance(alone, TuningConfig) and isinstance(promoted, TuningConfig)
    assert (alone.sweep_s(0), promoted.sweep_s(0)) == (3600, 1800)
    assert replace(promoted, budget=BudgetConfig()).sweep_s(0) is None


def test_the_budget_may_shorten_trials_whose_epochs_are_not_given() -> None:
    options = ["--data", "cars", "--budget", "1h"]
    free, given = (parse_sweep("finetune", options + more, "") for more in ([], ["--epochs", "4"]))
    assert isinstance(free, TuningConfig) and isinstance(given, TuningConfig)
    assert free.full_epochs == free.base.epochs == finetune().epochs
    assert (given.full_epochs, given.base.epochs) == (None, 4)


def test_sessions_add_up(tmp_path: Path) -> None:
    clock = BudgetClock(str(tmp_path), 100.0)
    assert 90 < clock.left_s <= 95, "a part is kept for the winner's test"
    clock.keep(8.0)
    assert 85 < clock.left_s <= 90, "its estimate, with a margin"
    clock.keep(1e6)
    assert 45 < clock.left_s <= 50, "at most half"
    (tmp_path / "spent.json").write_text(json.dumps({"seconds": 90.0}))
    clock = BudgetClock(str(tmp_path), 100.0)
    assert 0 < clock.left_s <= 5
    clock.write()
    assert 90 <= json.loads((tmp_path / "spent.json").read_text())["seconds"] < 95
    assert BudgetClock(str(tmp_path), 90.0).left_s <= 0
    clock.keep(4.0)
    clock.write()
    assert clock.left_s == pytest.approx(BudgetClock(str(tmp_path), 100.0).left_s, abs=3)
    assert BudgetClock(str(tmp_path), None).left_s > 1e9


def test_a_promotion_counts_apart(tmp_path: Path) -> None:
    """Of 100 s, 60 for the sweep's part; a promotion took 30 s of the session."""
    clock = BudgetClock(str(tmp_path), 60.0)
    clock.before = Spent(seconds=50.0)
    clock.write(promoted_s=30.0)
    again = BudgetClock(str(tmp_path), 60.0)
    assert (again.spent_s, again.promoted_s) == pytest.approx((20.0, 30.0), abs=1.0)
    again.write()
    assert BudgetClock(str(tmp_path), 60.0).promoted_s == 30.0


def test_what_comes_before_the_trials_ends_with_the_budget(tmp_path: Path) -> None:
    started_s = time.monotonic()
    clock, handler = BudgetClock(str(tmp_path), 1.0), signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError, match="spent before the first trial"), clock.bound():
        time.sleep(30)
    assert time.monotonic() - started_s < 25
    assert signal.getsignal(signal.SIGINT) is handler
    clock = BudgetClock(str(tmp_path), None)
    clock.end()
    with pytest.raises(UserError, match="stopped in W&B before its first trial"), clock.bound():
        time.sleep(30)


def test_what_comes_before_the_trials_may_be_interrupted_or_end(tmp_path: Path) -> None:
    clock = BudgetClock(str(tmp_path), 60.0)
    with pytest.raises(KeyboardInterrupt), clock.bound():
        signal.raise_signal(signal.SIGINT)
    clock._written_s -= WRITE_EVERY_S
    with clock.bound():
        wait_until((tmp_path / "spent.json").exists, "what is spent, for a driver that is killed")


def test_a_driver_that_is_killed_has_spent_its_seconds(tmp_path: Path) -> None:
    clock = BudgetClock(str(tmp_path), 60.0)
    clock.write_often()
    assert not (tmp_path / "spent.json").exists()
    clock._written_s -= WRITE_EVERY_S
    clock.write_often()
    assert (tmp_path / "spent.json").exists()
