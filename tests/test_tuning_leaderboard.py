"""Ranking trials, telling which learn, and the commands that follow."""

import csv
import io
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from trainers.__main__ import parse
from trainers.config import FinetuneConfig, ModelConfig
from trainers.recipes import RECIPES
from trainers.run.checkpoint import TrainingProgress
from trainers.run.folder import write_result
from tuning.axes.axis import CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE
from tuning.config import TuningConfig
from tuning.ending import is_whole
from tuning.point import Point
from tuning.promotion.printing import print_seeds
from tuning.promotion.summary import summarize
from tuning.record.leaderboard import (
    print_leaderboard,
    read_leaderboard,
    remove_leaderboard,
    write_leaderboard,
)
from tuning.record.results import CUT, FAILED, FINISHED, TrialResult, find_winner, rank
from tuning.winner import command_of

CLASS_COUNTS = (20, 20, 20, 20)
BASE = FinetuneConfig(data="")


def end_trial(
    folder: Path, name: str, val_top1: list[float], *, failed: bool = False, seconds: float = 1.0
) -> TrialResult:
    run = folder / name
    run.mkdir()
    rows: list[dict] = [{"global_step": 0, "train/loss": 3.0}]
    rows += [
        {"global_step": i, "epoch": i, "val/top1": top1, "time/total_s": i * seconds}
        for i, top1 in enumerate(val_top1, start=1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    point: Point = {FREEZE_DEPTH: "all", LEARNING_RATE: 1e-3, CLIPNORM: None, INIT: "file"}
    state = FAILED if failed else FINISHED
    return TrialResult(trial_id=name, point=point, run=str(run), state=state)


def test_best_epoch_counts_and_states_are_told_apart(tmp_path: Path) -> None:
    trials = [
        end_trial(tmp_path, "pruned", [0.4]),
        end_trial(tmp_path, "best", [0.5, 0.8, 0.7]),
        end_trial(tmp_path, "slow", [0.5, 0.6, 0.6], seconds=9.0),
        end_trial(tmp_path, "fast", [0.6, 0.5, 0.5]),
        end_trial(tmp_path, "broken", [], failed=True),
        end_trial(tmp_path, "chance", [0.25, 0.25, 0.25]),
    ]
    trials = rank(trials, epochs=3, class_counts=CLASS_COUNTS)
    assert [row.trial_id for row in trials] == [
        "best",
        "fast",
        "slow",
        "pruned",
        "chance",
        "broken",
    ]
    best = trials[0]
    assert (best.rank, best.val_top1, best.best_epoch, best.num_epochs) == (1, 0.8, 2, 3)
    assert (best.seconds, best.state) == (3.0, "finished")
    assert [row.state for row in trials[3:]] == ["pruned", "finished", "failed"]
    assert [row.verdict for row in trials[3:]] == ["learns", "does not learn", "does not learn"]
    winner = find_winner(trials)
    assert winner is not None and winner.trial_id == "best"
    assert find_winner(trials[4:]) is None


def test_files_hold_what_was_ranked(tmp_path: Path) -> None:
    folder = tmp_path / "trials"
    folder.mkdir()
    trials = [end_trial(folder, "a", [0.5]), end_trial(folder, "b", [], failed=True)]
    trials = [replace(trial, point=trial.point | {FREEZE_DEPTH: 0.75}) for trial in trials]
    trials = rank(trials, epochs=1, class_counts=CLASS_COUNTS)
    assert read_leaderboard(str(tmp_path)) is None
    write_leaderboard(str(tmp_path), trials, BASE, sync=["wandb sync x"])
    assert read_leaderboard(str(tmp_path)) == (
        trials,
        {"sync": ["wandb sync x"], "ended_by_user": None},
    )
    rows = list(csv.DictReader((tmp_path / "leaderboard.csv").read_text().splitlines()))
    assert [row["trial_id"] for row in rows] == ["a", "b"]
    assert rows[0][LEARNING_RATE] == "0.001"
    assert [(row["frozen_stage"], row["frozen_share"]) for row in rows] == [("layer3", "0.8")] * 2
    remove_leaderboard(str(tmp_path))
    assert read_leaderboard(str(tmp_path)) is None and not (tmp_path / "leaderboard.csv").exists()
    remove_leaderboard(str(tmp_path))


def test_plain_text_where_there_is_no_terminal(tmp_path: Path) -> None:
    trials = rank([end_trial(tmp_path, "a", [0.5])], epochs=1, class_counts=CLASS_COUNTS)
    plain, table = io.StringIO(), io.StringIO()
    print_leaderboard(trials, BASE, Console(file=plain))
    print_leaderboard(trials, BASE, Console(file=table, force_terminal=True, width=120))
    header, row = plain.getvalue().splitlines()
    assert header.split()[:2] == ["rank", "freeze"]
    assert row.split()[:8] == ["1", "all", "100%", "0.001", "none", "file", "0.500", "1/1"]
    assert "0.500" in table.getvalue() and "\x1b" in table.getvalue()


def test_table_of_seeds_names_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    tests = [{"test/top1": 0.5, "test/top5": 1.0, "num_images": 10}]
    winner = {"test/top1": 0.4, "test/top5": 0.9, "best_epoch": 7}
    summary = {
        **summarize(tests),
        "seeds": [{"seed": 0, "time/total_s": 61.4, **tests[0]}],
        "winner": winner,
    }
    print_seeds(summary)
    print_seeds({**summary, "winner": dict.fromkeys(winner)})
    with_winner, without = capsys.readouterr().out.split("\n\n")

    assert [line.split()[:3] for line in with_winner.splitlines()[1:]] == [
        ["seed", "top-1", "top-5"],
        ["0", "0.500", "1.000"],
        ["mean", "0.500", "1.000"],
        ["95%", "0.237-0.763", "0.722-1.000"],
        ["winner", "0.400", "0.900"],
    ]
    assert "Wilson over the images" in with_winner and "top-1 +0.100 since" in with_winner
    assert "winner" not in without


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_command_gives_the_config_back(recipe: str) -> None:
    config = replace(
        RECIPES[recipe],
        data="runs/my cars",
        out="runs/longer",
        epochs=33,
        model=ModelConfig(backbone="mobilenet_v2", init="file", weights="w.pth", freeze_depth=3),
        optim=replace(RECIPES[recipe].optim, clipnorm=0.5, global_clipnorm=None),
    )
    assert round_trip(config) == config


def test_command_is_short() -> None:
    recipe = RECIPES["transfer"]
    config = replace(recipe, data="d", optim=replace(recipe.optim, learning_rate=0.01))
    assert command_of(config) == "python -m trainers transfer --data d --learning-rate 0.01"
    assert round_trip(config) == config


def test_weights_from_a_file_are_of_no_recipe_from_random_ones() -> None:
    scratch = RECIPES["scratch"]
    model = replace(scratch.model, init="file", weights="w.pth", freeze_depth="all")
    config = replace(scratch, data="d", model=model)
    assert "trainers scratch" not in command_of(config) and round_trip(config) == config


def round_trip(config: FinetuneConfig) -> FinetuneConfig:
    recipe, *arguments = shlex.split(command_of(config))[3:]
    return parse([recipe, *arguments])


def test_a_sweep_with_a_trial_that_diverged_is_whole(tmp_path: Path) -> None:
    diverged = end_trial(tmp_path, "diverged", [0.5], failed=True)
    config = TuningConfig(base=BASE, trials=1)
    assert not is_whole(config, [diverged]), "its process failed: it is tried again"
    progress = TrainingProgress(epoch=1, global_step=1)
    write_result(diverged.run, progress, diverged="gradients are not finite")
    assert is_whole(config, [diverged])
    assert not is_whole(config, [replace(diverged, state=CUT)])
