"""Runs logged to a W&B server on loopback that works, is slow, refuses or is gone."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import wandb

from cluster.io import storage
from datasets.manifest_file import read_manifest
from tests.conftest import ROOT
from tests.support.small import small_training
from tests.support.waiting import wait_until
from tests.support.wandb.checks import check_run
from tests.support.wandb.files import read_record
from tests.support.wandb.records import ORGANIZATION
from tests.support.wandb.server import KEY, WandbServer, ask_often, serving
from tests.test_trainers_mirror import end_of_epoch, row, write_progress, write_result
from trainers.__main__ import main
from trainers.config import FinetuneConfig, ModelConfig, TrackConfig
from trainers.run.rows import JsonlTracker, read_rows
from trainers.tracking import run as wandb_run
from trainers.tracking.failures import Failures
from trainers.tracking.local_runs import find_folders, find_id
from trainers.tracking.mirror import RunMirror, follow
from trainers.tracking.registry import Alias, link_model
from trainers.tracking.wandb_internals import is_offline

OFF = TrackConfig(wandb="off")
PATIENCE_S = 3
"""Where the server is gone or silent; a healthy one has W&B's 20 s."""
DRIVER_PATIENCE_S = 10
"""Where the server is healthy as the run starts, and gone as it ends."""
CLOSE_TIMEOUT_S = 30
"""Above the 20 s that a call of wandb takes which asks a server that is gone; `finish` is next."""
STEPS = range(1, 31)
HALF = len(STEPS) // 2
PAUSE_S = 0.05


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with serving(monkeypatch) as server:
        yield server
    assert not server.unknown


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_run, "PATIENCE_S", PATIENCE_S)


@pytest.fixture
def config(easy_data: str, tmp_path: Path) -> FinetuneConfig:
    return small_training(
        easy_data,
        str(tmp_path / "run"),
        track=TrackConfig(wandb="online", project="thaw-test"),
        model=ModelConfig(backbone="lenet5", init="he"),
    )


def train(
    config: FinetuneConfig, *, meanwhile: Callable[[int], object] = lambda step: None
) -> tuple[list[float], str | None]:
    """Write rows as a training does, mirrored in W&B.

    Args:
        meanwhile: called with 0 before the training starts, and with each step.

    Returns:
        Seconds of each step, and the command that uploads what W&B lacks.
    """
    storage.write_bytes(f"{config.out}/config.json", json.dumps(config.to_dict()).encode())
    mirror = RunMirror(
        config, read_manifest(config.data), name="trial a", group="sweep", job_type="train"
    )
    with follow(config.out, mirror, lambda row: None):
        meanwhile(0)
        rows = read_rows(config.out)
        last_row = rows[-1] if rows else None
        tracker = JsonlTracker(config.out, last_row=last_row)
        took_s = []
        for step in STEPS[len(rows) :]:
            meanwhile(step)
            started_s = time.perf_counter()
            time.sleep(PAUSE_S)
            tracker.log(end_of_epoch(len(STEPS) // 10, 0.5) if step == STEPS[-1] else row(step))
            took_s.append(time.perf_counter() - started_s)
        write_progress(config, best_epoch=len(STEPS) // 10)
        write_result(config, diverged=None)
    return took_s, mirror.close()


def assert_no_step_waits(took_s: list[float], patience_s: float) -> None:
    """Neither one for an answer nor each for a moment; a busy machine may hold up a few."""
    assert max(took_s) < patience_s and median(took_s) < 2 * PAUSE_S


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


def test_a_model_is_linked_to_the_registry_once_for_each_alias(
    server: WandbServer, config: FinetuneConfig, caplog: pytest.LogCaptureFixture
) -> None:
    storage.write_bytes(f"{config.out}/config.json", json.dumps(config.to_dict()).encode())
    write_progress(config, best_epoch=1)
    exported, folder = f"{config.out}-exported", f"{config.out}-promoted"
    storage.write_bytes(f"{exported}/model.onnx", b"onnx")

    def link(alias: Alias) -> bool:
        accuracy = {"test/top1": 0.5}
        return link_model(
            folder, exported, config.out, collection="cars", alias=alias, metadata=accuracy
        )

    assert link("candidate") and link("production")
    (path,) = server.records.collections
    assert path == f"{ORGANIZATION}/wandb-registry-model/cars"
    linked = server.records.collections[path]
    assert linked["candidate"] == linked["production"], "the same content is one version"
    model = linked["candidate"]
    assert (model.type, model.files["model.onnx"]) == ("model", b"onnx")
    assert model.metadata["test/top1"] == 0.5 and model.metadata["uri"] == exported
    (run,) = server.runs.values()
    assert (run.job_type, run.summary["state"]) == ("register", "finished")
    assert {artifact.type for artifact in run.inputs} == {"dataset", "model"}

    server.refused.add("LinkArtifact")
    assert not link("production")
    assert "W&B lacks a model in wandb-registry-model/cars" in caplog.text


@pytest.mark.parametrize("with_port", [True, False], ids=["today's", "of an older client"])
def test_a_login_in_netrc_is_used(
    with_port: bool, server: WandbServer, config: FinetuneConfig, monkeypatch, tmp_path: Path
) -> None:
    """`wandb login` writes HOST:PORT today, and wrote HOST before."""
    host = server.url.removeprefix("http://")
    login = tmp_path / "netrc"
    login.write_text(
        f"machine {host if with_port else host.partition(':')[0]}\n login user\n password {KEY}\n"
    )
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(login))
    wandb.teardown()
    track = replace(config.track, wandb="auto")
    _, command = train(replace(config, track=track))

    assert command is None and len(server.runs) == 1
    files = [file for file in Path(config.out).rglob("*") if file.is_file()]
    assert files and not [file for file in files if KEY.encode() in file.read_bytes()]


DRIVER = f"""
import json, sys
from tests.test_trainers_wandb_server import train
from trainers.tracking import run as wandb_run
from trainers.tracking.mirror import RunMirror
from trainers.run.folder import read_config

wandb_run.PATIENCE_S = {DRIVER_PATIENCE_S}
RunMirror.close.__kwdefaults__["timeout_s"] = {CLOSE_TIMEOUT_S}
def wait(step):
    if step in (0, {HALF}):
        print(step, flush=True)
        sys.stdin.readline()
took_s, _ = train(read_config(sys.argv[1]), meanwhile=wait)
print(json.dumps(took_s), flush=True)
"""


@contextmanager
def driver(config: FinetuneConfig) -> Iterator[subprocess.Popen[str]]:
    """Train in a process, which waits for a line before its start and in the middle; it prints the
    seconds of its steps."""
    storage.write_bytes(f"{config.out}/config.json", json.dumps(config.to_dict()).encode())
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, config.out],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_to_half(process: subprocess.Popen[str]) -> None:
    """Start the training, and return when it waits in the middle."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert [process.stdout.readline() for _ in range(2)] == ["0\n", f"{HALF}\n"]


def test_a_killed_session_and_the_next_one_are_one_run(
    server: WandbServer, config: FinetuneConfig
) -> None:
    with driver(config) as process:
        run_to_half(process)
        process.kill()
    assert len(read_rows(config.out)) == HALF - 1
    train(config)

    (run,) = server.runs.values()
    rows = metric_rows(run.rows)
    assert [found["global_step"] for found in rows] == [*STEPS]
    assert rows == read_rows(config.out)
    assert run.summary["state"] == "finished" and run.exit_code == 0


def test_seconds_of_503_lose_nothing_and_are_one_line(
    server: WandbServer,
    config: FinetuneConfig,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(step: int) -> None:
        if step == 5:
            server.fail_with(503, seconds=2)

    train(config, meanwhile=fail)

    (run,) = server.runs.values()
    assert metric_rows(run.rows) == read_rows(config.out)
    assert run.summary["state"] == "finished"
    assert caplog.text.count("W&B: 503") <= 2, "the first, and their number"
    assert "503" not in capfd.readouterr().err, "nor does wandb write to the terminal"


def test_refused_artifacts_are_reported_once_with_their_number(
    server: WandbServer, config: FinetuneConfig, caplog: pytest.LogCaptureFixture
) -> None:
    server.refused.add("CreateArtifact")
    _, command = train(config)

    assert command == f"python -m trainers track sync {config.out}"
    first, count = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert first.startswith("W&B refused ") and "CreateArtifact is refused" in first
    assert count == f"2 times in all: {first}", "the data set and the checkpoint"
    assert metric_rows(server.runs[find_id(config.out)].history) == read_rows(config.out)


def test_failures_of_a_kind_are_counted_until_no_run_is_open(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "termsetup", lambda *_: None)
    failures = Failures()
    for _ in range(2):
        failures.open_run()
    for number in range(1000):
        failures.info(f'wandb: 500 encountered ({{"id": {number}}}), retrying request')
        failures.report(f"W&B lacks a checkpoint of /runs/{number}: no", kind="a checkpoint")
        failures.info("wandb: View run at https://wandb.ai")
    failures.warning("\x1b[34mwandb\x1b[0m: WARNING only once")
    failures.close_run()
    assert len(caplog.records) == 3
    failures.close_run()

    retry, lacks, once, *counts = [record.message for record in caplog.records]
    assert retry == 'W&B: 500 encountered ({"id": 0}), retrying request'
    assert once == "W&B: only once"
    assert counts == [f"1000 times in all: {first}" for first in (retry, lacks)]


def refuse(server: WandbServer) -> None:
    os.environ["WANDB_API_KEY"] = "f" * 40  # undone by the fixture's monkeypatch


def stop(server: WandbServer) -> None:
    server.stop()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", [refuse, stop])
def test_a_run_that_finds_no_server_continues_offline(
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

    assert_no_step_waits(took_s, PATIENCE_S)
    assert ended_s - started_s < 50, "nor does the end, which gives up after 60 s"
    assert "W&B is out of reach" in caplog.text
    assert command == f"python -m trainers track sync {config.out}"
    assert_local(config)
    (folder,) = find_folders(Path(config.out), config.out)
    assert sum(map(is_offline, folder.sessions)) == 1


@pytest.mark.usefixtures("impatient")
def test_a_run_that_a_silent_server_did_not_take_is_synced_later(
    server: WandbServer, config: FinetuneConfig
) -> None:
    """W&B's id stays taken in the process that could not reach it: the file has another."""
    server.hang()
    train(config)
    server.recover()
    wandb.teardown()  # as at the end of that process
    assert_local(config)
    (problem, *_) = check_run(Path(config.out))
    assert "W&B takes its rows, yet no artifacts" in problem
    main(["track", "sync", config.out])

    (run,) = server.runs.values()
    assert run.id == find_id(config.out)
    assert metric_rows(run.rows) == read_rows(config.out)
    assert run.summary["state"] == "finished" and run.exit_code == 0


def assert_local(config: FinetuneConfig) -> None:
    """W&B's files in the run folder have all rows, and the end."""
    (folder,) = find_folders(Path(config.out), config.out)
    record = read_record(folder)
    assert metric_rows(record.history) == read_rows(config.out)
    assert record.summary["state"] == "finished" and record.exit_code == 0


@pytest.mark.slow
def test_a_server_that_dies_delays_no_step_and_no_end(
    server: WandbServer, config: FinetuneConfig
) -> None:
    """With artifacts under way wandb would wait for ever."""
    train(off := replace(config, out=f"{config.out}-off", track=OFF))
    with driver(config) as process:
        wait_until(lambda: "UseArtifact" in server.asked, "the artifact is used", 240)
        run_to_half(process)
        server.stop()
        printed, warned = process.communicate("\n", timeout=CLOSE_TIMEOUT_S + 60)

    assert process.returncode == 0 and "Traceback" not in warned
    assert_no_step_waits(json.loads(printed.splitlines()[-1]), DRIVER_PATIENCE_S)
    assert read_rows(config.out) == read_rows(off.out)
    assert "W&B did not take all" in warned
    assert_local(config)


def test_stop_in_wandb_reaches_that_run_alone_and_not_its_next_session(
    server: WandbServer,
    config: FinetuneConfig,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """W&B's own default is an interrupt of this process, as in `c`, which has nothing to stop."""
    ask_often(monkeypatch)
    manifest, stopped = read_manifest(config.data), []
    options = {
        "a": {"on_stop": lambda: stopped.append("a")},
        "b": {"on_stop": lambda: stopped.append("b")},
        "c": {},
    }
    configs = {name: replace(config, out=f"{config.out}-{name}") for name in options}

    def open_mirror(name: str) -> RunMirror:
        return RunMirror(
            configs[name], manifest, name=name, group="s", job_type="trial", **options[name]
        )

    mirrors = {name: open_mirror(name) for name in options}
    wait_until(lambda: len(server.runs) == 3, "the runs")
    for name in "ca":
        server.press_stop(find_id(configs[name].out))
    wait_until(lambda: stopped, "the stop")
    mirrors["a"].finish("stopped by user")
    assert mirrors["a"].close() is None
    mirrors["a"] = open_mirror("a")
    wait_until(lambda: "Stop has no effect" in caplog.text, "the stop of the session before")
    for mirror in mirrors.values():
        mirror.finish("finished")
        assert mirror.close() is None

    assert stopped == ["a"]
