"""A sweep that shares: killed at any moment and started again, it ends as it would have."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import backbones
from trainers.tracking import read_rows
from tuning import run
from tuning.__main__ import parse
from tuning.run import tune_sweep
from tuning.space import AXES

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NUM_TRIALS = 8
DRIVER = """
import sys
from tuning import __main__, run
run.max_concurrent_trials = lambda *_: 1
__main__.main(sys.argv[1:])
"""
"""A sweep of one trial at a time: each process of a trial takes seconds to start."""


def arguments(data: str, folder: Path, out: str, *more: str) -> list[str]:
    weights = folder / "lenet5.pth"
    if not weights.exists():
        torch.manual_seed(0)
        torch.save(backbones.build("lenet5", 3).state_dict(), weights)
    return [
        *("transfer", "--data", data, "--out", str(folder / out), "--backbone", "lenet5"),
        *("--inits", "file", "--weights", str(weights), "--freeze-depths", "all", "1"),
        *("--learning-rates", "1e-2", "1e-3", "--clipnorms", "none", "1e6", "--search", "grid"),
        *("--epochs", "2", "--grace-epochs", "2", "--global-batch-size", "12", "--wandb", "off"),
        *("--size-px", "32", "--policy", "light", "--views", "1", "--num-workers", "0", *more),
    ]


def scores(answer: dict[str, Any]) -> dict[tuple, float]:
    """Accuracies by point; a point that occurs twice is a mistake."""
    points = [tuple(row[axis] for axis in AXES) for row in answer["trials"]]
    assert len(points) == len(set(points)) == NUM_TRIALS
    return dict(zip(points, (row["val_top1"] for row in answer["trials"]), strict=True))


def test_a_killed_driver_loses_no_trial_and_repeats_none(
    ray_cluster: str,
    easy_data: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "max_concurrent_trials", lambda *_: 1)
    shared = arguments(easy_data, tmp_path, "shared")
    command = [sys.executable, "-c", DRIVER, *shared, "--address", ray_cluster]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if "trial 3/8" in line and "epoch 1" in line:
                driver.kill()
                break
    before = {path.name: read_rows(str(path)) for path in (tmp_path / "shared/trials").iterdir()}
    assert 2 <= len(before) < NUM_TRIALS

    answer = tune_sweep(parse(shared))
    printed = capfd.readouterr().out
    assert "resuming" in printed
    for row in answer["trials"]:
        assert row["state"] == "finished"
        rows = before.get(row["trial_id"], [])
        assert read_rows(row["run"])[: len(rows)] == rows, "what was measured stays"
    copied = [row for row in answer["trials"] if row["copied_from"]]
    assert len(copied) == 4, "no gradient reaches a clipnorm of a million: twins are one training"
    assert answer["sharing"]["num_copied"] == len(copied)
    assert f"{len(copied)} trials copied from a training that was known" in printed

    alone = tune_sweep(parse(arguments(easy_data, tmp_path, "alone", "--no-share")))
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
