"""`track sync`, and the checks of W&B's files: real offline runs, whole and damaged."""

import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.io import storage
from cluster.io.errors import UserError
from tests.conftest import ROOT
from tests.support.small import small_training
from tests.support.waiting import wait_until
from tests.support.wandb.checks import check_run, check_runs, find_secrets
from tests.support.wandb.files import read_record
from tests.support.wandb.server import WandbServer
from tests.test_trainers_mirror import (
    OFFLINE,
    end,
    end_of_epoch,
    open_mirror,
    row,
    write_progress,
    write_result,
)
from trainers.__main__ import main
from trainers.config import FinetuneConfig, ModelConfig
from trainers.run.predictions import from_table, write_predictions
from trainers.run.rows import JsonlTracker, read_rows
from trainers.tracking.local_runs import TrackedFolder
from trainers.tracking.run import WandbRun
from trainers.tracking.wandb_internals import TESTED_VERSIONS, check_versions

CANARY = "canary-of-a-bucket"


def train(config: FinetuneConfig) -> None:
    """Leave what a training of two epochs leaves, and its offline run."""
    storage.write_bytes(f"{config.out}/config.json", json.dumps(config.to_dict()).encode())
    mirror, tracker = open_mirror(config), JsonlTracker(config.out)
    tracker.log(row(1) | {"ingest/lost_names": ["a.jpg"]})
    labels = pa.array([f"class {number % 3}" for number in range(17)]).dictionary_encode()
    for epoch, top1 in ((1, 0.75), (2, 0.5)):
        columns = {"row": np.arange(17, dtype=np.int32), "label": labels, "predicted": labels}
        confidence = np.linspace(0.4, 0.9, 17, dtype=np.float32)
        predictions = from_table(pa.table({**columns, "confidence": confidence}))
        write_predictions(config.out, epoch, predictions)
        write_progress(config, best_epoch=1, epoch=epoch)
        tracker.log(end_of_epoch(epoch, top1))
    write_result(config, diverged=None)
    end(mirror)


@pytest.fixture(scope="module")
def trained(easy_data: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinetuneConfig]:
    """A run folder, whole; W&B stages the files of its tables beside it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(folder / "staged"))
        config = small_training(
            easy_data,
            str(folder / "run"),
            track=OFFLINE,
            model=ModelConfig(backbone="lenet5", init="he"),
        )
        train(config)
        tracked = TrackedFolder(config.out, Path(config.out))
        wait_until(lambda: read_record(tracked).exit_code == 0, "wandb has written it whole")
        yield config


@pytest.fixture
def run(trained: FinetuneConfig, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(trained.out, tmp_path / "run", symlinks=True))


def test_a_whole_run_is_good(trained: FinetuneConfig) -> None:
    assert check_runs(Path(trained.out)) == {"run": []}


def change(file: str, **values: object) -> Callable[[Path], None]:
    """Damage: other values in a JSON file of the run."""

    def damage(run: Path) -> None:
        content = json.loads((run / file).read_text())
        (run / file).write_text(json.dumps(content | values))

    return damage


def lose_last_line(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))


def add_line(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(30)) + "\n")


def change_line(run: Path) -> None:
    content = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(content.replace('"val/loss": 0.5', '"val/loss": 0.75'))


def cut(run: Path) -> None:
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    file.write_bytes(file.read_bytes()[:-200])


def spoil(run: Path) -> None:
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    file.write_bytes(b"nothing of W&B's" * 9)


def double(run: Path) -> None:
    (folder,) = run.glob("wandb/offline-run-*")
    shutil.copytree(folder, run / "wandb" / folder.name.replace("run-2", "run-3"))


def lose(run: Path) -> None:
    shutil.rmtree(run / "wandb")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (add_line, "1 rows of metrics.jsonl are not in the history: global_step 30"),
        (lose_last_line, "1 rows of the history are not in metrics.jsonl: global_step 20"),
        (change_line, "1 rows of the history differ from metrics.jsonl: global_step 20"),
        (change("config.json", seed=7), "its config differs from config.json: seed"),
        (change("config.json", track={"tags": ["more"]}), "it lacks the tags more"),
        (change("result.json", diverged="step 3"), "yet result.json says: step 3"),
        (lambda run: (run / "result.json").unlink(), "there is no result.json"),
        (cut, "it was not finished"),
        (spoil, "W&B's reader can't read offline-run-"),
        (double, "there are 2 offline runs"),
        (lose, "there is no run of W&B"),
    ],
)
def test_damage_is_found(run: Path, damage: Callable[[Path], None], problem: str) -> None:
    damage(run)
    assert any(problem in found for found in check_run(run))


def test_what_is_missing_in_wandb_is_found(trained: FinetuneConfig, tmp_path: Path) -> None:
    """A run that logs by hand: each row twice, nothing beside them, never finished."""
    for name in ("config.json", "metrics.jsonl", "result.json"):
        shutil.copy(Path(trained.out, name), tmp_path)
    tracked = WandbRun(
        str(tmp_path),
        track=OFFLINE,
        name="by hand",
        group=None,
        job_type="train",
        config=trained.to_dict(),
    )
    for logged in read_rows(str(tmp_path)) * 2:
        tracked.log(logged)
    tracked._run.config.update({"late": 1})
    tracked.finish("failed")

    assert set(check_run(tmp_path)) == {
        "it lacks the tags he, lenet5, data:FINGERPRINT",
        "its config was set 2 times",
        "its config differs from config.json: late",
        "rows are there twice: global_step 1, 10, 20",
        "its state is failed, yet result.json says that it ended well",
        "data/augmentation is not there",
        "val/predictions is not there",
        "val/mistakes is not there",
        "val/confusion is not there",
        "it names no artifact of type dataset",
        "it names no artifact of type model",
    }


def test_a_secret_is_found(run: Path) -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": CANARY, "SHORT_KEY": "he"}  # too short to be one
    (run / "checkpoints" / "notes.txt").write_text(f"key: {CANARY}")
    assert list(find_secrets(run, environment)) == [
        "checkpoints/notes.txt holds the value of AWS_SECRET_ACCESS_KEY"
    ]


def test_each_trial_of_a_sweep_needs_a_run(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "sweep" / "trials" / "a", symlinks=True)
    (tmp_path / "sweep" / "trials" / "b").mkdir()

    assert check_runs(tmp_path / "sweep") == {"a": [], "b": ["there is no run of W&B"]}


def test_a_folder_that_is_not_tracked_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing there is tracked in W&B"):
        main(["track", "sync", str(tmp_path)])


def test_check_is_no_longer_a_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["track", "check", str(run)])
    assert "action is 'check': use `sync`" in capsys.readouterr().err


def test_another_version_than_the_tested_one_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"wandb>={TESTED_VERSIONS['wandb']},<0.32" in project["dependencies"]
    check_versions.cache_clear()
    check_versions()
    assert not caplog.records
    monkeypatch.setitem(TESTED_VERSIONS, "wandb", "0.30")
    check_versions.cache_clear()
    check_versions()
    check_versions()
    (warning,) = caplog.messages
    assert "tested with 0.30" in warning and "test_trainers_mirror.py" in warning


def test_sync_uploads_once_and_leaves_the_mark_to_wandb(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb_id = (run / "wandb_id").read_text()
    with WandbServer() as server:
        use(server, monkeypatch)
        main(["track", "sync", str(run)])
        main(["track", "sync", str(run)])

        tracked = server.runs[wandb_id]
        rows = [row["global_step"] for row in tracked.rows if "train/loss" in row]
        assert rows == [1, 10, 20]
        assert tracked.summary["state"] == "finished" and tracked.exit_code == 0
        assert [artifact.type for artifact in tracked.inputs] == ["dataset"]
        models = [artifact for artifact in tracked.outputs if artifact.type == "model"]
        assert [artifact.aliases for artifact in models] == [["best"], ["latest"]]
        tables = [artifact for artifact in tracked.outputs if artifact.type == "run_table"]
        assert tables and all(artifact.committed for artifact in server.artifacts)
        assert not server.unknown
    assert capsys.readouterr().out.splitlines() == [
        f"synced   {run}",
        f"Uploaded 1 of 1 runs to {server.url}",
        f"W&B has all 1 runs of {run}",
    ]


def test_a_refused_key_leaves_all_to_be_synced(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with WandbServer() as server:
        use(server, monkeypatch)
        monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
        with pytest.raises(SystemExit, match="1"):
            main(["track", "sync", str(run)])

    printed = capsys.readouterr().out
    assert f"FAILED   {run}: " in printed and f"({server.url}) and the key" in printed
    assert "Uploaded 0 of 1 runs" in printed and not list(run.rglob("*.synced"))


def test_without_a_key_the_commands_are_printed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(run / "nowhere"))
    (session,) = run.glob("wandb/offline-run-*")
    command = f"wandb sync --include-online --id {(run / 'wandb_id').read_text()} {session}"

    with pytest.raises(SystemExit, match="1"):
        main(["track", "sync", str(run)])
    reason, *commands = capsys.readouterr().out.splitlines()
    assert "No key of W&B" in reason and commands == [command]

    main(["track", "sync", "--dry-run", str(run)])
    main(["track", "sync", "--dry-run", f"file://{run}"])  # as one in a bucket
    assert capsys.readouterr().out.splitlines() == [
        command,
        f"python -m trainers track sync file://{run}",
    ]


def use(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
