"""Sweeps on a real cluster of trainings that only pretend, and real ones that are stopped.

A sweep of real ones to its end: test_tuning_resume.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.tune
import torch

from cluster.config import ClusterConfig
from cluster.io.errors import UserError
from cluster.io.lease import hold_lease
from datasets.config import IngestConfig
from datasets.manifest import Manifest
from tests.conftest import ROOT
from tests.support.programs.stopped_trials import stop_trials
from tests.support.waiting import wait_until
from trainers.config import ComputeConfig, FinetuneConfig, ModelConfig, TrackConfig
from trainers.networks import backbones
from tuning import run, trials
from tuning.axes.axis import FREEZE_DEPTH, INIT, LEARNING_RATE
from tuning.budget import deadline
from tuning.budget.config import BudgetConfig, parse_duration_s
from tuning.budget.deadline import read_spent
from tuning.budget.estimate import Forecast
from tuning.config import SpaceConfig, TuningConfig
from tuning.progress import progress
from tuning.promotion import promote
from tuning.promotion.config import PromoteConfig
from tuning.record.states import TrialStates
from tuning.run import tune_sweep
from tuning.shared import config_of
from tuning.space import point_of

pytestmark = pytest.mark.ray

SPACE = SpaceConfig(
    freeze_depths=("all", 0),
    learning_rates=(1e-2, 1e-3),
    clipnorms=(None,),
    inits=("file", "zeros"),
)
SCORES = {("file", "all"): 0.7, ("file", 0): 0.9, ("zeros", 0): 1 / 3}


@pytest.fixture
def sweep(tmp_path: Path, easy_data: str, ray_cluster: str) -> TuningConfig:
    """A grid of 6 trials over 3 networks and 2 rates, one at a time."""
    weights = tmp_path / "weights.pth"
    torch.save(backbones.build("mobilenet_v2", 3).state_dict(), weights)
    base = FinetuneConfig(
        data=easy_data,
        epochs=4,
        global_batch_size=12,
        ingest=IngestConfig(size_px=32, policy="none"),
        model=ModelConfig(backbone="mobilenet_v2", weights=str(weights)),
        track=TrackConfig(wandb="off"),
        compute=ComputeConfig(precision="fp32"),
        cluster=ClusterConfig(num_workers=6),
    )
    return TuningConfig(
        base=base,
        space=SPACE,
        out=str(tmp_path / "sweep"),
        search="grid",
        max_failures=0,
        evaluate_winner=False,
        share=False,
    )


def pretend(
    config: TuningConfig, before: Callable[[dict, int], None] = lambda point, epoch: None
) -> Callable[..., Any]:
    """Return a stand-in for `build_trial` whose trials know their scores beforehand."""

    def build(_config: TuningConfig, *_: Any, **__: Any) -> Callable[[dict], None]:
        def trial(params: dict) -> None:
            trial_id = ray.tune.get_context().get_trial_id()
            assert trial_id is not None
            training = config_of(config, point_of(params), trial_id)
            point = point_of(params)
            folder = Path(training.out)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(json.dumps(training.to_dict()))
            with (folder / "starts").open("a") as starts:
                starts.write(f"{os.getpid()}\n")
            with (folder / "metrics.jsonl").open("w") as rows:
                for epoch in range(1, training.epochs + 1):
                    before(point, epoch)
                    better = 0.001 * epoch if point[INIT] == "file" else 0.0
                    row = {
                        "epoch": epoch,
                        "global_step": epoch,
                        "val/top1": SCORES[point[INIT], point[FREEZE_DEPTH]] + better,
                        "time/total_s": float(epoch),
                    }
                    rows.write(json.dumps(row) + "\n")
                    rows.flush()
                    ray.tune.report(row)

        return ray.tune.with_resources(trial, {"cpu": 0.5})

    return build


class Mirror:
    """A stand-in for `RunMirror` that remembers how every run ended."""

    ended: list[str]

    def __init__(self, config: FinetuneConfig, manifest: Manifest, **options: Any) -> None:
        self.config, self.options = config, options

    def finish(self, state: str) -> None:
        assert self.config.track.group == self.options["group"]
        Mirror.ended.append(state)

    def close(self, **_: Any) -> str:
        return f"python -m trainers track sync {self.config.out}"


@pytest.fixture(autouse=True)
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Mirror.ended = []
    monkeypatch.setattr(progress, "RunMirror", Mirror)
    monkeypatch.setattr(run, "start_runner", lambda: None)
    yield


def starts(config: TuningConfig) -> dict[str, list[str]]:
    """The processes that each trial was started in, by trial."""
    return {
        path.parent.name: path.read_text().split()
        for path in Path(config.out, "trials").glob("*/starts")
    }


def test_sweep_prunes_ranks_and_is_reused(
    sweep: TuningConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trials, "build_trial", pretend(sweep))
    handler = signal.getsignal(signal.SIGINT)
    answer = tune_sweep(sweep)
    printed = capfd.readouterr().out

    assert signal.getsignal(signal.SIGINT) is handler, "Ctrl-C ends what follows the trials"
    assert len(answer["trials"]) == 6
    assert answer["winner"][FREEZE_DEPTH] == 0 and answer["winner"][INIT] == "file"
    assert [row["val_top1"] for row in answer["trials"][:2]] == [0.904, 0.904]
    zeros = [row for row in answer["trials"] if row[INIT] == "zeros"]
    assert [row["verdict"] for row in zeros] == ["does not learn"] * 2
    pruned = [row for row in answer["trials"] if row["state"] == "pruned"]
    assert pruned and all(row["num_epochs"] < 4 for row in pruned)
    assert sorted(Mirror.ended) == sorted(row["state"] for row in answer["trials"])

    assert "Sweep of 6 trials of mobilenet_v2, grid search, 4 epochs at most" in printed
    assert "left out 1 pairs: zeros with freeze depth all" in printed
    assert "epoch 1/4  val/top1 0.701  (best" in printed
    assert f"Sync W&B:     python -m trainers track sync {sweep.out}" in printed
    assert f"--out {sweep.out}/longer --epochs 12" in printed
    for name in ("leaderboard.json", "leaderboard.csv", "config.json"):
        assert Path(sweep.out, name).exists()

    # Pruned or not, a trial hands its process on to the next.
    assert len({pid for pids in starts(sweep).values() for pid in pids}) == 1

    before = starts(sweep)
    with pytest.raises(SystemExit) as end:
        tune_sweep(replace(sweep, promote=True), explain=True)
    assert end.value.code == 0 and "finished: reusing it" in capfd.readouterr().out
    assert tune_sweep(sweep) == answer
    assert "finished: reusing it" in capfd.readouterr().out
    assert starts(sweep) == before

    promotions: list[PromoteConfig] = []
    spent_s = read_spent(sweep.out).seconds

    def run_promote(config: PromoteConfig) -> dict[str, Any]:
        promotions.append(config)
        wait_until(lambda: read_spent(sweep.out).promoted_s > 0, "seconds of the promotion")
        assert read_spent(sweep.out).seconds < spent_s + 60.0
        with pytest.raises(UserError, match="writes there since"), hold_lease(sweep.out):
            pass
        return {}

    monkeypatch.setattr(promote, "run_promote", run_promote)
    monkeypatch.setattr(deadline, "WRITE_EVERY_S", 0.1)
    with_promotion = replace(sweep, promote=True, budget=BudgetConfig(time="1h"))
    assert tune_sweep(with_promotion)["promoted"] == {}
    assert tune_sweep(replace(sweep, promote=True))["promoted"] == {}
    assert "Promote:" not in capfd.readouterr().out, "that is done"
    limited, unlimited = promotions
    assert limited.budget is not None and unlimited.budget is None
    assert 3000 < parse_duration_s("budget", limited.budget) < 3600, "what the trials left"
    assert unlimited.sweep == sweep.out and unlimited.num_workers == 6

    path = Path(sweep.out, "config.json")
    older = json.loads(path.read_text())
    del older["base"]["train_on"]  # as a Thaw wrote it that had no such field
    path.write_text(json.dumps(older))
    assert tune_sweep(sweep) == answer

    other = replace(sweep, base=replace(sweep.base, epochs=7))
    with pytest.raises(ValueError, match=r"base\.epochs is 7: the sweep in .* has 4"):
        tune_sweep(other)


@pytest.mark.extended
def test_a_spent_budget_ends_a_sweep_and_a_larger_one_resumes_it(
    sweep: TuningConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    slow = pretend(sweep, lambda point, epoch: time.sleep(1.5))
    monkeypatch.setattr(trials, "build_trial", slow)
    short = replace(sweep, budget=BudgetConfig(time="20s"))
    answer = tune_sweep(short)
    states = [trial["state"] for trial in answer["trials"]]
    assert len(states) < 6 or "cut" in states
    printed = capfd.readouterr().out
    assert "not started; run the same command with a larger budget" in printed
    assert "The budget of 20 s is spent: stopping" in printed

    assert tune_sweep(short)["trials"] == answer["trials"]
    assert "has spent its budget: reusing its" in capfd.readouterr().out

    monkeypatch.setattr(trials, "build_trial", pretend(sweep))
    answer = tune_sweep(replace(sweep, budget=BudgetConfig(time="1h")))
    assert len(answer["trials"]) == 6
    assert {trial["state"] for trial in answer["trials"]} <= {"finished", "pruned"}
    assert "Budget:" not in capfd.readouterr().out


def test_trials_that_have_not_ended_are_not_taken_for_pruned(
    sweep: TuningConfig, tmp_path: Path
) -> None:
    """One was cut in an earlier session and waits in this one; one was starting at its end. Two are
    not in trials.json: of an older Thaw, and of a head that has trained ahead of its trial."""
    sweep = replace(sweep, out=str(tmp_path))
    states = TrialStates(sweep.out, num_trials=4)
    ids = ["pruned", "cut", "starting", "failed"]
    for name, state in zip(ids, ("pruned", "running", "running", "failed"), strict=True):
        states.note(name, point={INIT: "file", FREEZE_DEPTH: 0}, state=state)
    row = {"global_step": 1, "epoch": 1, "val/top1": 0.5, "time/total_s": 1.0}
    for name in ("pruned", "cut", "older", "ahead"):
        run_of_trial = tmp_path / "trials" / name
        run_of_trial.mkdir(parents=True)
        (run_of_trial / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    states.end()
    ids += ["older", "ahead"]
    point = {"point": {INIT: "file"}}
    results = [
        SimpleNamespace(
            config=point,
            error=RuntimeError("broken") if name == "failed" else None,
            metrics={"epoch": 1} if name == "older" else {},
        )
        for name in ids
    ]
    session = SimpleNamespace(trial_ids=ids, cut=set())

    found = {row.trial_id: row.state for row in trials._started(sweep, results, session, states)}  # pyright: ignore

    assert found == {"pruned": "finished", "cut": "cut", "failed": "failed", "older": "finished"}


@pytest.mark.extended
def test_failed_trials_alone_run_again(
    sweep: TuningConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """In the second sitting they fail once more, which a larger budget then allows."""
    broken = [tmp_path / f"broken-{rate}" for rate in sweep.space.learning_rates]
    for mark in broken:
        mark.touch()

    def before(point: dict, epoch: int) -> None:
        mark = tmp_path / f"broken-{point[LEARNING_RATE]}"
        if point[INIT] == "zeros" and mark.exists():
            mark.unlink()
            raise RuntimeError("broken")

    monkeypatch.setattr(trials, "build_trial", pretend(sweep, before))
    first = tune_sweep(sweep)
    assert [row["state"] for row in first["trials"]].count("failed") == 2
    assert Mirror.ended.count("failed") == 2
    assert first["winner"] is not None
    assert "failed: RuntimeError: broken, see" in capfd.readouterr().out
    assert len(list(Path(sweep.out, "tune").glob("*/error.txt"))) == 2

    for mark in broken:
        mark.touch()
    second = tune_sweep(replace(sweep, max_failures=2))
    assert "failed" not in [row["state"] for row in second["trials"]]
    for row in second["trials"]:
        assert len(starts(sweep)[row["trial_id"]]) == (3 if row[INIT] == "zeros" else 1)


@pytest.mark.parametrize(
    "search", ["random", "optuna", pytest.param("grid", marks=pytest.mark.extended)]
)
def test_stopped_sweep_goes_on(
    sweep: TuningConfig,
    search: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    # With seed 5 the third random point, where the sweep is interrupted, is as good as the grid's.
    sweep = replace(sweep, search=search, trials=6 if search == "optuna" else None, seed=5)
    stopped, driver = tmp_path / "stopped", os.getpid()
    count = tmp_path / "count"

    def before(point: dict, epoch: int) -> None:
        if epoch == 1:
            with count.open("a") as file:
                file.write("x")
        if count.stat().st_size == 3 and epoch == 1 and not stopped.exists():
            stopped.touch()
            os.kill(driver, signal.SIGINT)

    monkeypatch.setattr(trials, "build_trial", pretend(sweep, before))
    with pytest.raises(SystemExit) as end:
        tune_sweep(sweep)
    assert end.value.code == 130
    assert "of 6 trials done; run the same command again to resume" in capfd.readouterr().out
    assert "killed" in Mirror.ended
    assert not Path(sweep.out, "leaderboard.json").exists()
    before_resume = starts(sweep)
    assert len(before_resume) < 6

    if search == "grid":  # its budget is spent: the answer is that of the trials so far
        answer = tune_sweep(replace(sweep, budget=BudgetConfig(time="1s")))
        assert answer["winner"] is not None
        assert {row["trial_id"] for row in answer["trials"]} <= set(before_resume)
        assert "of 6 not started; run the same command with a larger" in capfd.readouterr().out
        assert starts(sweep) == before_resume, "no trial runs"

    monkeypatch.setattr(Forecast, "fit", None)  # its trials are drawn: a budget plans no others
    answer = tune_sweep(replace(sweep, budget=BudgetConfig(time="1h")))
    assert "resuming" in capfd.readouterr().out
    assert len(answer["trials"]) == 6
    assert {row["trial_id"] for row in answer["trials"]} >= set(before_resume)
    again = [trial for trial, pids in starts(sweep).items() if len(pids) > 1]
    assert len(again) <= 1, "only the trial that was cut starts again"


def test_every_network_of_the_space_is_checked_first(sweep: TuningConfig) -> None:
    deep = replace(sweep, space=replace(SPACE, freeze_depths=(0, 99)))
    with pytest.raises(ValueError, match=r"model\.freeze_depth is 99"):
        tune_sweep(deep)
    assert not Path(sweep.out).exists()


@pytest.mark.slow
@pytest.mark.extended
def test_workers_of_a_stopped_trial_are_freed(
    ray_cluster: str, easy_data: str, tmp_path: Path
) -> None:
    stop_trials(easy_data, str(tmp_path / "stopped"), 1e-3, num_workers=2)


@pytest.mark.extended
@pytest.mark.parametrize("num_trials", [1, 2])
def test_they_are_freed_without_a_dashboard_too_and_the_sweep_goes_on(
    own_ray: dict[str, str], easy_data: str, tmp_path: Path, num_trials: int
) -> None:
    """Ray Train's own cleaner of what a killed training had reserved needs a dashboard.

    A trial that follows starts if every CPU is free, which is looked at after the last one.
    """
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.programs.stopped_trials", easy_data,
         str(tmp_path / "stopped"), str(num_trials)],
        env={**os.environ, **own_ray}, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert run.returncode == 0, run.stderr[-3000:]
    assert "freed" in run.stdout
