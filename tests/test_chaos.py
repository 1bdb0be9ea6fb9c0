"""What `make chaos` is made of; the faults themselves take minutes and are not run here."""

import json
from pathlib import Path

import pytest

from tests.chaos.__main__ import ChaosConfig
from tests.chaos.arena import Arena
from tests.chaos.faults import FAULTS
from tests.chaos.outcomes import Outcome, read_outcomes, write_outcomes
from tests.chaos.sabotage import Plan, sabotaged, steps_taken, struck
from tests.support.small import small_training
from tests.support.training import train_here
from trainers.config import ClusterConfig, FinetuneConfig, ModelConfig, TrackConfig
from trainers.run import checkpoint
from trainers.run.rows import read_rows

ASKED = {  # how many faults begin so
    "worker SIGKILL": 6,
    "worker SIGSTOP": 1,
    "worker exit 137": 1,
    "raylet SIGKILL in mid-epoch": 1,
    "network between two nodes": 1,
    "network of a node": 1,
    "GCS restarted under": 2,
    "clock an hour off": 1,
    "memory monitor kills": 1,
    "object store and disk full": 1,
    "storage hangs for 90 s": 1,
    "storage at 100 kB/s": 1,
    "driver SIGKILL": 1,
    "driver SIGTERM": 1,
    "two drivers, one folder": 1,
    "cluster lost whole": 1,
    "checkpoint torn at 20 offsets": 1,
    "disk full": 1,
    "storage read-only": 1,
    "S3 answers 503": 2,
    "elastic 2 -> 1 -> 2 workers": 1,
    "trial of 8 that raises": 1,
    "trial of 8 that turns NaN": 1,
    "trial of 8 SIGKILLed": 1,
    "trial of 8 that hangs": 1,
    "sweep driver SIGKILL": 1,
    "preemption notice": 1,
    "failure budget": 2,
    "W&B's service SIGKILL": 1,
}


def test_every_fault_the_issue_asks_for_is_there() -> None:
    assert {name: sum(fault.startswith(name) for fault in FAULTS) for name in ASKED} == ASKED
    assert len(FAULTS) == sum(ASKED.values())


def test_some_faults_are_chosen_by_how_they_begin() -> None:
    chosen = ChaosConfig(only=("trial", "disk full")).choose()

    assert chosen == [name for name in FAULTS if name.startswith(("trial", "disk"))]
    assert ChaosConfig().choose() == list(FAULTS)
    with pytest.raises(ValueError, match="only is 'meteor': choose from worker SIGKILL at its"):
        ChaosConfig(only=("meteor",)).choose()


def test_outcomes_of_several_runs_make_one_table(tmp_path: Path) -> None:
    order = ["one", "two", "three"]
    two = Outcome(fault="two", injected="a | b", survived=False, lost="unknown", seen="Unfit:\nx")
    write_outcomes(tmp_path, [two], order)
    write_outcomes(tmp_path, [Outcome(fault="one", injected="c", survived=True, lost="1")], order)
    table = (tmp_path / "chaos.md").read_text().splitlines()

    assert table[2] == "| one | c | yes | 1 |  | 0 s |"
    assert table[3] == "| two | a \\| b | **no** | unknown | Unfit: x | 0 s |"
    assert table[-1] == "1 of 2 faults survived; seed 0."
    assert read_outcomes(tmp_path)["two"] == two
    assert [row["fault"] for row in json.loads((tmp_path / "chaos.json").read_text())] == order[:2]


def test_straight_runs_of_other_code_are_not_compared_with(tmp_path: Path) -> None:
    Arena(tmp_path, seed=0)
    straight = tmp_path / "straight-2"
    straight.mkdir()
    Arena(tmp_path, seed=0)

    assert straight.is_dir()
    (tmp_path / "code").write_text("of another state")
    Arena(tmp_path, seed=0)
    assert not straight.exists() and (tmp_path / "data" / "manifest.json").exists()


@pytest.fixture
def config(ray_cluster: str, easy_data: str, tmp_path: Path) -> FinetuneConfig:
    return small_training(
        easy_data,
        str(tmp_path / "run"),
        epochs=2,
        checkpoint_every_steps=500,
        model=ModelConfig(backbone="lenet5", init="he"),
        track=TrackConfig(log_every_steps=1, wandb="off"),
        cluster=ClusterConfig(num_workers=0),
    )


@pytest.mark.ray
def test_a_struck_training_goes_on_and_every_step_is_counted(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    plan = Plan(journal=str(tmp_path), act="raise", step=4)
    for attempt in range(2):
        with sabotaged(plan, config.out):
            if attempt == 0:
                with pytest.raises(RuntimeError, match="chaos"):
                    train_here(config)
            else:
                train_here(config)

    assert len(struck(tmp_path)) == 1
    assert [step for _, step, _ in steps_taken(tmp_path)] == [0, 1, 2, 3, 3, 4, 5]
    assert [row["global_step"] for row in read_rows(config.out)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.ray
def test_once_its_end_is_announced_a_run_keeps_a_checkpoint_with_every_row(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    save = checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda *args: (kept.append(args[2].global_step), save(*args))
    )
    from trainers.launch import worker_here
    from trainers.loop.loop import train
    from trainers.prepare import prepare_run

    notices = iter([False, True, True, True])
    run = prepare_run(config, here=True)
    worker = worker_here(run.config.cluster, run.workers)
    train(run, worker, lambda row: None, preemption_pending=lambda: next(notices))

    assert kept == [2, 3, 4, 5, 6]
