"""A run in W&B: real offline runs, read back from their files by W&B's own reader."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import wandb
from wandb.sdk import wandb_setup

from cluster.io import storage
from datasets.manifest_file import read_manifest
from tests.support.small import small_training
from tests.support.waiting import wait_until
from tests.support.wandb.files import inspect
from trainers.config import FinetuneConfig, ModelConfig, TrackConfig
from trainers.run import checkpoint
from trainers.run import folder as run_folder
from trainers.run.checkpoint import TrainingProgress
from trainers.run.predictions import from_table, write_predictions
from trainers.run.rows import JsonlTracker
from trainers.tracking.local_runs import find_id
from trainers.tracking.mirror import RunMirror, follow

OFFLINE = TrackConfig(wandb="offline", project="thaw-test", log_every_steps=1, tags=("mine",))


@pytest.fixture
def config(easy_data: str, tmp_path: Path) -> FinetuneConfig:
    return small_training(
        easy_data,
        str(tmp_path / "run"),
        track=OFFLINE,
        model=ModelConfig(backbone="lenet5", init="he"),
    )


def row(step: int, **metrics: Any) -> dict[str, Any]:
    return {"epoch": 1, "global_step": step, "train/loss": 1.0 / step, **metrics}


def end_of_epoch(epoch: int, top1: float, **metrics: Any) -> dict[str, Any]:
    values = {"val/top1": top1, "val/loss": 1 - top1, "time/epoch_s": 1.0, "ingest/lost_images": 0}
    return row(10 * epoch, **{**values, "ingest/images_per_s": 100.0, **metrics}) | {"epoch": epoch}


def open_mirror(config: FinetuneConfig) -> RunMirror:
    return RunMirror(
        config, read_manifest(config.data), name="trial a", group="sweep", job_type="train"
    )


def end(mirror: RunMirror, state: str = "finished") -> str | None:
    mirror.finish(state)
    return mirror.close()


def offline_runs(config: FinetuneConfig) -> list[Path]:
    return sorted(Path(config.out, "wandb").glob("offline-run-*"))


def read_whole(config: FinetuneConfig) -> list[dict[str, Any]]:
    """What W&B's own reader finds in the one offline run: `finish` does not wait for its end."""
    (folder,) = offline_runs(config)
    records: list[dict[str, Any]] = []

    def ends() -> bool:
        records[:] = map(json.loads, inspect(folder).splitlines())
        return any(record["type"] == "exit" for record in records)

    wait_until(ends, "the end of the file")
    return records


def read_records(config: FinetuneConfig, kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in read_whole(config) if record["type"] == kind]


def read_state(config: FinetuneConfig) -> dict[str, Any]:
    read_whole(config)
    (folder,) = offline_runs(config)
    return json.loads(inspect(folder, "--summary"))


def histories(config: FinetuneConfig) -> list[dict[str, Any]]:
    return [record["item"] for record in read_records(config, "history")]


def steps(config: FinetuneConfig) -> list[int]:
    """The rows of metrics; W&B gives pictures the axis as well."""
    return [item["global_step"] for item in histories(config) if "train/loss" in item]


def test_an_offline_run_holds_config_metrics_group_and_tags(config: FinetuneConfig) -> None:
    tracker = JsonlTracker(config.out)
    mirror = open_mirror(config)
    for step, top1 in ((1, 0.25), (2, 0.75), (3, 0.5)):
        tracker.log(row(step, **{"val/top1": top1}))
    command = end(mirror, "pruned")

    (run,), state = read_records(config, "run"), read_state(config)
    assert steps(config) == [1, 2, 3]
    assert state["config"]["optim"]["learning_rate"] == config.optim.learning_rate
    assert state["project"] == "thaw-test" and state["name"] == "trial a"
    assert state["summary"]["val/top1"]["max"] == 0.75
    assert state["summary"]["state"] == "pruned" and state["exit_code"] == 0
    assert state["summary"]["frozen/stage"] == "none" and state["summary"]["frozen/share"] == 0
    assert run["run_group"] == "sweep" and run["job_type"] == "train"
    fingerprint = read_manifest(config.data).fingerprint
    assert {"lenet5", "he", "mine", f"data:{fingerprint[:12]}"} <= set(run["tags"])
    assert any(tag.startswith("commit:") for tag in run["tags"])
    assert command == f"python -m trainers track sync {config.out}"


def test_what_an_epoch_measures_is_drawn_over_epochs(config: FinetuneConfig) -> None:
    end(open_mirror(config))

    metrics = read_records(config, "metric")
    axes = {m.get("name") or m.get("glob_name"): m.get("step_metric") for m in metrics}
    assert axes["*"] == "global_step" and axes["val/*"] == axes["val/top1"] == "epoch"
    assert {"epoch", "global_step"} <= set(axes)


def test_predictions_mistakes_and_confusion_are_logged(config: FinetuneConfig) -> None:
    names = pa.array([f"class {number % 3}" for number in range(17)]).dictionary_encode()
    wrong = pa.array(["class 0"] * 17).dictionary_encode()
    tracker = JsonlTracker(config.out)
    for epoch in (1, 2):
        table = {"row": np.arange(17, dtype=np.int32), "label": names, "predicted": wrong}
        confidence = np.linspace(0.4, 0.9, 17, dtype=np.float32)
        predictions = from_table(pa.table({**table, "confidence": confidence}))
        write_predictions(config.out, epoch, predictions)
        tracker.log(end_of_epoch(epoch, 0.35))
    write_progress(config, best_epoch=2)
    end(open_mirror(config))

    found = histories(config)
    tables = [item["val/predictions.nrows"] for item in found if "val/predictions.nrows" in item]
    (mistakes,) = [item["val/mistakes.nrows"] for item in found if "val/mistakes.nrows" in item]
    assert tables == [17, 17]  # all, as there are fewer than 64
    assert mistakes == 11  # 6 of the 17 are of class 0
    assert any("val/confusion.nrows" in item for item in found)
    assert any("data/augmentation.width" in item for item in found)
    (folder,) = offline_runs(config)
    sizes = [path.stat().st_size for path in folder.rglob("*.png")]
    assert len(sizes) == 1 and sizes[0] > 10_000  # the sheet of augmented images


def test_the_lineage_goes_from_the_data_to_the_checkpoints(config: FinetuneConfig) -> None:
    write_progress(config, best_epoch=1)
    write_progress(config, best_epoch=1, epoch=2)
    end(open_mirror(config))

    data, best, latest = read_records(config, "artifact")
    assert data["type"] == "dataset" and data["use_after_commit"]
    assert best["type"] == "model" and "best" in best["aliases"]  # W&B adds latest, and moves it
    assert latest["aliases"] == ["latest"] and latest["name"] == best["name"]
    assert best["manifest"]["contents"][-1]["ref"].endswith("step-00000010/model.safetensors")
    assert json.loads(best["metadata"])["sha256"] != json.loads(latest["metadata"])["sha256"]
    assert not [c for a in (best, latest) for c in a["manifest"]["contents"] if "bytes" in c]


@pytest.mark.parametrize(
    "damaged",
    ["val_predictions/epoch-00001.parquet", "result.json", "checkpoints/step-00000010"],
)
def test_a_file_that_cant_be_read_takes_nothing_else_from_wandb(
    damaged: str, config: FinetuneConfig
) -> None:
    write_progress(config, best_epoch=1)
    file = Path(config.out, damaged)
    if file.is_dir():  # its weights, which are uploaded
        config = replace(config, track=replace(OFFLINE, upload_weights=True))
        (file / checkpoint.MODEL).unlink()
    else:
        storage.write_bytes(str(file), b"damaged")
    tracker = JsonlTracker(config.out)
    tracker.log(end_of_epoch(1, 0.5))
    tracker.log(row(11))
    end(open_mirror(config))

    assert steps(config) == [10, 11]
    assert read_state(config)["summary"]["state"] == "finished"
    types = [artifact["type"] for artifact in read_records(config, "artifact")]
    assert ("model" in types) == (not file.is_dir())


def test_weights_are_uploaded_where_asked(config: FinetuneConfig) -> None:
    write_progress(config, best_epoch=1)
    end(open_mirror(replace(config, track=replace(OFFLINE, upload_weights=True))))

    _, model = read_records(config, "artifact")
    (weights,) = model["manifest"]["contents"]
    assert weights["path"] == "model.safetensors" and Path(weights["local_path"]).stat().st_size


def test_alerts_are_raised_once(config: FinetuneConfig) -> None:
    """65 images of training and validation: one unreadable is more than 1 percent."""
    tracker = JsonlTracker(config.out)
    mirror = open_mirror(config)
    for epoch in (1, 2, 3, 4):
        rate = 100.0 if epoch < 4 else 40.0
        lost = {"ingest/lost_images": 1, "ingest/images_per_s": rate}
        tracker.log(end_of_epoch(epoch, 0.1, **lost))
    write_result(config, diverged=None)
    end(mirror)

    titles = [alert["title"] for alert in read_records(config, "alert")]
    assert titles == ["run: unreadable images", "run: throughput halved", "run: does not learn"]


def test_a_loss_that_is_not_finite_is_an_alert(config: FinetuneConfig) -> None:
    JsonlTracker(config.out).log(row(1))
    write_result(config, diverged="the gradient of step 2 is not finite")
    end(open_mirror(config), "failed")

    (alert,) = read_records(config, "alert")
    assert alert["level"] == "ERROR" and "step 2" in alert["text"]


def test_a_second_session_leaves_one_whole_offline_run_of_the_same_id(
    config: FinetuneConfig,
) -> None:
    tracker = JsonlTracker(config.out)
    for step in (1, 2):
        tracker.log(row(step))
        end(open_mirror(config))

    (folder,) = offline_runs(config)
    assert find_id(config.out) in folder.name
    assert steps(config) == [1, 2]


def test_a_killed_service_process_loses_no_row(
    config: FinetuneConfig, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = JsonlTracker(config.out)
    tracker.log(row(1))
    mirror = open_mirror(config)
    wait_until(lambda: offline_runs(config), "a run")
    service = wandb_setup.singleton()._connection
    assert service is not None and service._proc is not None
    os.kill(service._proc._process.pid, signal.SIGKILL)
    tracker.log(row(2))
    end(mirror)

    assert steps(config) == [1, 2]
    ours = [record for record in caplog.records if record.name.startswith("trainers.")]
    assert [record.getMessage() for record in ours] == [
        f"W&B's service process died: {config.out} is logged again"
    ]


def test_follow_shows_each_row_once_and_says_how_the_run_ended(config: FinetuneConfig) -> None:
    tracker = JsonlTracker(config.out)
    tracker.log(row(1))  # of an earlier session: not shown again
    shown: list[int] = []
    with (
        pytest.raises(RuntimeError),
        follow(config.out, open_mirror(config), lambda r: shown.append(r["global_step"])),
    ):
        tracker.log(row(2))
        tracker.log(row(3))
        raise RuntimeError("out of luck")

    assert shown == [2, 3]
    state = read_state(config)
    assert state["summary"]["state"] == "failed" and state["exit_code"] == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stopped_driver_leaves_a_killed_run(
    config: FinetuneConfig, stop: type[BaseException]
) -> None:
    with pytest.raises(stop), follow(config.out, open_mirror(config), lambda r: None):
        JsonlTracker(config.out).log(row(1))
        raise stop

    assert read_state(config)["summary"]["state"] == "killed"
    assert steps(config) == [1]


@pytest.fixture
def new_client() -> Iterator[None]:
    """wandb reads the environment again, as in a new process."""
    wandb.teardown()
    yield
    wandb.teardown()


def test_empty_tags_leave_the_others(
    config: FinetuneConfig, new_client: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a CI's variable that is not set, and of a run folder of an older Thaw."""
    monkeypatch.setenv("WANDB_TAGS", "theirs,")
    monkeypatch.setenv("WANDB_NOTES", "")
    end(open_mirror(replace(config, track=replace(OFFLINE, tags=("", "mine")))))

    (run,) = read_records(config, "run")
    assert {"mine", "theirs"} < set(run["tags"]) and "" not in run["tags"]


def test_what_else_wandb_refuses_is_one_sentence_for_all_runs(
    config: FinetuneConfig,
    new_client: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "a/b")
    configs = [replace(config, out=f"{config.out}-{number}") for number in range(2)]
    commands = [end(open_mirror(each)) for each in configs]

    assert commands == [f"python -m trainers track sync {each.out}" for each in configs]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(
        f"W&B lacks {configs[0].out}: W&B refuses its settings (Run ID cannot"
    )
    assert warning.endswith("check the variables WANDB_* and wandb/settings")


def test_off_writes_nothing(config: FinetuneConfig) -> None:
    off = replace(config, track=TrackConfig(wandb="off"))
    assert end(open_mirror(off)) is None and not Path(config.out).exists()


def test_another_folder_is_another_run(tmp_path: Path) -> None:
    """Also where a folder of the same name was deleted: its old run must not be resumed."""
    assert find_id(str(tmp_path / "a")) == find_id(str(tmp_path / "a"))
    assert find_id(str(tmp_path / "a")) != find_id(str(tmp_path / "b"))


def test_a_copy_is_another_run_and_a_moved_folder_the_same(tmp_path: Path) -> None:
    folder, copy, link, moved = (tmp_path / name for name in ("a", "copy", "link", "moved"))
    run_id = find_id(str(folder))
    shutil.copytree(folder, copy)
    assert find_id(str(copy)) == find_id(str(copy)) != run_id
    link.symlink_to(folder)
    for same in (link, folder, f"file://{folder}", link):
        assert find_id(str(same)) == run_id
    shutil.copytree(folder, tmp_path / "second copy")
    assert find_id(str(tmp_path / "second copy")) not in (run_id, find_id(str(copy)))
    folder.rename(moved)
    assert find_id(str(moved)) == run_id


@pytest.mark.parametrize("note", [None, b"", b"\0", b"\xff", b"nowhere://a", b"/proc/1/root"])
def test_a_folder_whose_original_is_not_known_keeps_its_run(
    note: bytes | None, tmp_path: Path
) -> None:
    """Also that of an older Thaw, which wrote no note."""
    run_id = find_id(str(tmp_path))
    file = tmp_path / "wandb_folder"
    file.unlink() if note is None else file.write_bytes(note)

    assert find_id(str(tmp_path)) == run_id
    assert file.read_text() == str(tmp_path)


def write_progress(config: FinetuneConfig, *, best_epoch: int, epoch: int | None = None) -> None:
    epoch = epoch or best_epoch
    progress = TrainingProgress(
        epoch=epoch,
        global_step=10 * epoch,
        val_top1=0.5,
        best_val_top1=0.5,
        best_epoch=best_epoch,
        best_step=10 * best_epoch,
        fingerprint="f",
    )
    checkpoint.save(config.out, {checkpoint.MODEL: b"weights" * epoch}, progress)


def write_result(config: FinetuneConfig, *, diverged: str | None) -> None:
    run_folder.write_result(config.out, TrainingProgress(), diverged=diverged)
