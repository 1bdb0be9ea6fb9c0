"""W&B's sessions of runs in a bucket: a file:// URI takes the same way as s3://, and moves."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wandb

from tests.support.waiting import wait_until
from tests.support.wandb.server import WandbServer, serving
from trainers.__main__ import main
from trainers.config import TrackConfig
from trainers.tracking import run as wandb_run
from trainers.tracking import wandb_internals
from trainers.tracking.run import WandbRun
from trainers.tracking.thread import WandbThread

STEPS = (1, 2, 3)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with serving(monkeypatch) as server:
        yield server


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run folder in a bucket; this process is in the folder of its driver."""
    (tmp_path / "driver").mkdir()
    monkeypatch.chdir(tmp_path / "driver")
    return f"file://{tmp_path}/bucket/run"


def open_run(uri: str, mode: str = "offline") -> WandbRun:
    track = TrackConfig(wandb=mode, project="thaw-test")  # pyright: ignore[reportArgumentType]
    run = WandbRun(uri, track=track, name="a", group=None, job_type="train", config={"seed": 1})
    for step in STEPS:
        run.log({"global_step": step, "epoch": 1, "train/loss": 1.0 / step})
    return run


def log_steps(uri: str, mode: str) -> None:
    open_run(uri, mode).finish("finished")


def sync(uri: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Return the exit code of `track sync`, and what it printed."""
    capsys.readouterr()
    try:
        main(["track", "sync", uri])
        code = 0
    except SystemExit as stopped:
        code = int(str(stopped.code))
    return code, capsys.readouterr().out.splitlines()


def assert_uploaded_once(uri: str, server: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = sync(uri, capsys)
    assert (code, printed[0]) == (0, f"synced   {uri}")
    (run,) = server.runs.values()
    assert [row["global_step"] for row in run.rows] == [*STEPS]
    assert sync(uri, capsys) == (0, [f"W&B has all 1 runs of {uri}"])


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_run_without_a_session_is_no_run_that_wandb_has(
    scheme: str, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = uri.replace("file://", scheme)
    Path(uri.removeprefix("file://")).mkdir(parents=True)
    Path(uri.removeprefix("file://"), "wandb_id").write_text("a1")

    assert sync(folder, capsys) == (
        1,
        [
            f"FAILED   {folder}: W&B's files are not here; run this where it ran, or the run's own "
            "command again"
        ],
    )


def test_an_offline_run_is_uploaded_from_anywhere_once(
    uri: str,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_steps(uri, "offline")
    monkeypatch.chdir(tmp_path)

    assert_uploaded_once(uri, server, capsys)


def test_the_session_of_a_killed_driver_is_uploaded_where_it_ran(
    uri: str,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_steps(uri, "online")  # W&B has the session before it
    open_run(uri, "offline")
    wandb.teardown()  # as at the end of its process
    monkeypatch.chdir(tmp_path)
    code, (printed,) = sync(uri, capsys)
    assert code == 1 and printed.startswith(
        f"FAILED   {uri}: W&B's files are not here; run this on"
    )
    assert f" in '{tmp_path}/driver', or the run's own command again" in printed

    monkeypatch.chdir(tmp_path / "driver")
    assert_uploaded_once(uri, server, capsys)
    monkeypatch.chdir(tmp_path)
    assert sync(uri, capsys) == (0, [f"W&B has all 1 runs of {uri}"])


def refuse_artifacts(server: WandbServer, run: WandbRun) -> None:
    server.refused.add("CreateArtifact")
    artifact = wandb.Artifact("data", type="dataset")
    with artifact.new_file("facts.json") as file:
        file.write("{}")
    run.log_artifact(artifact)


def hang(server: WandbServer, run: WandbRun) -> None:
    server.hang()


@pytest.mark.parametrize(
    ("fault", "patience_s"), [(lambda *_: None, 20), (refuse_artifacts, 20), (hang, 5)]
)
def test_what_an_online_run_could_not_upload_is_in_the_bucket(
    fault: Callable[[WandbServer, WandbRun], None],
    patience_s: int,
    uri: str,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(wandb_run, "PATIENCE_S", patience_s)
    run = open_run(uri, "online")
    fault(server, run)
    run.finish("finished")
    monkeypatch.chdir(tmp_path)

    if run.sync_command is None:
        assert sync(uri, capsys) == (0, [f"W&B has all 1 runs of {uri}"])
        return
    server.refused.clear()
    server.recover()
    assert_uploaded_once(uri, server, capsys)


def test_a_session_that_nothing_waits_for_any_more_is_in_the_bucket(
    uri: str, server: WandbServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    """Some of wandb's calls have no timeout, and this process ends after `close`."""
    monkeypatch.setattr(wandb_internals, "abandon_service", lambda: None)  # it is used below
    goes_on, finished = threading.Event(), threading.Event()

    def log() -> None:
        run = open_run(uri)
        goes_on.wait()
        run.finish("finished")
        finished.set()

    def is_written() -> bool:
        return any(file.stat().st_size > 1000 for file in Path("runs").glob("wandb/*/*.wandb"))

    thread = WandbThread(uri, log)
    wait_until(is_written, "the rows")
    command = thread.close(timeout_s=0.1)
    (session,) = Path(uri.removeprefix("file://"), "wandb").iterdir()
    is_kept = wandb_internals.has_records(session)
    goes_on.set()
    wait_until(finished.is_set, "the end")
    assert command == f"python -m trainers track sync {uri}" and is_kept
    monkeypatch.chdir(tmp_path)
    assert_uploaded_once(uri, server, capsys)
