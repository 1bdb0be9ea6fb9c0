"""Soups, ensembles and interpolations: pure functions, and networks whose best average is known."""

import copy
import json
import shlex
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from cluster.io.errors import UserError
from cluster.io.statistics import Estimate, bootstrap_difference
from cluster.runtime import Resources
from datasets.manifest_file import read_manifest
from tests.support.calibration import CALIBRATION
from tests.support.small import small_training
from tests.support.sweeps import write_json
from trainers.__main__ import parse
from trainers.config import FinetuneConfig, ModelConfig, OptimConfig
from trainers.evaluation.split import read_labelled
from trainers.export.config import ExportConfig
from trainers.export.export import export
from trainers.inference.config import PredictConfig
from trainers.inference.inference import open_network
from trainers.inference.predict import check_calibration, run_predict
from trainers.networks.backbones import build
from trainers.networks.freezing import train_mode
from trainers.run import checkpoint
from trainers.run.calibration import write_calibration
from trainers.run.checkpoint import TrainingProgress
from trainers.run.combination import describe_network, read_combination
from trainers.run.ensemble import Ensemble, join_tensors
from trainers.run.folder import load_best_model, write_config
from trainers.step.optim import build_optimizer
from trainers.step.settings import step_settings
from trainers.step.step import StepSettings, train_step
from tuning.combine import combine as combining
from tuning.combine.choose import Score, choose_ensemble, choose_soup, mix, score
from tuning.combine.combinations import (
    ENSEMBLE,
    SOUP,
    Combination,
    combined_uri,
    describe_combinations,
    export_command,
    tabulate_combinations,
)
from tuning.combine.combine import combine, write_run
from tuning.combine.members import Member, find_members
from tuning.combine.search import Attempt, Validation
from tuning.combine.weights import average, interpolate, list_live, recompute_statistics
from tuning.record.results import LEARNS, TrialResult

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = Resources(num_nodes=1, num_cpus=1.0, num_gpus=0, memory_gib=4, object_store_gib=1)


def test_tensors_are_averaged_and_interpolated_and_counters_are_not() -> None:
    first = {"w": torch.tensor([1.0, 3.0]), "frozen": torch.tensor([0.1]), "n": torch.tensor(5)}
    second = {"w": torch.tensor([3.0, 5.0]), "frozen": torch.tensor([0.1]), "n": torch.tensor(9)}
    soup = average([first, second, second])
    assert soup["w"].tolist() == pytest.approx([7 / 3, 13 / 3])
    assert soup["n"].item() == 5 and torch.equal(soup["frozen"], first["frozen"])

    mixed = interpolate(first, second, 0.75)
    assert mixed["w"].tolist() == [2.5, 4.5] and mixed["n"].item() == 9
    assert interpolate(first, second, 0.25, keep=["w"])["w"].tolist() == [3.0, 5.0]


def test_statistics_of_batchnorms_that_trained_are_those_of_the_images() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten())
    frozen = nn.BatchNorm2d(2)
    model.add_module("frozen", nn.Sequential(nn.Unflatten(1, (2, 4, 4)), frozen, nn.Flatten()))
    model.eval()
    live = model[1]
    assert isinstance(live, nn.BatchNorm2d)
    images_NHWC = torch.randint(0, 255, (8, 4, 4, 3), dtype=torch.uint8)
    settings = StepSettings(mean=(0.5,) * 3, std=(0.5,) * 3, optim=OptimConfig())
    recompute_statistics(model, [live], images_NHWC.split(4), settings)

    inputs_NCHW = ((images_NHWC / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    with torch.no_grad():
        seen = model[0](inputs_NCHW).transpose(0, 1).flatten(1)
    assert live.running_mean is not None and live.running_var is not None
    assert torch.allclose(live.running_mean, seen.mean(1), atol=1e-5)
    parts = seen.unflatten(1, (2, -1)).var(2)  # of each batch
    assert torch.allclose(live.running_var, parts.mean(1), atol=1e-5)
    assert frozen.num_batches_tracked is not None and frozen.num_batches_tracked.item() == 0
    assert not model.training and not live.training and live.momentum == 0.1


def test_only_thawed_batchnorms_have_other_statistics() -> None:
    model = build("mobilenet_v2", 3, 32)
    counts = [
        len(list_live(model, "mobilenet_v2", depth, freeze_batchnorm=False)) for depth in (7, 6, 0)
    ]
    assert counts[0] == 0 < counts[1] < counts[2]
    assert not list_live(model, "mobilenet_v2", 0, freeze_batchnorm=True)


def test_a_soup_takes_what_makes_it_better() -> None:
    scores = {(0, 1): Score(0.7, -1.0), (0, 2): Score(0.8, -0.9), (0, 2, 3): Score(0.8, -0.8)}
    asked: list[tuple[int, ...]] = []

    def evaluate(chosen: list[int]) -> Score:
        asked.append(tuple(chosen))
        return scores.get(tuple(chosen), Score(0.8, -0.85))

    assert choose_soup(5, Score(0.75, -1.0), evaluate) == [0, 2, 3]
    assert asked == [(0, 1), (0, 2), (0, 2, 3), (0, 2, 3, 4)]
    assert choose_soup(5, Score(0.75, -1.0), lambda chosen: None) == [0], "the budget is spent"


def test_an_ensemble_has_as_many_members_as_help() -> None:
    labels_N = np.array([0, 0, 1, 1])
    one_NK = np.log(np.array([[0.9, 0.1], [0.45, 0.55], [0.1, 0.9], [0.1, 0.9]]))
    two_NK = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.55, 0.45], [0.1, 0.9]]))
    bad_NK = np.log(np.array([[0.01, 0.99]] * 2 + [[0.99, 0.01]] * 2))
    assert choose_ensemble([one_NK, two_NK, bad_NK], labels_N) == 2
    assert choose_ensemble([one_NK, bad_NK], labels_N) == 1
    assert score(mix(np.stack([one_NK, two_NK])), labels_N).top1 == 1.0
    assert np.allclose(np.exp(mix(np.stack([one_NK, two_NK])))[1], [0.675, 0.325])


def test_the_interval_of_a_gain() -> None:
    right_N, half_N = np.ones(100, bool), np.arange(100) % 2 == 0
    gain = bootstrap_difference(half_N, right_N)
    assert gain.mean == 0.5 and 0.38 < gain.low < 0.42 < 0.58 < gain.high < 0.62
    assert bootstrap_difference(right_N, half_N).mean == -0.5
    same = bootstrap_difference(half_N, half_N)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    few_N = half_N | (np.arange(100) < 3)  # one image more
    assert bootstrap_difference(half_N, few_N).low == 0


def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    members = [nn.Sequential(nn.Flatten(), nn.Linear(12, 3)) for _ in range(2)]
    ensemble, images_BCHW = Ensemble(members), torch.randn(4, 3, 2, 2)
    mean_BK = torch.stack([m(images_BCHW).softmax(1) for m in members]).mean(0)
    assert torch.allclose(ensemble(images_BCHW).exp(), mean_BK, atol=1e-6)
    ensemble.load_state_dict(join_tensors([m.state_dict() for m in members]))


def training(data: str, out: Path, name: str) -> FinetuneConfig:
    return small_training(
        data, str(out / "trials" / name), model=ModelConfig(backbone="lenet5", init="he")
    )


def learn(config: FinetuneConfig) -> "OrderedDict[str, torch.Tensor]":
    """Train a network that knows the validation images by heart."""
    torch.manual_seed(0)
    model = build("lenet5", 3, 32)
    images_NHWC, labels_N = read_labelled(config, read_manifest(config.data), "val", range(17))
    optim = OptimConfig(learning_rate=3e-3)
    settings = step_settings(config, torch.device("cpu"))
    optimizer = build_optimizer(model, "lenet5", optim)
    train_mode(model, "lenet5", 0)
    for _ in range(60):
        train_step(
            model,
            optimizer,
            torch.tensor(images_NHWC),
            torch.tensor(labels_N),
            settings=settings,
        )
    return OrderedDict((name, t.clone()) for name, t in model.state_dict().items())


def keep_trial(
    config: FinetuneConfig, name: str, tensors: dict[str, torch.Tensor], rank: int
) -> TrialResult:
    manifest = read_manifest(config.data)
    progress = TrainingProgress(
        epoch=1,
        global_step=3,
        val_top1=0.9 - 0.1 * rank,
        best_val_top1=0.9 - 0.1 * rank,
        best_epoch=1,
        best_step=3,
        classes=manifest.classes,
        fingerprint=manifest.fingerprint,
    )
    write_config(config)
    checkpoint.save(config.out, {checkpoint.MODEL: safetensors.torch.save(tensors)}, progress)
    return TrialResult(
        rank=rank,
        trial_id=name,
        point={},
        val_top1=progress.val_top1,
        best_epoch=1,
        num_epochs=1,
        state="finished",
        verdict=LEARNS,
        run=config.out,
    )


def test_the_mean_of_two_wrong_networks_is_kept_where_it_is_right(
    easy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One always says the first class, the other never does; their biases cancel in the mean."""
    learnt = learn(training(easy_data, tmp_path, "learnt"))
    trials: list[TrialResult] = []
    for rank, (name, bias) in enumerate([("a", 30.0), ("b", -30.0), ("copy", -30.0)], start=1):
        config = training(easy_data, tmp_path, name)
        biased = learnt | {"head.bias": learnt["head.bias"] + torch.tensor([bias, 0, 0])}
        trials.append(keep_trial(config, name, biased, rank))
    manifest, out = read_manifest(easy_data), str(tmp_path)

    assert [member.trial_id for member in find_members(trials)] == ["a", "b"], "copies count once"
    found = combine(out, trials, manifest, HERE)
    assert found is not None and not found.is_cut
    soup = next(each for each in found.tried if each.kind == SOUP)
    assert soup.trials == ("a", "b") and soup.top1 == 1.0 and soup.is_kept
    config, progress, model = load_best_model(combined_uri(out, SOUP))
    assert progress.best_val_top1 == 1.0 and config.out == combined_uri(out, SOUP)
    combined = read_combination(config.out)
    assert combined is not None and combined.kind == SOUP and combined.name == "soup of 2 trials"
    assert [each.trial for each in combined.trials] == ["a", "b"]
    assert describe_network(config.out, config, progress) == "soup of 2 trials (lenet5)"
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, learnt[name], atol=1e-6)
    line, *_ = describe_combinations(out, found)
    assert line.startswith(f"soup of 2 trials {soup.gain.mean:+.3f} (") and "test top-1" not in line
    measured = {"epoch": progress.epoch, "fingerprint": progress.fingerprint, "num_images": 13}
    write_json(
        Path(config.out, "evaluation_test.json"), measured | {"test/top1": 0.5, "test/top5": 1.0}
    )
    assert "test top-1 0.500" in describe_combinations(out, found)[0]
    assert tabulate_combinations(out, found)[-1][-2:] == (0.5, config.out)

    # Again: nothing is computed; other weights of a trial are another combination.
    monkeypatch.setattr(combining, "search", pytest.fail)
    assert combine(out, trials, manifest, HERE) == found
    monkeypatch.undo()
    keep_trial(training(easy_data, tmp_path, "b"), "b", dict(learnt), 2)
    late = combine(out, trials[:2], manifest, HERE, left_s=0)
    assert late is not None and late.is_cut and not late.tried
    assert describe_combinations(out, late) == ["the budget ended before all were tried"]
    assert not Path(combined_uri(out, SOUP)).exists()


def test_stages_in_common_are_computed_once_with_the_same_result(
    easy_data: str, tmp_path: Path
) -> None:
    """Behind stage5 of MobileNetV2, whose BatchNorm statistics of stage6 are computed again."""
    config = replace(
        training(easy_data, tmp_path, "a"),
        model=ModelConfig(backbone="mobilenet_v2", init="he", freeze_depth=6),
    )
    member = Member(trial_id="a", run="", config=config, progress=TrainingProgress())
    model = build("mobilenet_v2", 3, 32).eval()
    predicted: list[np.ndarray] = []
    variances: list[torch.Tensor] = []
    for depth in (0, 6):
        manifest = read_manifest(easy_data)
        images = Validation(manifest, config, 1, False, float("inf"), lambda number: None)
        images.cut(model, depth)
        settled = images.settle(copy.deepcopy(model), [member])
        predicted_NK = images.predict(settled)
        assert predicted_NK is not None and images.labels_N.shape == (17,)
        predicted.append(predicted_NK)
        variances.append(settled.state_dict()["features.18.1.running_var"])
    assert np.allclose(*predicted, atol=1e-4) and torch.allclose(*variances, atol=1e-5)
    assert not torch.allclose(variances[0], torch.ones(())), "those of the start"


def test_an_ensemble_is_a_run_folder_that_is_exported(
    easy_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt = learn(training(easy_data, tmp_path, "learnt"))
    networks = learnt, {name: tensor + 0.1 for name, tensor in learnt.items()}
    trials = [
        keep_trial(training(easy_data, tmp_path, name), name, tensors, rank)
        for rank, (name, tensors) in enumerate(zip("ab", networks, strict=True), start=1)
    ]
    combination = Combination(
        kind=ENSEMBLE, trials=("a", "b"), top1=1.0, gain=Estimate(mean=0.5, low=0.1, high=0.9)
    )
    run = combined_uri(str(tmp_path), ENSEMBLE)
    attempt = Attempt(combination=combination, networks=networks)
    write_run(run, attempt, find_members(trials))

    _, _, model = load_best_model(run, ensembles=True)
    assert isinstance(model, Ensemble) and len(model.members) == 2
    with pytest.raises(UserError, match="an ensemble of 2 networks, which has no stages"):
        load_best_model(run)
    out = str(tmp_path / "exported")
    with pytest.raises(UserError, match="an ensemble is several networks: use --formats onnx"):
        export(ExportConfig(run=run, out=out))
    command = shlex.split(export_command(str(tmp_path), ENSEMBLE))[3:]
    found = parse(command)
    assert found.run == run and found.formats == ("onnx", "torch_export")
    files = export(replace(found, formats=("torch_export",)))
    assert files["torch_export"].max_difference < 1e-4
    described = json.loads(Path(found.out, "config.json").read_text())
    assert described["backbones"] == ["lenet5", "lenet5"] and "backbone" not in described
    of = {"kind": ENSEMBLE, "trials": ["a", "b"], "share": None}
    assert described["combined_from"] == of
    card = Path(found.out, "README.md").read_text()
    assert "# ensemble of 2 trials (lenet5) for" in card and "| a | lenet5 | he |" in card

    photos = str(tmp_path / "photos")
    predict = PredictConfig(images=photos, out=photos, run=run, rank_by="diversity")
    with pytest.raises(UserError, match="rank_by is 'diversity': the networks of an ensemble"):
        run_predict(predict)
    # Each member takes the other size; the calibration is of the first.
    write_calibration(run, 3, CALIBRATION)
    assert open_network(replace(predict, size_px=32), keep_head=True).calibration == CALIBRATION
    larger = replace(predict, size_px=40, coverage=0.9)
    network = open_network(larger, keep_head=True)
    assert (network.calibration, network.calibrated_px) == (None, 32)
    assert network.origin == f"ensemble of 2 trials (lenet5) ({run})"
    with pytest.raises(UserError, match="this one is for 32 px: leave --size-px out"):
        check_calibration(larger, network)
    check_calibration(replace(larger, coverage=None), network)
    assert f"size_px is 40: {run} is calibrated for 32 px" in capsys.readouterr().out
