"""Runs told to a W&B server on loopback that is well, slow, unwilling or gone."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb

from datasets import storage
from tests.conftest import ROOT, small_training
from tests.test_trainers_mirror import end_of_epoch, row, write_progress, write_result
from tests.wandb_server import WandbServer
from trainers import wandb_run
from trainers.config import FinetuneConfig, ModelConfig, TrackConfig
from trainers.mirror import RunMirror, follow
from trainers.tracked_runs import find_folders, read_record
from trainers.tracking import JsonlTracker, read_rows
from trainers.wandb_run import find_id

PATIENCE_S = 3
STEPS = range(1, 31)
PAUSE_S = 0.05
SLACK_S = 1.0
"""What a training of 1.5 s may take longer on a busy machine."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server, which wandb knows from the environment; it knew another one before."""
    monkeypatch.setattr(wandb_run, "PATIENCE_S", PATIENCE_S)
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        wandb.teardown()
        yield server
        server.recover()
        assert not server.unknown
    wandb.teardown()


@pytest.fixture
def config(easy_data: str, tmp_path: Path) -> FinetuneConfig:
    return small_training(
        easy_data,
        str(tmp_path / "run"),
        track=TrackConfig(wandb="online", project="thaw-test"),
        model=ModelConfig(backbone="lenet5", init="he"),
    )


def train(
    config: FinetuneConfig, *, meanwhile: Callable[[int], None] = lambda step: None
) -> tuple[float, str | None]:
    """Write a row each PAUSE_S, as a training does, mirrored in W&B.

    Returns:
        Seconds that the training took, and the command that uploads what W&B lacks.
    """
    storage.write_bytes(f"{config.out}/config.json", json.dumps(config.to_dict()).encode())
    mirror = RunMirror(config, name="trial a", group="sweep", job_type="train")
    with follow(config.out, mirror, lambda row: None):
        rows = read_rows(config.out)
        tracker = JsonlTracker(config.out, last_row=rows[-1] if rows else None)
        started_s = time.perf_counter()
        for step in [step for step in STEPS if not rows or step > rows[-1]["global_step"]]:
            meanwhile(step)
            time.sleep(PAUSE_S)
            is_last = step == STEPS[-1]
            tracker.log(end_of_epoch(3, 0.5) if is_last else row(step))
        took_s = time.perf_counter() - started_s
        write_progress(config, best_epoch=3)
        write_result(config, diverged=None)
    return took_s, mirror.close()


def metric_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as metrics.jsonl has them, without W&B's own."""
    return [
        {key: value for key, value in found.items() if not key.startswith("_")}
        for found in rows
        if "train/loss" in found
    ]


def test_an_online_run_arrives_whole(server: WandbServer, config: FinetuneConfig) -> None:
    _, command = train(config)

    assert command is None
    (run,) = server.runs.values()
    assert run.id == find_id(config.out) and run.display_name == "trial a"
    assert (run.project, run.group, run.job_type) == ("thaw-test", "sweep", "train")
    assert {"lenet5", "he"} < set(run.tags)
    assert run.config == json.loads(json.dumps(config.to_dict()))
    assert metric_rows(run.history) == read_rows(config.out)
    assert run.summary["state"] == "finished" and run.exit_code == 0
    assert run.summary["val/top1"] == {"max": 0.5}
    assert any("augmentation" in name for name in run.files)
    assert [artifact.type for artifact in run.inputs] == ["dataset"]
    (model,) = run.outputs
    assert model.type == "model" and set(model.aliases) == {"best", "latest"}
    assert all(artifact.committed for artifact in server.artifacts)


DRIVER = """
import sys
from tests.test_trainers_wandb_server import train
from trainers.runs import read_config

train(read_config(sys.argv[1]), meanwhile=lambda step: print(step, flush=True))
"""


def test_a_killed_sitting_and_the_next_one_are_one_run(
    server: WandbServer, config: FinetuneConfig
) -> None:
    storage.write_bytes(f"{config.out}/config.json", json.dumps(config.to_dict()).encode())
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, config.out],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert driver.stdout is not None
    for line in driver.stdout:
        if int(line) == STEPS[len(STEPS) // 2]:
            break
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    assert 0 < len(read_rows(config.out)) < len(STEPS)
    train(config)

    (run,) = server.runs.values()
    rows = metric_rows(run.rows)
    assert [found["global_step"] for found in rows] == [*STEPS]
    assert rows == read_rows(config.out)
    assert run.summary["state"] == "finished" and run.exit_code == 0


def test_seconds_of_503_lose_nothing(server: WandbServer, config: FinetuneConfig) -> None:
    def fail(step: int) -> None:
        if step == 5:
            server.fail_with(503, seconds=2)

    train(config, meanwhile=fail)

    (run,) = server.runs.values()
    assert metric_rows(run.rows) == read_rows(config.out)
    assert run.summary["state"] == "finished"


def hang(server: WandbServer) -> None:
    server.hang()


def refuse(server: WandbServer) -> None:
    os.environ["WANDB_API_KEY"] = "f" * 40  # undone by the fixture's monkeypatch


def stop(server: WandbServer) -> None:
    server.stop()


@pytest.mark.parametrize("fault", [hang, refuse, stop])
def test_a_run_that_finds_no_server_goes_on_offline(
    server: WandbServer,
    config: FinetuneConfig,
    fault: Callable[[WandbServer], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault(server)
    started_s = time.monotonic()
    with caplog.at_level(logging.WARNING):
        took_s, command = train(config)
    ended_s = time.monotonic()

    assert took_s < len(STEPS) * PAUSE_S + SLACK_S
    assert ended_s - started_s < took_s + 5 * PATIENCE_S
    assert "W&B is out of reach" in caplog.text
    assert command == f"python -m trainers track sync {config.out}"
    assert_local(config)
    (folder,) = find_folders(Path(config.out), config.out)
    assert len(folder.offline_sittings) == 1


def assert_local(config: FinetuneConfig) -> None:
    """W&B's files in the run folder have all rows, and the end."""
    (folder,) = find_folders(Path(config.out), config.out)
    record = read_record(folder)
    assert metric_rows(record.history) == read_rows(config.out)
    assert record.summary["state"] == "finished" and record.exit_code == 0


@pytest.mark.parametrize("fault", [hang, stop])
def test_a_server_that_dies_delays_no_step(
    server: WandbServer, config: FinetuneConfig, fault: Callable[[WandbServer], None]
) -> None:
    def fail(step: int) -> None:
        if step == 10:
            fault(server)

    off = replace(config, out=f"{config.out}-off", track=TrackConfig(wandb="off"))
    without_s, _ = train(off)
    took_s, command = train(config, meanwhile=fail)

    assert took_s < without_s + SLACK_S
    assert read_rows(config.out) == read_rows(off.out)
    assert command == f"python -m trainers track sync {config.out}"
    assert_local(config)
