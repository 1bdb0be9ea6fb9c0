"""Each user's error ends in one sentence and exit code 2, without a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import cluster.__main__ as cluster_main
import datasets.__main__ as datasets_main
import trainers.__main__ as trainers_main
import tuning.__main__ as tuning_main
from cluster.entry import run_room
from cluster.io import storage
from cluster.io.errors import MissingFileError, UserError
from datasets.manifest import SCHEMA_VERSION
from tests.conftest import ROOT
from tests.support.data import WriteData
from trainers.config import FinetuneConfig, ModelConfig, ScheduleConfig
from trainers.export.folder import CARD, publish
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from tuning.check import facts_of
from tuning.config import TuningConfig

pytestmark = pytest.mark.ray
MAINS = {
    "cluster": cluster_main,
    "datasets": datasets_main,
    "trainers": trainers_main,
    "tuning": tuning_main,
}

Fails = Callable[..., str]


@pytest.fixture
def fails(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Fails:
    """Return a function that runs a command line, sees exit code 2, and returns the sentence."""

    def run(room: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [room, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run_room(MAINS[room].main)
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert "Traceback" not in error
        return re.sub(r"[│\s]+", " ", error)  # tyro puts its own into a box

    return run


def write_images(folder: Path, *classes: str) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(3):
            image = np.random.default_rng(number).integers(0, 255, (40, 50, 3), np.uint8)
            cv2.imwrite(str(folder / name / f"{number}.jpg"), image)
    return folder


def test_a_reader_who_leaves_a_pipe_ends_a_command_silently() -> None:
    """As in `python -m cluster --help | head -1`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    run = subprocess.run(
        [sys.executable, "-u", "-m", "cluster", "--help"],
        stdout=write_end, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False,
    )  # fmt: skip
    os.close(write_end)
    assert (run.returncode, run.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("planted", [ValueError, FileNotFoundError, OSError])
def test_a_bug_of_ours_keeps_its_traceback(
    planted: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where one of Thaw's own lines raises what a user's error is made of."""
    monkeypatch.setattr(sys, "argv", ["datasets", "info", "--data", "cars"])

    def read_manifest(*arguments: object) -> None:
        raise planted("not enough values to unpack (expected 3, got 2)")

    monkeypatch.setattr("datasets.commands.read_manifest", read_manifest)
    with pytest.raises(planted) as caught:
        run_room(datasets_main.main)

    assert caught.traceback[-1].name == "read_manifest"


def test_a_bug_ends_with_its_traceback_and_another_code() -> None:
    script = """
import sys
from cluster.entry import run_room
from cluster.io import storage
from cluster.io.errors import MissingFileError, UserError
def main(arguments):
    freeze_depth, epochs, learning_rate = ("all", 4)
sys.argv = ["trainers"]
run_room(main)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "Traceback" in run.stderr and "expected 3, got 2" in run.stderr


def test_a_phase_of_two_values_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"phases is \('all', 4\): give each phase FREEZE"):
        ScheduleConfig(phases=(("all", 4),))  # type: ignore[arg-type]


def test_the_error_of_a_task_is_said_without_the_traceback_that_ray_makes_its_text(
    fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def run_info(config: object) -> None:
        def refuse() -> None:
            raise UserError("data is 'cars': no prepared data set there")

        ray.get(ray.remote(refuse).remote())  # pyright: ignore

    monkeypatch.setattr("datasets.commands.run_info", run_info)
    sentence = fails("datasets", "info", "--data", "cars")

    assert sentence == "error: data is 'cars': no prepared data set there "


def test_a_file_that_is_gone_is_named(fails: Fails, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none' does not exist; check the path"):
        storage.read_bytes(str(tmp_path / "none"))
    sentence = fails("trainers", "evaluate", "--run", tmp_path / "none")
    assert "no run folder there" in sentence


def test_prepare_names_what_is_wrong_with_the_source(fails: Fails, tmp_path: Path) -> None:
    def prepare(root: Path) -> str:
        return fails(
            "datasets", "prepare", "--source", "folder", "--root", root, "--out", tmp_path / "out"
        )

    (tmp_path / "empty").mkdir()
    one = write_images(tmp_path / "one", "sedan")

    assert str(tmp_path / "nowhere") in prepare(tmp_path / "nowhere")
    assert str(tmp_path / "empty") in prepare(tmp_path / "empty")
    assert "it has 1 class, 'sedan'; give a folder, or a table, of images" in prepare(one)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--backbone", "resnet51"], "model.backbone is 'resnet51': choose from resnet50"),
        (["--freeze-depth", "6"], "model.freeze_depth is 6: resnet50 has 5 stages"),
        (["--learning-rate", "-1"], "optim.learning_rate is -1.0: use a finite number above zero"),
        (["--learning-rate", "nan"], "optim.learning_rate is nan"),
        (["--momentum", "1"], "optim.momentum is 1.0: use 0 or more, and below 1"),
        (["--device", "gpu"], "cluster.device is 'gpu': the cluster has no GPU"),
        (["--init", "file"], "model.weights is None"),
        (["--num-workers", "33"], "global_batch_size is 32: give each of the 33 workers an image"),
        (["--num-workers", "32"], "cluster.num_workers is 32: the cluster has 6 CPUs"),
        (["--epochs", "0"], "epochs is 0"),
    ],
)
def test_training_names_field_value_and_remedy(
    fails: Fails, easy_data: str, tmp_path: Path, options: list[str], sentence: str
) -> None:
    init = [] if "--init" in options else ["--init", "he"]
    command = ["scratch", "--data", easy_data, "--out", tmp_path, "--wandb", "off", *init, *options]

    assert sentence in fails("trainers", *command)


def test_a_missing_or_newer_data_set_is_refused(
    fails: Fails, write_data: WriteData, tmp_path: Path
) -> None:
    newer = Path(write_data())
    manifest = json.loads((newer / "manifest.json").read_text())
    manifest["schema_version"] = SCHEMA_VERSION + 1
    (newer / "manifest.json").write_text(json.dumps(manifest))

    assert "update Thaw" in fails("trainers", "--data", newer)
    assert "no prepared data set there" in fails("tuning", "--data", tmp_path)
    assert "data is ''" in fails("trainers")


@pytest.mark.parametrize(
    ("file", "remedy"),
    {
        "nothing": (None, "--source ... --out {}`"),
        "photographs": ("data/audi/1.jpg", "--source folder --root {} --out ...`"),
        "an archive": ("data", "--source folder --root {} --out ...`"),
        "prepare was killed": ("data/.staging/part-0", "run its command again"),
        "a training": ("data/config.json", "--source ... --out {}`"),
    }.values(),
)
def test_what_is_not_prepared_is_refused_with_the_command_that_prepares_it(
    fails: Fails, tmp_path: Path, file: str | None, remedy: str
) -> None:
    data = tmp_path / "data"
    if file is not None:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()

    sentence = fails("trainers", "--data", data)

    assert "no prepared data set there" in sentence and remedy.format(data) in sentence


def test_a_checkpoint_of_another_class_count_is_refused(
    fails: Fails, easy_data: str, tmp_path: Path
) -> None:
    import safetensors.torch

    from trainers.networks.backbones import build

    config = FinetuneConfig(
        data=easy_data, out=str(tmp_path), model=ModelConfig(backbone="mobilenet_v2", init="he")
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    model = build("mobilenet_v2", 5)
    progress = TrainingProgress(epoch=1, val_top1=0.5, best_epoch=1, classes=tuple("abcde"))
    weights = safetensors.torch.save(model.state_dict())
    checkpoint.save(str(tmp_path), {"model.safetensors": weights}, progress)

    error = fails("trainers", "evaluate", "--run", tmp_path)

    assert "its checkpoint has 5 classes" in error and "has 3" in error
    assert "no run folder there" in fails("trainers", "evaluate", "--run", tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["sweep", "export"])
def test_a_folder_of_another_command_is_no_training(
    fails: Fails, tmp_path: Path, easy_data: str, kind: str
) -> None:
    """And no file of it is called damaged: deleting its config.json would destroy it."""
    out = str(tmp_path / kind)
    if kind == "sweep":
        facts = facts_of(TuningConfig(base=FinetuneConfig(data=easy_data)), "f")
        storage.write_bytes(f"{out}/config.json", json.dumps(facts).encode())
    else:
        storage.write_bytes(f"{tmp_path}/staged/{CARD}", b"card")
        publish(f"{tmp_path}/staged", out, {"backbone": "lenet5"}, [], [])
    of_read = fails("trainers", "evaluate", "--run", out)
    of_written = fails("trainers", "transfer", "--data", easy_data, "--out", out)
    of_none = fails("trainers", "evaluate", "--run", tmp_path)

    assert f"run is '{out}': the folder of a" in of_read and f"{kind}, not of a training" in of_read
    assert f"out is '{out}': the folder of a" in of_written and "use another --out" in of_written
    assert all("SWEEP/promoted/seed-0" in each for each in (of_read, of_none))
    assert "damaged" not in of_read + of_written


@pytest.mark.parametrize("room", MAINS)
def test_an_unknown_verb_lists_the_known_ones(fails: Fails, room: str) -> None:
    assert "'fly': choose from" in fails(room, "fly")


def test_only_a_finished_sweep_is_promoted(fails: Fails, tmp_path: Path) -> None:
    assert "no finished sweep there" in fails("tuning", "promote", "--sweep", tmp_path)


def test_a_sweep_checks_its_space(fails: Fails, easy_data: str) -> None:
    assert "model.freeze_depth is 9" in fails(
        "tuning", "--data", easy_data, "--inits", "imagenet", "--freeze-depths", "9"
    )
    assert "space.learning_rates" in fails("tuning", "--data", easy_data, "--learning-rates", "-1")
