"""Heads that train together: losses of trainings alone, and their run folders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cluster.runtime import Resources, find_resources
from cluster.scaling import plan_workers
from datasets.config import IngestConfig
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from tests.test_tuning_prefixes import build_all, open_store, sweep_of
from trainers import launch, metrics
from trainers.config import (
    FinetuneConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
)
from trainers.heads.grouping import can_stack, stack_key
from trainers.heads.run import HeadRun
from trainers.heads.stack import HeadStack, find_linear_head
from trainers.heads.training import train_together
from trainers.networks import backbones
from trainers.networks.backbones import on_meta
from trainers.prepare import Run, prepare_run
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.folder import read_result
from trainers.run.rows import Row, epoch_rows, read_rows
from trainers.step.settings import step_settings
from trainers.step.state import TrainState
from trainers.step.step import eval_step, train_step
from trainers.worker import WorkerContext
from tuning import run as sweep_run
from tuning import sweep_plan
from tuning.combine.combinations import read_combinations
from tuning.shared import Shared
from tuning.sharing.keys import prefix_key
from tuning.sharing.rounds import Round, start_rounds
from tuning.trial import _train_round

RTOL = 1e-5
"""Of losses in float32, against a training alone."""


OPTIMS = [
    OptimConfig(learning_rate=1e-2, ema_decay=0.9),
    OptimConfig(learning_rate=3e-3, ema_decay=0.5, clipnorm=0.05, decay=0.01),
    OptimConfig(optimizer="adamw", weight_decay=0.1, global_clipnorm=0.1, ema_decay=0.9),
    OptimConfig(optimizer="sgd", learning_rate=0.1, weight_decay=0.01, ema_decay=0.9),
]


def test_steps_together_are_steps_alone(one_thread: None) -> None:
    """Metrics, weights, averages and optimizers, of heads with dropout before them."""
    depth = len(backbones.find("mobilenet_v2").stages)
    worker = WorkerContext(device=torch.device("cpu"), threads=1)
    model = ModelConfig(backbone="mobilenet_v2", init="he", freeze_depth="all")
    base = FinetuneConfig(data="", ingest=IngestConfig(size_px=32), model=model)
    base = replace(base, loss=LossConfig(label_smoothing=0.1))
    configs = [replace(base, optim=optim) for optim in OPTIMS]

    def start(config: FinetuneConfig) -> TrainState:
        torch.manual_seed(0)
        state = TrainState(config, 5, worker, cut_depth=depth)
        state.enter(config.phases[0])
        return state

    alone = [start(config) for config in configs]
    stack = HeadStack(start(configs[0]), configs, depth)
    settings = replace(step_settings(base, worker.device), label_smoothing=0.1)
    rates = [optim.learning_rate for optim in OPTIMS]
    rng = torch.Generator().manual_seed(0)
    for step in range(5):
        features = torch.rand(8, 1280, generator=rng).half()
        labels_B = torch.randint(-1, 5, (8,), generator=rng)
        torch.manual_seed(step)
        found = stack.train_step(
            features, labels_B, settings=settings, learning_rates=rates, num_updates=step
        )
        for number, (state, config) in enumerate(zip(alone, configs, strict=True)):
            assert state.optimizer is not None
            torch.manual_seed(step)
            expected = train_step(
                state.network,
                state.optimizer,
                features,
                labels_B,
                settings=replace(settings, optim=config.optim),
            )
            state.update_average()
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name][number].to(value), value, rtol=RTOL, atol=0)
    stack.keep([1, 2, 3])
    for number, state in enumerate(alone[1:]):
        state.evaluated.eval()
        columns_5B = eval_step(state.evaluated, features, labels_B, settings=settings)
        stack.eval_mode()
        found_5TB = stack.eval_step(features, labels_B, settings)
        torch.testing.assert_close(found_5TB[:, number], columns_5B)
        files, expected_files = stack.serialize(number, 5), state.serialize()
        weights = safetensors.torch.load(files["model.safetensors"])
        for name, tensor in safetensors.torch.load(expected_files["model.safetensors"]).items():
            torch.testing.assert_close(weights[name], tensor)
        state.load(files, state.model.state_dict())  # as a run alone resumes


@pytest.mark.ray
def test_heads_together_have_the_losses_of_heads_alone(
    ray_cluster: str, easy_data: str, tmp_path: Path
) -> None:
    """Of three optimizers, with and without clipping and decay; one diverges, one was resumed."""
    sweep = sweep_of("lenet5", easy_data, tmp_path)
    base = replace(sweep.base, model=replace(sweep.base.model, freeze_depth="all"), epochs=3)
    space = replace(sweep.space, freeze_depths=("all",))
    prefixes = build_all(replace(sweep, base=base, space=space), open_store(sweep)).prefixes
    optims = [*OPTIMS, OptimConfig(optimizer="sgd", learning_rate=3e38, ema_decay=0.9)]
    configs = [
        replace(base, optim=optim, schedule=ScheduleConfig(schedule="cosine", warmup_epochs=warmup))
        for optim, warmup in zip(optims, (0, 0.5, 1, 1.5, 0), strict=True)
    ]
    manifest, worker = read_manifest(easy_data), None

    def prepare(folder: str, number: int, epochs: int = 3):
        config = replace(configs[number], out=str(tmp_path / "sweep" / folder / str(number)))
        prefix = prefixes[prefix_key(config)]
        return prepare_run(config, find_resources(), manifest=manifest, prefix=prefix, here=True)

    alone = [prepare("alone", number) for number in range(len(configs))]
    for run in alone[:-1]:
        launch.fit_in_process(run)
    worker = launch.worker_here(alone[0].config.cluster, alone[0].workers)
    assert len({stack_key(run.config) for run in alone}) == 1
    assert can_stack(alone[0].config)
    for until in (1, 3):  # the second time from checkpoints
        together = [prepare("trials", number) for number in range(5 if until == 1 else 4)]
        train_together(together, worker, until=until)

    for one, other in zip(alone[:-1], together, strict=True):
        expected, rows = read_rows(one.config.out), read_rows(other.config.out)
        assert [r[metrics.GLOBAL_STEP] for r in rows] == [r[metrics.GLOBAL_STEP] for r in expected]
        for row, of_one in zip(rows, expected, strict=True):
            assert row.keys() == of_one.keys()
            for name in of_one:
                if name.startswith(("train/", "val/", "clip/", "optim/", "epoch")):
                    assert row[name] == pytest.approx(of_one[name], rel=RTOL, abs=1e-7), name
        result, its_result = read_result(other.config.out), read_result(one.config.out)
        assert result[metrics.VAL_TOP1] == pytest.approx(its_result[metrics.VAL_TOP1])
        _, weights = checkpoint.load_best(other.config.out)
        _, expected_weights = checkpoint.load_best(one.config.out)
        assert weights.keys() == expected_weights.keys()
        for name, tensor in expected_weights.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="gradients are not finite"):
        read_result(str(tmp_path / "sweep/trials/4"))

    killed = together[0].config  # between its last checkpoint and its result
    (tmp_path / "sweep/trials/0/result.json").unlink()
    planned = [(killed, stack_key(killed))]
    rounds = start_rounds(sweep, planned, max_together=1, num_concurrent=1)
    shared = Shared(manifest=manifest, prefixes=prefixes, rounds=rounds)
    _train_round(Round([killed], until=3), killed.out, shared, num_concurrent=1)
    assert read_result(killed.out)["epochs"] == 3


def test_a_head_that_is_killed_while_it_saves_keeps_the_rows_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FinetuneConfig(data="cars", out=str(tmp_path), epochs=3)
    fresh = TrainingProgress(classes=("a", "b"), fingerprint="f")
    progress, rows = fresh, list[Row]()
    for step in range(1, 4):
        progress = progress.after_epoch(
            global_step=step, val_top1=0.1 * step, total_s=1.0, peak_norm=0.0
        )
        rows.append({metrics.EPOCH: step, metrics.GLOBAL_STEP: step, metrics.VAL_TOP1: 0.1 * step})
    manifest = Manifest(classes=("a", "b"), splits={}, num_quarantined=0, fingerprint="f")
    here = Resources(num_nodes=1, num_cpus=1, num_gpus=0, memory_gib=1, object_store_gib=1)
    workers = plan_workers(here, config.cluster)
    run = Run(config=config, manifest=manifest, workers=workers)

    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", fail)
        with pytest.raises(OSError, match="No space"):
            HeadRun(run=run, progress=progress, saved=fresh, rows=rows).write({})
    assert epoch_rows(config.out) == rows[:2], "a resume adds that of its checkpoint"
    again = HeadRun(run=run, progress=progress, saved=fresh, rows=rows)
    again.write({"model.safetensors": b""})
    assert epoch_rows(config.out) == rows and read_result(config.out)["epochs"] == 3


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mobilenet_v2", "classifier.1"),
        ("resnet50", "fc"),
        ("alexnet", "classifier.6"),
        ("inception_v3", None),
    ],
)
def test_which_heads_are_linear(name: str, path: str | None) -> None:
    depth = len(backbones.find(name).stages)
    network = on_meta(name, 3, 224)
    assert find_linear_head(network, name, depth) == path
    assert find_linear_head(network, name, depth - 1) is None


def test_trainings_with_one_key_may_differ_in_the_optimizer_alone() -> None:
    base = FinetuneConfig(data="cars", model=ModelConfig(freeze_depth="all"))
    other = replace(base, out="runs/other", optim=OptimConfig(learning_rate=0.1, clipnorm=1.0))
    assert stack_key(base) == stack_key(other)
    assert stack_key(base) != stack_key(replace(base, seed=1))
    assert stack_key(base) != stack_key(replace(base, optim=OptimConfig(ema_decay=0.9)))


@pytest.mark.ray
@pytest.mark.extended
def test_a_sweep_trains_heads_together(
    ray_cluster: str,
    easy_data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """ASHA stops trials at its rungs; every trial has its own run folder and weights."""
    rounds: list[object] = []
    plan = sweep_run._plan_rounds

    def spy(*arguments: Any, **options: Any) -> Any:
        rounds.append(plan(*arguments, **options))
        return rounds[-1]

    monkeypatch.setattr(sweep_run, "_plan_rounds", spy)
    monkeypatch.setattr(sweep_plan, "count_concurrent", lambda *_: 2)
    sweep = sweep_of("lenet5", easy_data, tmp_path, epochs=4)
    rates = (1e-2, 1e-6, 3e-3, 1e-7, 1e-8)
    space = replace(sweep.space, freeze_depths=("all",), learning_rates=rates, clipnorms=(None,))
    answer = sweep_run.tune_sweep(replace(sweep, space=space))
    printed = capfd.readouterr().out
    places = [printed.index(f"{line}:") for line in ("Answer", "Test split", "Combined")]
    assert places == sorted(places), "the answer waits for nothing"
    assert printed.count("Answer:") == printed.count("Test split:") == 1
    assert answer["test"]["num_images"] == 13
    assert answer["sharing"]["num_computed"] == 4 * 48 + 17 + 13, "the test split's as well"
    assert (combined := read_combinations(answer["out"])) is not None and combined.weights
    assert rounds[0] is not None
    trials = answer["trials"]
    folders = {path.name for path in (tmp_path / "sweep/trials").iterdir()}
    assert folders == {trial["trial_id"] for trial in trials}, "their ids were known before"
    assert len(trials) == len(rates) and {trial["state"] for trial in trials} >= {"finished"}
    for trial in trials:
        rows = epoch_rows(trial["run"])
        assert [row[metrics.EPOCH] for row in rows] == list(range(1, trial["num_epochs"] + 1))
        progress, weights = checkpoint.load_best(trial["run"])
        assert progress.epoch == trial["best_epoch"] and weights
