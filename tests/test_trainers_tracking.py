"""metrics.jsonl, and W&B as its mirror: a real offline run, read back from its file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainers.config import TrackConfig
from trainers.tracking import JsonlTracker, RunMirror, find_mode, follow, read_rows

OFFLINE = TrackConfig(wandb="offline", project="thaw-test")


def row(step: int, **metrics: float) -> dict[str, Any]:
    return {"epoch": 1, "global_step": step, "train/loss": 1.0 / step, **metrics}


def open_mirror(run: Path, track: TrackConfig = OFFLINE) -> RunMirror:
    return RunMirror(
        str(run), track=track, name="trial a", group="sweep", job_type="train",
        config={"optim": {"learning_rate": 0.5}},
    )  # fmt: skip


def offline_runs(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


def read_back(folder: Path, *options: str) -> str:
    """What W&B's own reader finds in an offline run."""
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json"]
    return subprocess.run(
        [*command, *options, str(folder)], check=True, capture_output=True, text=True
    ).stdout


def test_rows_after_the_checkpoint_are_dropped_at_a_resume(tmp_path: Path) -> None:
    first = JsonlTracker(str(tmp_path))
    for step in (1, 2, 3):
        first.log(row(step))
    JsonlTracker(str(tmp_path), last_row=row(2)).log(row(3, resumed=1.0))

    assert [found["global_step"] for found in read_rows(str(tmp_path))] == [1, 2, 3]
    assert read_rows(str(tmp_path))[-1]["resumed"] == 1.0


def test_an_offline_run_holds_config_metrics_and_group(tmp_path: Path) -> None:
    mirror = open_mirror(tmp_path)
    command = mirror.sync_command()
    tracker = JsonlTracker(str(tmp_path))
    tracker.log(row(1))
    mirror.sync()
    tracker.log(row(2, **{"val/top1": 0.75}))
    tracker.log(row(3, **{"val/top1": 0.5}))
    mirror.finish("pruned")

    (folder,) = offline_runs(tmp_path)
    summary = json.loads(read_back(folder, "--summary"))
    records = [json.loads(line) for line in read_back(folder).splitlines()]
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    (run,) = [r["run"] for r in records if r["type"] == "run"]
    assert [item["global_step"] for item in history] == [1, 2, 3]
    assert summary["config"]["optim"]["learning_rate"] == 0.5
    assert summary["project"] == "thaw-test" and summary["name"] == "trial a"
    assert summary["summary"]["val/top1"]["max"] == 0.75
    assert summary["summary"]["state"] == "pruned" and summary["exit_code"] == 0
    assert run["run_group"] == "sweep" and run["job_type"] == "train"
    assert command == f"wandb sync {tmp_path}/wandb/offline-run-*"


def test_a_second_sitting_leaves_one_whole_offline_run_of_the_same_id(tmp_path: Path) -> None:
    tracker = JsonlTracker(str(tmp_path))
    for step in (1, 2):
        tracker.log(row(step))
        open_mirror(tmp_path).finish("finished")

    (folder,) = offline_runs(tmp_path)
    assert (tmp_path / "wandb_id").read_text() in folder.name
    assert json.loads(read_back(folder, "--summary"))["summary"]["global_step"] == 2
    assert read_back(folder).count('"type":"history"') == 2


def test_follow_shows_each_row_once_and_says_how_the_run_ended(tmp_path: Path) -> None:
    tracker = JsonlTracker(str(tmp_path))
    tracker.log(row(1))  # of an earlier sitting: not shown again
    shown: list[int] = []
    with (
        pytest.raises(RuntimeError),
        follow(str(tmp_path), open_mirror(tmp_path), lambda r: shown.append(r["global_step"])),
    ):
        tracker.log(row(2))
        tracker.log(row(3))
        raise RuntimeError("out of luck")

    assert shown == [2, 3]
    summary = json.loads(read_back(offline_runs(tmp_path)[0], "--summary"))
    assert summary["summary"]["state"] == "failed" and summary["exit_code"] == 1


def test_off_writes_nothing(tmp_path: Path) -> None:
    mirror = open_mirror(tmp_path, TrackConfig(wandb="off"))
    mirror.sync()
    mirror.finish("finished")

    assert mirror.sync_command() is None and not list(tmp_path.iterdir())


def test_another_folder_is_another_run(tmp_path: Path) -> None:
    """Also where a folder of the same name was deleted: its old run must not be resumed."""
    for run in (tmp_path / "a", tmp_path / "b"):
        open_mirror(run).finish("finished")

    assert (tmp_path / "a" / "wandb_id").read_text() != (tmp_path / "b" / "wandb_id").read_text()


@pytest.mark.parametrize(
    ("configured", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "secret"}, "online"),
        ("auto", {"WANDB_API_KEY": "secret", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "off"),
        ("off", {"WANDB_API_KEY": "secret"}, "off"),
    ],
)
def test_the_mode_follows_config_then_environment(
    monkeypatch: pytest.MonkeyPatch, configured: Any, environment: dict[str, str], mode: str
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert find_mode(TrackConfig(wandb=configured)) == mode
