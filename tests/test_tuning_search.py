"""Search algorithms and ASHA, driven without a cluster."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from trainers.config import FinetuneConfig, ModelConfig
from tuning.axes.axis import INIT
from tuning.config import SpaceConfig, TuningConfig
from tuning.search import (
    STATE_FOLDER,
    build_scheduler,
    build_search,
    build_tuner,
    can_restore,
    count_trials,
)
from tuning.space import point_of, points

SPACE = SpaceConfig(freeze_depths=("all", 2), clipnorms=(None,), inits=("file", "he"))


def sweep(epochs: int = 9, **values: Any) -> TuningConfig:
    base = FinetuneConfig(data="d", epochs=epochs, model=ModelConfig(weights="w"))
    return TuningConfig(base=base, space=SPACE, **values)


def test_random_search_walks_through_its_points() -> None:
    config = sweep(trials=5, seed=3)
    params, search = build_search(config)
    assert search is None
    assert params == {"point": {"grid_search": points(SPACE, "random", 5, 3)}}
    assert point_of({"point": {INIT: "he"}}) == {INIT: "he"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 9),  # all there are
        ({"trials": 5}, 5),
        ({"search": "grid"}, 9),
        ({"search": "optuna"}, 12),
        ({"search": "optuna", "trials": 40}, 40),
    ],
)
def test_number_of_trials(values: dict, expected: int) -> None:
    assert count_trials(sweep(**values)) == expected


def run_optuna(search: Any, first: int, last: int) -> list[dict]:
    drawn = []
    for number in range(first, last):
        params = search.suggest(str(number))
        search.on_trial_complete(
            str(number), {"val/top1": 0.9 if params[INIT] == "file" else 0.1}, error=False
        )
        drawn.append(params)
    return drawn


def test_optuna_learns_and_follows_its_seed() -> None:
    drawn = run_optuna(build_search(sweep(search="optuna", seed=1))[1], 0, 40)
    again = run_optuna(build_search(sweep(search="optuna", seed=1))[1], 0, 40)
    assert drawn == again
    assert sum(params[INIT] == "file" for params in drawn[20:]) >= 15


def test_optuna_remembers_after_a_restart() -> None:
    search = build_search(sweep(search="optuna", seed=1))[1]
    run_optuna(search, 0, 20)
    revived = pickle.loads(pickle.dumps(search))
    assert run_optuna(revived, 20, 30) == run_optuna(search, 20, 30)


def decide(scheduler: TrialScheduler, name: str, epoch: int, top1: float) -> str:
    trial: Any = SimpleNamespace(trial_id=name)
    controller: Any = None
    if epoch == 1:
        scheduler.on_trial_add(controller, trial)
    return scheduler.on_trial_result(controller, trial, {"epoch": epoch, "val/top1": top1})


def test_asha_stops_the_weak() -> None:
    scheduler = build_scheduler(sweep(epochs=9))
    assert isinstance(scheduler, ASHAScheduler)
    scheduler.set_search_properties("val/top1", "max")
    decisions = [decide(scheduler, f"strong {i}", 1, 0.5 + i / 100) for i in range(3)]
    assert decisions == ["CONTINUE"] * 3
    assert decide(scheduler, "weak", 1, 0.1) == "STOP"
    assert decide(scheduler, "strong 2", 3, 0.9) == "CONTINUE"
    assert decide(scheduler, "strong 1", 3, 0.2) == "STOP"


@pytest.mark.parametrize("epochs", [2, 3, 4, 9, 10, 27])
def test_asha_has_no_rung_at_the_last_epoch(epochs: int) -> None:
    """There a trial writes its result by itself; stopped, its workers would be killed at it."""
    scheduler = build_scheduler(sweep(epochs=epochs))
    scheduler.set_search_properties("val/top1", "max")
    for name, top1 in (("strong", 0.9), ("weaker", 0.8)):
        for epoch in range(1, epochs):
            decide(scheduler, name, epoch, 0.9)
        assert decide(scheduler, name, epochs, top1) == "CONTINUE"


def test_no_rung_below_the_last_epoch_means_no_pruning() -> None:
    assert isinstance(build_scheduler(sweep(epochs=1)), FIFOScheduler)
    assert isinstance(build_scheduler(sweep(epochs=4, grace_epochs=4)), FIFOScheduler)


def test_tunes_state_is_in_the_sweeps_folder_whatever_its_name(tmp_path: Path) -> None:
    """In a URI, Tune would read %41 as an A."""
    config = sweep(out=f"file://{tmp_path}/my runs/50% #1 %41")
    assert not can_restore(config)
    build_tuner(config, lambda point: None, [], num_concurrent=1)

    assert list(tmp_path.rglob("tuner.pkl")) == [
        tmp_path / "my runs/50% #1 %41" / STATE_FOLDER / "tuner.pkl"
    ]
    assert can_restore(config)
