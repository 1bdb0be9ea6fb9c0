"""A sweep that shares: killed at any moment and started again, it ends as it would have."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.tune.experiment import Trial

from tests.support.small import living_workers
from trainers.networks import backbones
from trainers.run.rows import epoch_rows, read_rows
from tuning import sweep_plan, trials
from tuning.__main__ import parse
from tuning.axes.axis import FREEZE_DEPTH
from tuning.point import AXES
from tuning.progress.progress import SweepProgress
from tuning.run import tune_sweep
from tuning.space import point_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NUM_TRIALS, NUM_EPOCHS = 6, 10
SEED = 112
"""Draws two heads, a training that goes deeper, and a twin of each with another clipnorm."""
DRIVER = """
import sys
from tuning import __main__, sweep_plan
sweep_plan.max_concurrent_trials = lambda *_: 1
__main__.main(sys.argv[1:])
"""
"""A sweep of one trial at a time: each process of a trial takes seconds to start."""


def arguments(data: str, folder: Path, out: str, *more: str, num_workers: int = 2) -> list[str]:
    weights = folder / "lenet5.pth"
    if not weights.exists():
        torch.manual_seed(0)
        torch.save(backbones.build("lenet5", 3).state_dict(), weights)
    return [
        *("transfer", "--data", data, "--out", str(folder / out), "--backbone", "lenet5"),
        *("--inits", "file", "--weights", str(weights), "--freeze-depths", "all", "1"),
        *("--learning-rates", "1e-2", "1e-3", "--clipnorms", "none", "1e6"),
        *("--trials", str(NUM_TRIALS), "--seed", str(SEED), "--epochs", str(NUM_EPOCHS)),
        *("--grace-epochs", str(NUM_EPOCHS), "--global-batch-size", "12", "--wandb", "off"),
        *("--size-px", "32", "--policy", "light", "--views", "1"),
        *("--num-workers", str(num_workers), *more),
    ]


class Killer(SweepProgress):
    """Kills a head's process once it has told of an epoch, and a DDP worker once it has ended one.

    The head's process then waits in `ray.tune.report`; workers train on, so a thread watches them.
    """

    killed: dict[str, tuple[str, int]]
    """By what died: its trial, and the epochs it had finished."""

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        super().on_trial_start(iteration, trials, trial, **info)
        if point_of(trial.config)[FREEZE_DEPTH] != "all" and "worker" not in self.killed:
            threading.Thread(target=self._kill_worker, args=(trial,)).start()

    def _kill_worker(self, trial: Trial) -> None:
        out, pids = self._training(trial).out, []
        while not (pids and epoch_rows(out)):
            if not pids and epoch_rows(out):
                return  # a copy
            pids = pids or living_workers()
            time.sleep(0.02)
        os.kill(pids[0], signal.SIGKILL)
        self.killed["worker"] = trial.trial_id, len(epoch_rows(out))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        super().on_trial_result(iteration, trials, trial, result, **info)
        if point_of(trial.config)[FREEZE_DEPTH] == "all" and "head" not in self.killed:
            os.kill(result["pid"], signal.SIGKILL)
            self.killed["head"] = trial.trial_id, len(epoch_rows(self._training(trial).out))


def scores(answer: dict[str, Any]) -> dict[tuple, float]:
    """Accuracies by point; a point that occurs twice is a mistake."""
    points = [tuple(row[axis] for axis in AXES) for row in answer["trials"]]
    assert len(points) == len(set(points)) == NUM_TRIALS
    return dict(zip(points, (row["val_top1"] for row in answer["trials"]), strict=True))


@pytest.mark.extended
def test_a_killed_driver_head_or_worker_loses_no_trial_and_repeats_none(
    ray_cluster: str,
    easy_data: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver dies in the second trial; in the second sitting that trial's process does, and
    after it a DDP worker of the third."""
    monkeypatch.setattr(sweep_plan, "max_concurrent_trials", lambda *_: 1)
    shared = arguments(easy_data, tmp_path, "shared")
    command = [sys.executable, "-c", DRIVER, *shared, "--address", ray_cluster]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if f"trial 2/{NUM_TRIALS}" in line and "epoch 1" in line:
                driver.kill()
                break
    before = {path.name: read_rows(str(path)) for path in (tmp_path / "shared/trials").iterdir()}
    # A head that trains together with one of the two has a folder before its trial starts.
    assert len(before) in (2, 3)

    Killer.killed = {}
    with monkeypatch.context() as patch:
        patch.setattr(trials, "SweepProgress", Killer)
        answer = tune_sweep(parse(shared))
    printed = capfd.readouterr().out
    assert "resuming" in printed
    assert set(Killer.killed) == {"head", "worker"}
    assert len({trial for trial, _ in Killer.killed.values()}) == 2
    # A head trains faster than Tune hears of it: it dies with most of its epochs untold.
    assert 1 <= Killer.killed["worker"][1] < NUM_EPOCHS and Killer.killed["head"][1] >= 1
    for row in answer["trials"]:
        assert row["state"] == "finished"
        assert [epoch["epoch"] for epoch in epoch_rows(row["run"])] == [*range(1, NUM_EPOCHS + 1)]
        rows = before.get(row["trial_id"], [])
        assert read_rows(row["run"])[: len(rows)] == rows, "what was measured stays"
        # Only a training in workers leaves Ray Train's folder behind.
        trained = Path(row["copied_from"] or row["run"])
        assert (trained / "ray_train").exists() == (row[FREEZE_DEPTH] != "all")
    assert "2 DDP workers" in printed
    assert answer["test"]["num_images"] == 13
    assert Path(answer["winner"]["run"], "evaluation_test.json").exists()
    copied = [row for row in answer["trials"] if row["copied_from"]]
    assert len(copied) == 3, "no gradient reaches a clipnorm of a million: twins are one training"
    assert answer["sharing"]["num_copied"] == len(copied)
    assert f"{len(copied)} trials copied from a recorded training" in printed

    undisturbed = arguments(easy_data, tmp_path, "alone", "--no-share", num_workers=0)
    alone = tune_sweep(parse(undisturbed))
    assert not any(row["copied_from"] for row in alone["trials"])
    assert scores(answer) == pytest.approx(scores(alone), abs=1 / 17)

    # Another sweep with the same trainings knows them all.
    capfd.readouterr()
    again = tune_sweep(parse(arguments(easy_data, tmp_path, "again")))
    assert scores(again) == scores(answer)
    assert all(row["copied_from"] for row in again["trials"])
    assert "images/s" not in capfd.readouterr().out, "features were there"


def test_a_plan_is_explained_and_nothing_runs(
    ray_cluster: str, easy_data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    explanation = parse(arguments(easy_data, tmp_path, "explained", "--explain"))
    with pytest.raises(SystemExit) as end:
        tune_sweep(explanation.config, explain=True)
    assert end.value.code == 0
    assert "file up to dense (freeze depth 3): computed once for 4 trials, 1 view" in (
        capfd.readouterr().out
    )
    assert not (tmp_path / "explained").exists() and not (tmp_path / "cache").exists()
