"""The budget of a sweep: what it may take, and what happens when it is spent."""

import json
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.io.errors import UserError
from cluster.runtime import Resources
from datasets.manifest_file import read_manifest
from tests.support.sweeps import Status, write_sweep
from tests.support.waiting import wait_until
from trainers.recipes import finetune
from tuning import run
from tuning.budget import deadline
from tuning.budget.config import BudgetConfig, Spent, parse_duration_s
from tuning.budget.deadline import WATCH_EVERY_S, BudgetClock, BudgetSpent, read_spent
from tuning.commands import parse_sweep
from tuning.config import TuningConfig
from tuning.ending import describe_cut
from tuning.record.record import SweepRecord
from tuning.sharing.prefixes import PrefixStore
from tuning.sweep_plan import SweepPlan


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
    assert budget.left_s(num_gpus=1) == 7200
    assert budget.left_s(num_gpus=8) == 1800
    assert replace(budget, cost=2.5).left_s(num_gpus=1) == 900
    assert BudgetConfig().left_s(num_gpus=0) is None


def test_sessions_on_clusters_of_other_sizes_and_prices(tmp_path: Path) -> None:
    """Of 4 GPU hours, or 20 of money, the first session took half an hour on 4 GPUs at 16, the
    last 10 minutes of it for a promotion."""
    gpus, cheap = BudgetConfig(gpu_hours=4), BudgetConfig(cost=20, price_per_hour=4)
    out = str(tmp_path)
    clock = BudgetClock(out, None, num_gpus=4, price_per_hour=16.0)
    clock._started_s = time.monotonic() - 1800
    clock._promotes_from_s = clock._started_s + 1200
    clock.write()
    spent = read_spent(out)
    assert (spent.seconds, spent.promoted_s) == pytest.approx((1200, 600), rel=0.01)
    assert (spent.gpu_s, spent.promoted_gpu_s) == pytest.approx((7200, 2400), rel=0.01)
    assert (spent.cost, spent.promoted_cost) == pytest.approx((8, 8 / 3), rel=0.01)
    assert gpus.left_s(num_gpus=1, spent=spent) == pytest.approx(7200, rel=0.01)
    assert gpus.left_s(num_gpus=8, spent=spent) == pytest.approx(900, rel=0.01)
    assert cheap.left_s(num_gpus=1, spent=spent) == pytest.approx(3 * 3600, rel=0.01)
    BudgetClock(out, None, num_gpus=1).write()  # of no price
    assert read_spent(out).cost is None
    assert cheap.left_s(num_gpus=1, spent=read_spent(out)) == pytest.approx(
        5 * 3600 - 1800, rel=0.01
    )

    (tmp_path / "spent.json").write_text(json.dumps({"seconds": 90.0}))  # of an older Thaw
    unknown = {"gpu_s": None, "cost": None, "promoted_gpu_s": None, "promoted_cost": None}
    assert read_spent(out) == Spent(seconds=90.0, **unknown)
    assert gpus.left_s(num_gpus=2, spent=read_spent(out)) == 7200 - 90


def test_a_limit_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"budget.cost is 20: give the price of the cluster"):
        BudgetConfig(cost=20)
    with pytest.raises(ValueError, match=r"budget.gpu_hours is 4: the cluster has no GPU"):
        BudgetConfig(gpu_hours=4).left_s(num_gpus=0)


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


HOUR = 3600.0


@pytest.mark.parametrize(
    ("limit", "promote", "num_gpus", "spent", "hours"),
    [
        ({"time": "1h"}, False, 0, Spent(), 1.0),
        ({"time": "1h"}, True, 0, Spent(), 0.5),
        ({}, True, 0, Spent(), None),
        # Of 90 minutes, trials had 30 and their promotion 30.
        ({"time": "90m"}, True, 0, Spent(seconds=HOUR / 2, promoted_s=HOUR / 2), 0.75),
        ({"time": "90m"}, False, 0, Spent(seconds=HOUR / 2, promoted_s=HOUR / 2), 1.0),
        # Trials don't take what the promotion took of their half.
        ({"time": "1h"}, True, 0, Spent(seconds=0.1 * HOUR, promoted_s=0.8 * HOUR), 0.2),
        # Of 8 GPU hours, trials took 2 on one GPU, and have 2 more on 8; and the other way round.
        ({"gpu_hours": 8}, True, 8, Spent(seconds=2 * HOUR, gpu_s=2 * HOUR), 2.25),
        ({"gpu_hours": 8}, True, 1, Spent(seconds=HOUR / 4, gpu_s=2 * HOUR), 2.25),
        # Of 16, trials and promotion took 4 each on one GPU.
        (
            {"gpu_hours": 16},
            True,
            8,
            Spent(
                seconds=4 * HOUR,
                promoted_s=4 * HOUR,
                gpu_s=8 * HOUR,
                promoted_gpu_s=4 * HOUR,
            ),
            4.5,
        ),
        # Of 20 in money, trials took 2 at a price of 1; now it is 4.
        ({"cost": 20, "price_per_hour": 4}, True, 0, Spent(seconds=2 * HOUR, cost=2.0), 4.0),
    ],
)
def test_half_of_each_limit_is_for_the_promotion(
    limit: dict[str, Any], promote: bool, num_gpus: int, spent: Spent, hours: float | None
) -> None:
    sweep = parse_sweep("finetune", ["--data", "cars"], "")
    assert isinstance(sweep, TuningConfig)
    sweep = replace(sweep, promote=promote, budget=BudgetConfig(**limit))
    seconds = sweep.sweep_s(num_gpus, spent)
    assert seconds == (None if hours is None else pytest.approx(hours * HOUR))


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


def test_a_promotion_counts_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session of 50 s, the last 30; also of a driver that is killed then."""
    monkeypatch.setattr(deadline, "WRITE_EVERY_S", 0.05)
    clock = BudgetClock(str(tmp_path), 60.0, num_gpus=2)
    clock._started_s -= 20.0
    with clock.counted(promotes=True):
        clock._promotes_from_s -= 30.0
        clock._started_s -= 30.0
        wait_until(lambda: read_spent(str(tmp_path)).promoted_s >= 30.0, "its seconds")
        killed = read_spent(str(tmp_path))
    ended = read_spent(str(tmp_path))
    for spent in (killed, ended):
        assert (spent.seconds, spent.promoted_s) == pytest.approx((20.0, 30.0), abs=5.0)
        assert (spent.gpu_s, spent.promoted_gpu_s) == pytest.approx((100.0, 60.0), abs=20.0)
    again = BudgetClock(str(tmp_path), 60.0)
    assert again.spent_s == pytest.approx(20.0, abs=5.0)
    again.write()
    assert read_spent(str(tmp_path)).promoted_s == ended.promoted_s


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
    with clock.bound():
        time.sleep(WATCH_EVERY_S + 0.5)


def test_what_comes_before_the_trials_may_end_as_the_budget_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt, is_late = signal.pthread_kill, threading.Event()
    handler = signal.getsignal(signal.SIGINT)

    def interrupt_late(thread: int, number: int) -> None:
        is_late.set()
        time.sleep(0.2)
        interrupt(thread, number)

    monkeypatch.setattr(signal, "pthread_kill", interrupt_late)
    with pytest.raises(BudgetSpent), BudgetClock(str(tmp_path), 0.2).bound():
        assert is_late.wait(30)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_driver_that_is_killed_has_spent_its_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "WRITE_EVERY_S", 0.05)
    clock, out = BudgetClock(str(tmp_path), 60.0), str(tmp_path)
    with pytest.raises(KeyboardInterrupt), clock.counted():
        wait_until(lambda: read_spent(out).seconds > 0, "its seconds")
        before_s = read_spent(out).seconds
        wait_until(lambda: read_spent(out).seconds > before_s, "more seconds")
        raise KeyboardInterrupt
    assert read_spent(out).seconds > before_s


@pytest.mark.parametrize("status", ["stopped", "running"])
def test_a_spent_budget_ends_a_sweep_that_was_interrupted(tmp_path: Path, status: Status) -> None:
    """By Ctrl-C, or as its driver was killed, with two trials running and two not started."""
    out = write_sweep(tmp_path / "sweep", trials=6, status=status)
    config = SweepRecord.read(out).config
    manifest = read_manifest(config.base.data)
    resources = Resources(num_nodes=1, num_cpus=2.0, num_gpus=0, memory_gib=4, object_store_gib=1)
    plan = SweepPlan(
        config=config, manifest=manifest, resources=resources, num_trials=8, num_concurrent=1
    )
    store = PrefixStore(config, manifest, resources)
    record, _ = run._execute(plan, store, BudgetClock(out, 0.0))
    assert (record.status, len(record.trials), record.winner is not None) == ("ended", 6, True)
    assert [row.rank for row in record.trials] == [1, 2, 3, 4, 5, 6]
    assert (describe_cut(record) or "").startswith(
        "Budget:       spent; 2 trials were stopped, and 2 of 8 not started; run the same command"
    )
    empty = replace(plan, config=replace(config, out=str(tmp_path / "empty")))
    with pytest.raises(UserError, match="spent before the first trial"):
        run._execute(empty, store, BudgetClock(empty.config.out, 0.0))
