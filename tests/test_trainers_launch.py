"""Whole trainings on the real cluster: DDP, resume, killed workers, evaluation, user errors."""

import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from ray.util.state import list_actors

from cluster.io import storage
from cluster.ray_internals import find_session_folder
from cluster.runtime import find_resources
from tests.support.data import WriteData, find_shard, flip_byte, rename_classes
from tests.support.small import living_workers, small_training
from tests.support.training import train_here, train_in_workers
from trainers.config import (
    ClusterConfig,
    ComputeConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
)
from trainers.evaluation.evaluate import write_evaluation
from trainers.prepare import plan_training, prepare_run
from trainers.run import checkpoint
from trainers.run.predictions import read_predictions
from trainers.run.rows import read_rows

pytestmark = pytest.mark.ray
# Two workers add up their gradients in another order than one does.
WORKERS_TOLERANCE = 1e-4


@pytest.fixture
def config(ray_cluster: str, easy_data: str, tmp_path: Path) -> FinetuneConfig:
    """ResNet50's head, then its last stage as well, BatchNorm frozen: 3 epochs of 3 steps."""
    return small_training(
        easy_data,
        str(tmp_path / "run"),
        model=ModelConfig(backbone="resnet50", init="he", freeze_batchnorm=True),
        # Not Adam: where a gradient is about zero, it turns rounding errors into whole steps.
        optim=OptimConfig(optimizer="sgd", learning_rate=1e-3, clipnorm=1.0, decay=1e-2),
        schedule=ScheduleConfig(phases=(("all", 1, 1e-3), (4, 2, 1e-3))),
        cluster=ClusterConfig(num_workers=2, max_failures=1),
    )


@pytest.fixture
def single(config: FinetuneConfig) -> FinetuneConfig:
    """The last of its phases alone, for 3 epochs."""
    model = replace(config.model, freeze_depth=4)
    return replace(config, epochs=3, model=model, schedule=ScheduleConfig())


@pytest.fixture
def light(config: FinetuneConfig) -> FinetuneConfig:
    """LeNet-5, small to train and to save, for 3 epochs."""
    model = ModelConfig(backbone="lenet5", init="he")
    return replace(config, epochs=3, model=model, schedule=ScheduleConfig())


def losses(run: str) -> list[float]:
    return [row["train/loss"] for row in read_rows(run)]


def weights(run: str, step: int = 9) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(checkpoint.folder(run, step) + "/model.safetensors")


@pytest.fixture(scope="module")
def straight(ray_cluster: str, easy_data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run folder of two DDP workers, trained straight through."""
    folder = tmp_path_factory.mktemp("straight")
    run: FinetuneConfig = config.__wrapped__(ray_cluster, easy_data, folder)  # pyright: ignore
    train_in_workers(run)
    return run.out


@pytest.mark.slow
def test_two_workers_equal_one_at_the_same_global_batch(
    straight: str, config: FinetuneConfig
) -> None:
    rows: list[dict[str, Any]] = []
    result = train_here(config, report=rows.append)

    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert result["global_step"] == 9
    assert losses(config.out) == pytest.approx(losses(straight), rel=WORKERS_TOLERANCE)
    for name, tensor in weights(config.out).items():
        torch.testing.assert_close(
            tensor, weights(straight)[name], rtol=WORKERS_TOLERANCE, atol=WORKERS_TOLERANCE
        )


def test_workers_are_spread_over_nodes(straight: str) -> None:
    workers = [actor for actor in list_actors(limit=1000) if "TrainWorker" in actor.class_name]

    assert len({actor.node_id for actor in workers}) >= 2


def test_reports_are_not_logged(straight: str) -> None:
    """Ray's log of a worker's program has no end: each report would add 2 kB."""
    logs = [*Path(find_session_folder(), "logs/train").glob("ray-train-app-worker-*.log")]

    assert logs and not [log for log in logs if "Reporting training result" in log.read_text()]


def test_a_run_does_not_go_on_with_another_data_set(
    light: FinetuneConfig, write_data: WriteData
) -> None:
    data = write_data(train=32)
    run = replace(light, data=data, epochs=1)
    train_here(run)
    shutil.copytree(write_data(train=40), data, dirs_exist_ok=True)

    with pytest.raises(ValueError, match="prepared again since the run"):
        train_here(replace(run, epochs=2))


def kill_a_worker_at(config: FinetuneConfig, step: int) -> threading.Thread:
    """Kill one of a run's workers once it has told of `step`; the thread ends with it."""

    def kill() -> None:
        while not any(row["global_step"] == step for row in read_rows(config.out)):
            time.sleep(0.02)
        os.kill(living_workers()[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_worker_killed_in_mid_epoch_changes_nothing_and_what_is_saved_was_measured(
    config: FinetuneConfig,
) -> None:
    """Killed in the second phase: statistics that change, an average of the weights, shares of 8
    and 9 images in parts."""
    live = replace(
        config,
        global_batch_size=17,
        checkpoint_every_steps=1,
        model=ModelConfig(backbone="mobilenet_v2", init="he"),
        optim=OptimConfig(ema_decay=0.9, clipnorm=1.0),
        schedule=ScheduleConfig(phases=(("all", 1, 1e-3), (6, 2, 1e-3))),
        compute=ComputeConfig(accumulation_steps=3, precision="fp32"),
    )
    train_in_workers(live)
    cut = replace(live, out=live.out + "-cut")
    killer = kill_a_worker_at(cut, step=3)
    train_in_workers(cut)
    killer.join()
    progress = checkpoint.load_best(cut.out)[0]
    evaluated = write_evaluation(cut.out, split="val")

    assert losses(cut.out) == losses(live.out) and len(losses(cut.out)) == 6
    for name, tensor in weights(cut.out, step=6).items():
        assert torch.equal(tensor, weights(live.out, step=6)[name]), name
    assert evaluated["val/loss"] == pytest.approx(progress.row["val/loss"], rel=1e-5)
    assert evaluated["val/top1"] == progress.row["val/top1"]
    predictions = read_predictions(cut.out)  # of two ranks, and of a sitting that was cut
    once = storage.read_parquet(f"{cut.out}/evaluation_val/predictions.parquet")
    assert predictions is not None
    for column in ("row", "label", "predicted"):
        assert predictions.table[column].to_pylist() == once[column].to_pylist()
    assert predictions.table["confidence"].to_pylist() == pytest.approx(
        once["confidence"].to_pylist(), rel=1e-4
    )


def test_a_resumed_run_equals_a_straight_one(light: FinetuneConfig) -> None:
    train_here(light)
    cut = replace(light, out=light.out + "-cut", epochs=1)
    train_here(cut)
    train_here(replace(cut, epochs=3))

    assert losses(cut.out) == losses(light.out)
    for name, tensor in weights(cut.out).items():
        assert torch.equal(tensor, weights(light.out)[name])


def test_a_finished_run_returns_at_once_and_another_config_is_refused(
    light: FinetuneConfig,
) -> None:
    short = replace(light, epochs=1)
    first = train_here(short)
    rows: list[dict[str, Any]] = []

    assert train_here(short, report=rows.append) == first and rows == []
    other = replace(short, seed=1)
    with pytest.raises(ValueError, match=r"seed is 1: the run in .* was started with 0"):
        train_here(other)


@pytest.mark.extended
def test_zeros_do_not_learn(config: FinetuneConfig) -> None:
    """With every weight zero, features are zero and so is every gradient but the head's bias."""
    zeros = ModelConfig(backbone="resnet50", init="zeros")
    train_here(replace(config, model=zeros))

    assert losses(config.out) == pytest.approx([log(3)] * 9, abs=0.05)
    tensors = weights(config.out)
    assert not tensors["fc.weight"].any() and not tensors["conv1.weight"].any()


def test_evaluation_counts_each_test_image_once(
    straight: str, write_data: WriteData, tmp_path: Path
) -> None:
    result = write_evaluation(straight)

    assert result["num_images"] == 13
    assert result["test/top1"] * 13 == pytest.approx(round(result["test/top1"] * 13))
    assert result["test/top5"] == 1.0  # of three classes
    assert (Path(straight) / "evaluation_test.json").is_file()
    with pytest.raises(ValueError, match=r"its checkpoint has 3 classes .* has 4"):
        write_evaluation(straight, data=rename_classes(write_data(classes=4), "no class {}"))


def test_best_weights_survive_when_the_folder_moves(straight: str, tmp_path: Path) -> None:
    moved = shutil.copytree(straight, tmp_path / "moved")

    assert checkpoint.load_best(str(moved))[0] == checkpoint.load_best(straight)[0]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(
    single: FinetuneConfig,
) -> None:
    """Ended once, not tried again: the same seed would diverge at the same step."""
    train_here(replace(single, epochs=1))
    run = replace(single, out=single.out + "-wild")
    shutil.copytree(single.out, run.out)
    for name in ("config.json", "result.json"):
        (Path(run.out) / name).unlink()
    before = checkpoint.load_best(run.out)[1]
    wild = replace(run, optim=replace(run.optim, learning_rate=1e30))
    for _ in range(2):
        with pytest.raises(
            ValueError,
            match=r"gradients are not finite from step [456] on \(epoch 2, .*: lower optim",
        ):
            train_here(wild)

    assert checkpoint.load_best(run.out)[0].epoch == 1
    for name, tensor in checkpoint.load_best(run.out)[1].items():
        assert torch.equal(tensor, before[name])


def test_a_row_that_was_measured_but_not_tracked_comes_back_at_the_resume(
    light: FinetuneConfig,
) -> None:
    """As after a kill between the checkpoint and metrics.jsonl."""
    train_here(replace(light, epochs=1))
    rows = Path(light.out) / "metrics.jsonl"
    whole = rows.read_text()
    rows.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    train_here(replace(light, epochs=2))

    assert rows.read_text().startswith(whole)


def test_workers_share_the_global_batch_also_where_their_number_is_not_set(
    config: FinetuneConfig,
) -> None:
    """Three nodes, and batches of 2 images."""
    free = replace(config, cluster=ClusterConfig())
    small = replace(free, global_batch_size=2)

    assert plan_training(free, find_resources()).num_workers == 3
    assert plan_training(small, find_resources()).num_workers == 2


BAD = {
    "no such data": ({"data": "/nowhere"}, "data is '/nowhere': no prepared data set there"),
    "unknown backbone": (
        {"model": {"backbone": "resnet51"}}, "model.backbone is 'resnet51': choose from",
    ),
    "depth out of range": ({"schedule": {"phases": [(6, 1, 1e-3)]}}, "schedule.phases is 6"),
    "images too small": (
        {"model": {"backbone": "inception_v3"}}, "ingest.size_px is 32: too small for inception_v3",
    ),
    "missing weights": (
        {"model": {"init": "file", "weights": "/nowhere.pth"}}, "model.weights is '/nowhere.pth'",
    ),
    "batch too large": ({"global_batch_size": 50}, "global_batch_size is 50: there are 48"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_a_users_error_is_found_before_anything_starts(
    config: FinetuneConfig, changes: dict[str, Any], message: str
) -> None:
    values = config.to_dict()
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    values["cluster"]["num_workers"] = 1
    bad = FinetuneConfig.from_dict(values)

    with pytest.raises(ValueError, match=message):
        prepare_run(bad)
    assert not Path(bad.out).exists()


def test_a_gpu_asked_where_none_is_is_the_users_error(config: FinetuneConfig) -> None:
    asked = replace(config, cluster=ClusterConfig(device="gpu"))

    with pytest.raises(ValueError, match=r"cluster\.device is 'gpu'"):
        train_in_workers(asked)


def test_lost_images_are_counted_named_and_survived(
    light: FinetuneConfig, write_data: WriteData
) -> None:
    data = write_data()
    flip_byte(find_shard(data, "train"), 11, at=300)
    flip_byte(find_shard(data, "val"), 3, at=300)
    rows: list[dict[str, Any]] = []
    lenient = replace(light.ingest, max_bad_fraction=0.1)
    train_here(replace(light, data=data, ingest=lenient), report=rows.append)

    assert [row["ingest/lost_images"] for row in rows] == [2, 2, 2]
    for split, place, lost in zip(
        ("train", "val"),
        ("row group 1 row 3", "row group 0 row 3"),
        rows[0]["ingest/lost_names"],
        strict=True,
    ):
        assert f"{split}/{find_shard(data, split).name} {place}" in lost
    assert write_evaluation(light.out, split="val")["num_images"] == 16


def test_a_run_on_rotten_data_stops_in_one_sentence_and_resumes_on_whole_data(
    light: FinetuneConfig, write_data: WriteData
) -> None:
    data = write_data()
    shard = find_shard(data, "train")
    whole = shard.read_bytes()
    flip_byte(shard, 11, at=300)
    light = replace(light, data=data)

    with pytest.raises(ValueError, match=r"max_bad_fraction is 0\.01: 1 of 48 train images"):
        train_in_workers(light)

    shard.write_bytes(whole)
    assert train_here(light)["epochs"] == 3


def test_a_run_of_more_workers_than_there_are_cpus_is_evaluated_here(
    config: FinetuneConfig,
) -> None:
    """Evaluation takes one process, whatever the training took."""
    many = replace(config, cluster=ClusterConfig(num_workers=16))
    with pytest.raises(ValueError, match=r"num_workers is 16: the cluster has 6 CPUs"):
        plan_training(many, find_resources())

    assert prepare_run(many, here=True).workers.num_workers == 0
