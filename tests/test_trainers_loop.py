"""One process' training: phases, mid-epoch resume, averages, early stopping, what is recorded."""

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from datasets.manifest_file import read_manifest
from tests.support.data import WriteData
from tests.support.small import small_training
from tests.support.training import train_here
from trainers import metrics, stops
from trainers.checks import check
from trainers.config import (
    ClusterConfig,
    ComputeConfig,
    FinetuneConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrackConfig,
)
from trainers.loop import training
from trainers.networks.backbones import build
from trainers.networks.weights.initialization import initialize
from trainers.run import checkpoint, recorder
from trainers.run.checkpoint import TrainingProgress
from trainers.run.folder import find_result, write_result
from trainers.run.recorder import Recorder
from trainers.run.rows import read_rows
from trainers.run.stop import StoppedByUser, request_stop
from trainers.step.settings import train_settings
from trainers.step.state import TrainState
from trainers.worker import WorkerContext

pytestmark = pytest.mark.ray
HERE = WorkerContext(device=torch.device("cpu"), threads=1)


@pytest.fixture
def config(ray_cluster: str, easy_data: str, tmp_path: Path) -> FinetuneConfig:
    """Two phases, of 1 and 2 epochs of 3 steps, with all that is random or has a state."""
    return small_training(
        easy_data,
        str(tmp_path / "run"),
        model=ModelConfig(backbone="mobilenet_v2", init="he"),  # it has dropout
        optim=OptimConfig(optimizer="adamw", clipnorm=1.0, layer_decay=0.8, ema_decay=0.99),
        loss=LossConfig(label_smoothing=0.1, class_weights="balanced", mixup_alpha=0.4),
        schedule=ScheduleConfig(phases=(("all", 1, 3e-3), (5, 2, 1e-3)), schedule="cosine"),
        compute=ComputeConfig(accumulation_steps=2, precision="fp32"),
        cluster=ClusterConfig(num_workers=0),
    )


@pytest.fixture(scope="module")
def straight(ray_cluster: str, easy_data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run folder of `config`, trained straight through."""
    folder = tmp_path_factory.mktemp("straight")
    run: FinetuneConfig = config.__wrapped__(ray_cluster, easy_data, folder)  # pyright: ignore
    train_here(run)
    return run.out


def losses(run: str) -> list[float]:
    return [row["train/loss"] for row in read_rows(run)]


def best_weights(run: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(checkpoint.folder(run, 9) + "/model.safetensors")


class PowerCut(Exception):
    pass


def cut_at(monkeypatch: pytest.MonkeyPatch, num_steps: int | None) -> list[int]:
    """Let a step fail after `num_steps`; returns where the steps taken are counted."""
    taken, step = [0], training.train_step

    def limited(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        if taken[0] == num_steps:
            raise PowerCut
        taken[0] += 1
        return step(*args, **kwargs)

    monkeypatch.setattr(training, "train_step", limited)
    return taken


@pytest.mark.parametrize(
    ("cut", "resumed_at"),
    [
        (1, 0),
        (5, 4),
        *(pytest.param(cut, cut, marks=pytest.mark.extended) for cut in (2, 4, 8)),
    ],
    ids=lambda value: f"{value}",
)
def test_a_run_cut_in_mid_epoch_goes_on_at_its_checkpoint_and_ends_the_same(
    config: FinetuneConfig,
    straight: str,
    monkeypatch: pytest.MonkeyPatch,
    cut: int,
    resumed_at: int,
) -> None:
    with monkeypatch.context() as patch:
        cut_at(patch, cut)
        with pytest.raises(PowerCut):
            train_here(config)
    taken = cut_at(monkeypatch, None)
    result = train_here(config)

    assert taken == [9 - resumed_at] and result["global_step"] == 9
    assert losses(config.out) == losses(straight)
    for name, tensor in best_weights(config.out).items():
        assert torch.equal(tensor, best_weights(straight)[name]), name


def test_a_run_that_is_asked_to_stop_ends_at_a_checkpoint_and_resumes_there(
    config: FinetuneConfig, straight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "POLL_S", 0.0)
    config = replace(config, checkpoint_every_steps=500)
    write_result(config.out, TrainingProgress(), lost="4 images could not be read")  # repaired
    with pytest.raises(StoppedByUser):
        train_here(config, report=lambda row: request_stop(config.out))
    stopped = checkpoint.latest_progress(config.out)
    assert stopped is not None and 3 < stopped.global_step < 9
    assert stopped.global_step == read_rows(config.out)[-1]["global_step"]
    assert find_result(config.out) is None

    taken = cut_at(monkeypatch, None)
    train_here(config)
    assert taken == [9 - stopped.global_step]
    assert losses(config.out) == losses(straight)


def test_two_runs_of_the_same_seed_have_the_same_losses(
    config: FinetuneConfig, straight: str
) -> None:
    train_here(replace(config, seed=1, out=config.out + "-1"))
    train_here(config)

    assert losses(config.out) == losses(straight)
    assert losses(config.out + "-1") != losses(straight)


def test_each_phase_thaws_and_schedules_anew(straight: str) -> None:
    rows = read_rows(straight)

    norms = [{name for name in row if name.endswith("/grad_norm")} for row in rows]
    head = {"clip/grad_norm", "clip/head/grad_norm"}
    assert norms[:3] == [head] * 3
    assert norms[3:] == [head | {"clip/stage5/grad_norm", "clip/stage6/grad_norm"}] * 6
    rates = [row["optim/learning_rate"] for row in rows]
    assert rates[0] == 3e-3 and rates[3] == 1e-3  # cosine begins at each peak
    assert rates[2] < 1e-3 and rates[8] < 1e-4
    assert [row["epoch"] for row in rows if "val/top1" in row] == [1, 2, 3]


def test_an_average_is_evaluated_and_kept_and_training_goes_on_from_the_weights(
    config: FinetuneConfig,
) -> None:
    config = replace(config, optim=replace(config.optim, ema_decay=0.5), checkpoint_every_steps=500)
    train_here(config)
    kept = best_weights(config.out)
    _, contents = checkpoint.read(config.out, 9)
    raw = torch.load(io.BytesIO(contents["training.pt"]), weights_only=True)["model"]

    assert not torch.equal(raw["classifier.1.weight"], kept["classifier.1.weight"])
    frozen = "features.0.0.weight"
    assert torch.equal(raw[frozen], kept[frozen])


def test_a_seed_gives_the_same_start_in_any_memory_format(config: FinetuneConfig) -> None:
    starts: list[dict[str, torch.Tensor]] = []
    for channels_last in (True, False):
        compute = ComputeConfig(channels_last=channels_last, precision="fp32")
        state = TrainState(replace(config, compute=compute), 3, HERE)
        state.initialize()
        starts.append(state.evaluated.state_dict())

    assert all(torch.equal(tensor, starts[1][name]) for name, tensor in starts[0].items())


def test_a_network_without_buffers_has_an_average_too(config: FinetuneConfig) -> None:
    model = ModelConfig(backbone="lenet5", init="he")
    plain = replace(config, epochs=1, model=model, schedule=ScheduleConfig())
    train_here(plain)

    assert len(losses(plain.out)) == 3


def test_the_first_step_whose_gradient_is_not_finite_is_named_whatever_came_after() -> None:
    sums = metrics.Sums(("count", "finite"), "cpu")
    for finite in (1, 1, 0, 0):
        sums.add({"count": torch.tensor(8), "finite": torch.tensor(finite)})

    assert stops.find_bad_step(sums, step=20, world_size=1) == 19


def test_a_run_names_the_step_at_which_it_diverged(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate of the second step is too high; metrics are reduced after the third."""
    rates = iter([1e-3, 1e38, 1e-3])
    monkeypatch.setattr(training, "learning_rate_at", lambda *args, **kwargs: next(rates))
    wild = replace(
        config,
        checkpoint_every_steps=500,
        optim=OptimConfig(optimizer="sgd"),
        track=TrackConfig(log_every_steps=20),
    )
    with pytest.raises(ValueError, match=r"not finite from step 3 on \(epoch 1"):
        train_here(wild)
    assert json.loads((Path(config.out) / "result.json").read_text())["checkpoint"] is None


def test_totals_of_an_epoch_may_go_on_on_another_number_of_ranks() -> None:
    totals = {"count": 64.0, "loss_sum": 3.0, "steps": 8.0, "clip/grad_norm": 16.0}
    of_one = metrics.rescale(totals, 1 / 4)

    assert of_one == {"count": 64.0, "loss_sum": 3.0, "steps": 2.0, "clip/grad_norm": 4.0}
    assert metrics.means_of(totals)["clip/grad_norm"] == metrics.means_of(of_one)["clip/grad_norm"]


def test_settings_that_phases_replace_are_warned_of(
    config: FinetuneConfig, caplog: pytest.LogCaptureFixture
) -> None:
    changed = replace(config, epochs=30, optim=replace(config.optim, learning_rate=1e-5))
    check(changed, read_manifest(config.data))

    assert "epochs is not used: schedule.phases has its own" in caplog.text
    assert "optim.learning_rate is not used" in caplog.text
    assert "freeze_depth" not in caplog.text


def test_random_weights_that_stay_frozen_are_warned_of(
    config: FinetuneConfig, caplog: pytest.LogCaptureFixture
) -> None:
    frozen = ModelConfig(backbone="lenet5", init="he", freeze_depth=1)
    check(replace(config, model=frozen, schedule=ScheduleConfig()), read_manifest(config.data))

    assert "freeze depth 1 keeps stages at random weights, as init he draws them" in caplog.text


def test_parts_of_one_image_are_refused_where_batchnorm_needs_more(
    config: FinetuneConfig,
) -> None:
    manifest = read_manifest(config.data)
    config = replace(config, schedule=ScheduleConfig(), global_batch_size=8)
    check(replace(config, compute=ComputeConfig(accumulation_steps=5)), manifest)  # 4 parts of 2
    eight = replace(config, compute=ComputeConfig(accumulation_steps=8))
    message = r"global_batch_size is 8: .*steps 8\), of which BatchNorm of mobilenet_v2 has a sing"
    with pytest.raises(ValueError, match=message):
        check(eight, manifest)
    for model in (
        replace(config.model, freeze_depth="all"),
        replace(config.model, freeze_batchnorm=True),
    ):
        check(replace(eight, model=model), manifest)


def test_a_wrong_depth_of_a_phase_is_named_as_that(config: FinetuneConfig) -> None:
    for depth, words in ((9, "9: mobilenet_v2 has 7 stages"), ("lora:8", "has no attention")):
        schedule = ScheduleConfig(phases=((depth, 1, 3e-3),))
        with pytest.raises(ValueError, match=rf"^schedule\.phases is .*{words}"):
            check(replace(config, schedule=schedule), read_manifest(config.data))


def test_early_stopping_ends_a_run_that_no_longer_improves(config: FinetuneConfig) -> None:
    still = replace(
        config,
        epochs=9,
        model=replace(config.model, freeze_batchnorm=True),  # its statistics would go on changing
        optim=OptimConfig(learning_rate=1e-12),
        schedule=ScheduleConfig(early_stopping_epochs=2),
    )
    result = train_here(still)
    assert (result["epochs"], result["best_epoch"]) == (3, 1)
    assert train_here(still) == result  # it is over

    patient = replace(still, schedule=ScheduleConfig(early_stopping_epochs=3))
    assert train_here(patient)["epochs"] == 4


def test_early_stopping_waits_for_the_last_phase(config: FinetuneConfig) -> None:
    still = replace(
        config,
        optim=OptimConfig(),
        schedule=ScheduleConfig(phases=((0, 2, 1e-12), ("all", 3, 1e-12)), early_stopping_epochs=1),
    )
    assert train_here(still)["epochs"] == 3


def test_balanced_class_weights_make_classes_count_alike(
    config: FinetuneConfig, write_data: WriteData
) -> None:
    data = write_data(train=8, classes=3)  # 3, 3 and 2 images
    config = replace(config, data=data, global_batch_size=8)
    settings = train_settings(config, read_manifest(data), HERE)

    assert settings.class_weights_K is not None
    torch.testing.assert_close(settings.class_weights_K, torch.tensor([8 / 9, 8 / 9, 8 / 6]))


def test_validation_images_count_for_class_weights_where_they_train(
    config: FinetuneConfig, write_data: WriteData
) -> None:
    data = write_data(train=8, val=2, classes=3)  # 3, 3, 2 and 1, 1, 0 images
    config = replace(config, data=data, global_batch_size=8, train_on="train+val")
    settings = train_settings(config, read_manifest(data), HERE)

    assert settings.class_weights_K is not None
    torch.testing.assert_close(settings.class_weights_K, torch.tensor([10 / 12, 10 / 12, 10 / 6]))


def test_a_run_in_bfloat16_stays_near_that_in_float32(
    config: FinetuneConfig, straight: str
) -> None:
    compute = replace(config.compute, precision="bf16")
    train_here(replace(config, compute=compute))

    assert losses(config.out) != losses(straight)
    # Steps of Adam part further and further where gradients are about zero.
    assert losses(config.out)[:3] == pytest.approx(losses(straight)[:3], rel=0.05)
    assert losses(config.out) == pytest.approx(losses(straight), rel=0.5)


def test_a_run_in_float16_learns_although_its_first_steps_may_be_skipped(
    config: FinetuneConfig,
) -> None:
    compute = replace(config.compute, precision="fp16")
    train_here(replace(config, compute=compute))

    assert losses(config.out)[-1] < 0.95 * losses(config.out)[0]
    _, contents = checkpoint.read(config.out, 9)
    state = torch.load(io.BytesIO(contents["training.pt"]), weights_only=True)
    assert 1 <= state["scaler"]["scale"] <= 2**16


@pytest.mark.extended
def test_a_compiled_network_trains_the_same(config: FinetuneConfig) -> None:
    plain = replace(
        config,
        epochs=1,
        loss=LossConfig(),
        schedule=ScheduleConfig(),
        compute=ComputeConfig(precision="fp32"),
        model=ModelConfig(backbone="lenet5", init="he"),
        optim=OptimConfig(optimizer="sgd", learning_rate=1e-3),
    )
    train_here(plain)
    compiled = replace(
        plain, out=plain.out + "-compiled", compute=replace(plain.compute, compile=True)
    )
    train_here(compiled)

    assert losses(compiled.out) == pytest.approx(losses(plain.out), rel=1e-4)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A slow storage: checkpoints are written once the gate is opened."""
    opened, save = threading.Event(), checkpoint.save

    def wait_and_save(*args: Any) -> None:
        assert opened.wait(20)
        save(*args)

    monkeypatch.setattr(checkpoint, "save", wait_and_save)
    yield opened
    opened.set()


def test_training_goes_on_while_a_checkpoint_is_written_and_no_row_runs_ahead_of_it(
    tmp_path: Path, gate: threading.Event
) -> None:
    with Recorder(str(tmp_path)) as recorder:
        recorder.save(lambda: {"model.safetensors": b"weights"}, TrainingProgress(global_step=1))
        recorder.log({"global_step": 1})
        assert read_rows(str(tmp_path)) == []
        gate.set()

    assert read_rows(str(tmp_path)) == [{"global_step": 1}]
    latest = checkpoint.read_latest(str(tmp_path))
    assert latest is not None and latest.progress.global_step == 1


def test_what_cannot_be_written_ends_the_run(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train_here(config)
    assert not (Path(config.out) / "result.json").exists()


@pytest.mark.slow
@pytest.mark.extended
def test_inception_v3_fine_tunes_with_its_auxiliary_head(
    config: FinetuneConfig, write_data: WriteData
) -> None:
    """The lecture's Keras page; 299 px, as its auxiliary head needs them."""
    plain = replace(
        config,
        data=write_data(train=16, val=5, classes=3),
        epochs=1,
        global_batch_size=8,
        ingest=replace(config.ingest, size_px=299),
        model=ModelConfig(backbone="inception_v3", init="he", freeze_depth="all"),
        optim=OptimConfig(learning_rate=1e-2),
        loss=LossConfig(),
        schedule=ScheduleConfig(),
    )
    train_here(plain)
    trained = checkpoint.load_best(plain.out)[1]
    start = build("inception_v3", 3)
    initialize(start, plain.model, seed=plain.seed)

    changed = {n for n, t in start.state_dict().items() if not torch.equal(t, trained[n])}
    heads = {n for n in trained if n.startswith(("fc.", "AuxLogits."))}
    assert changed == heads and len(losses(plain.out)) == 2


@pytest.mark.parametrize("ends", [True, False])
def test_a_lone_worker_saves_between_two_rows_where_its_time_is_over(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """Rows are 1,000 steps apart, as where steps are slow; each checkpoint comes with one."""
    far = replace(config, checkpoint_every_steps=1000, track=TrackConfig(log_every_steps=1000))
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    train_here(far, save_from_s=0.0 if ends else None)

    steps = [row["global_step"] for row in read_rows(far.out)]
    assert steps == (list(range(1, 10)) if ends else [3, 6, 9])
