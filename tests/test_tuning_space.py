"""The space of a sweep: points, the condition on random initializations, the command line."""

import shlex
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch

from cluster.io.markers import flatten
from datasets.manifest import join_splits
from datasets.manifest_file import read_manifest, write_manifest
from tests.support.data import WriteData
from tests.support.sweeps import write_json
from tests.test_datasets_folds import part
from trainers.config import PRETRAINED, FinetuneConfig, ModelConfig, OptimConfig
from trainers.networks.backbones import build
from trainers.recipes import RECIPES
from tuning.__main__ import parse
from tuning.axes.axis import CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE
from tuning.check import check, distinct_depths, facts_of
from tuning.config import SpaceConfig, TuningConfig
from tuning.demo import NUM_TRIALS, SPACE, SWEEP_SEED
from tuning.point import Point, apply, describe, training_of
from tuning.run import tune_sweep
from tuning.space import left_out, models, points, suggest

BASE = FinetuneConfig(data="data", model=ModelConfig(weights="weights.pth"))
MIXED = SpaceConfig(
    freeze_depths=("all", 3),
    learning_rates=(1e-3, 1e-4),
    clipnorms=(None, 1.0),
    inits=("file", "he", "zeros"),
)


def is_sound(point: Point) -> bool:
    return point[INIT] in PRETRAINED or point[FREEZE_DEPTH] == 0


def test_apply_replaces_only_what_the_point_names() -> None:
    config = apply(BASE, {"model.freeze_depth": 2, "optim.learning_rate": 0.5, "epochs": 3})
    assert config == FinetuneConfig(
        data="data",
        epochs=3,
        model=ModelConfig(weights="weights.pth", freeze_depth=2),
        optim=OptimConfig(learning_rate=0.5),
    )


def test_fields_of_a_section_are_replaced_at_once() -> None:
    before = FinetuneConfig(data="data", optim=OptimConfig(global_clipnorm=1.0))
    point: Point = {"optim.clipnorm": 2.0, "optim.global_clipnorm": None}
    assert apply(before, point).optim.clipnorm == 2.0


@pytest.mark.parametrize("path", ["optim.rate", "optimizer.learning_rate", "rate", "epochs.n"])
def test_unknown_path(path: str) -> None:
    with pytest.raises(ValueError, match=f"point has '{path}'"):
        apply(BASE, {path: 1})


def test_point_with_a_bad_value_names_its_field() -> None:
    with pytest.raises(ValueError, match=r"optim\.learning_rate is -1"):
        apply(BASE, {"optim.learning_rate": -1.0})


def test_grid_pairs_random_initializations_with_depth_0_alone() -> None:
    grid = points(MIXED, "grid", None, 0)
    assert len(grid) == (2 + 1 + 1) * 2 * 2
    assert all(map(is_sound, grid))
    assert {point[FREEZE_DEPTH] for point in grid if point[INIT] == "file"} == {"all", 3}
    assert len({describe(point) for point in grid}) == len(grid)
    for point in grid:
        apply(BASE, point)


def test_random_points_are_distinct_and_follow_the_seed() -> None:
    drawn = points(MIXED, "random", 10, 1)
    assert len({describe(point) for point in drawn}) == 10
    assert drawn == points(MIXED, "random", 10, 1)
    assert drawn != points(MIXED, "random", 10, 2)
    assert all(map(is_sound, drawn))
    assert len(points(MIXED, "random", 1000, 1)) == 16


def test_rates_from_a_range_visit_the_other_axes_evenly() -> None:
    space = SpaceConfig(
        freeze_depths=("all", 3),
        learning_rate_range=(1e-5, 1e-1),
        clipnorms=(None,),
        inits=("file", "he"),
    )
    drawn = points(space, "random", 300, 0)
    rates = [float(str(point[LEARNING_RATE])) for point in drawn]
    assert all(1e-5 <= rate <= 1e-1 for rate in rates)
    assert 0.4 < sum(rate < 1e-3 for rate in rates) / 300 < 0.6, "uniform in the logarithm"
    for model in models(space):
        assert sum(model.items() <= point.items() for point in drawn) == 100


def test_left_out_pairs_are_counted() -> None:
    line = left_out(MIXED)
    assert line is not None and line.startswith("left out 4 pairs: he, zeros with freeze depth all")
    assert left_out(SpaceConfig(inits=("imagenet",))) is None
    assert left_out(SpaceConfig(inits=("he",), freeze_depths=(0,))) is None


def test_optuna_draws_under_the_same_condition() -> None:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    drawn: list[Point] = []
    for _ in range(40):
        trial = study.ask()
        drawn.append(suggest(trial, MIXED) | trial.params)
        study.tell(trial, 0.0)
    assert all(map(is_sound, drawn))
    assert {point[INIT] for point in drawn} == set(MIXED.inits)
    assert {point[CLIPNORM] for point in drawn} == {None, 1.0}
    for point in drawn:
        apply(BASE, point)


def test_demo_draws_every_depth_and_every_initialization() -> None:
    drawn = points(SPACE, "random", NUM_TRIALS, SWEEP_SEED)
    assert len(drawn) == NUM_TRIALS >= 12
    for model in models(SPACE):
        assert any(model.items() <= point.items() for point in drawn)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rates": (1e-3, -1.0)}, r"space\.learning_rates is -1\.0"),
        ({"clipnorms": (0.0,)}, r"space\.clipnorms is 0\.0"),
        ({"inits": ()}, r"space\.inits is \(\)"),
        ({"freeze_depths": (1, 1)}, r"space\.freeze_depths is \(1, 1\)"),
        ({"learning_rate_range": (1e-2, 1e-4)}, r"space\.learning_rate_range"),
    ],
)
def test_bad_space(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpaceConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"search": "grid", "trials": 3}, "trials is 3: a grid runs every point"),
        ({"grace_epochs": 0}, "grace_epochs is 0"),
        ({"reduction_factor": 1}, "reduction_factor is 1"),
        (
            {"search": "grid", "space": SpaceConfig(learning_rate_range=(1e-4, 1e-2))},
            "a grid needs --learning-rates",
        ),
        (
            {"base": FinetuneConfig(data="", optim=OptimConfig(global_clipnorm=1.0))},
            "unset one of the two",
        ),
    ],
)
def test_bad_sweep(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuningConfig(**{"base": BASE, **values})


def test_the_default_freeze_depths_suit_any_network(capsys: pytest.CaptureFixture[str]) -> None:
    for backbone, kept in (
        ("resnet50", ("all", 0.75, 0.5, 0)),  # 5, 4, 3 and 0 stages
        ("nasnet_mobile", ("all", 0.75, 0.5, 0)),
        ("lenet5", ("all", 0.75, 0)),
    ):
        sweep = distinct_depths(parse(["--data", "d", "--backbone", backbone]))
        assert sweep.space.freeze_depths == kept
    assert capsys.readouterr().out == (
        "freeze depth 0.5 is left out: in lenet5, 0.75 freezes the same 2 stages\n"
    )
    of_random = distinct_depths(parse(["--data", "d", "--backbone", "lenet5", "--inits", "he"]))
    assert capsys.readouterr().out == "", "nothing is frozen"
    assert of_random.space.freeze_depths == ("all", 0.75, 0), "as older sweeps have it"
    shares = parse(["--data", "d", "--freeze-depths", "all", "0.75", "layer2", "-1"])
    assert shares.space.freeze_depths == ("all", 0.75, "layer2", -1)


def test_command_line() -> None:
    arguments = (
        "--data d --freeze-depths all 4 0 --learning-rates 1e-3 3e-4 --clipnorms none 1.0 "
        "--inits file he --backbone mobilenet_v2 --weights w.pth --epochs 8 --policy none"
    )
    config = parse(shlex.split(arguments))
    assert config.space == SpaceConfig(
        freeze_depths=("all", 4, 0),
        learning_rates=(1e-3, 3e-4),
        clipnorms=(None, 1.0),
        inits=("file", "he"),
    )
    assert config.base.model.backbone == "mobilenet_v2"
    assert config.base.model.weights == "w.pth"
    assert (config.base.epochs, config.base.ingest.policy) == (8, "none")
    assert config.base.optim.optimizer == "adamw", "the recipe's"
    assert config.base.optim.global_clipnorm is None, "clipnorm takes its place"
    keep = parse(["--data", "d", "--clipnorms", "none"])
    assert keep.base.optim.global_clipnorm == 1.0


def test_a_network_is_named_in_one_place() -> None:
    with pytest.raises(ValueError, match="backbone is 'lenet5': --backbones takes its place"):
        parse(["--data", "d", "--backbone", "lenet5", "--backbones", "resnet50"])


LENET = "--backbone lenet5 --inits he --size-px 32 --global-batch-size 16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (f"{LENET} --axis optim.learning_rate -1..1", "optim.learning_rate is -1.0"),
        (f"{LENET} --axis global_batch_size 16..1000", "global_batch_size is 1000: there are 48"),
        (f"{LENET} --axis model.drop_path 0..0.2", "model.drop_path is 0.2: lenet5 has no resid"),
        (
            "--backbone mobilenet_v2 --inits file --weights W --axis model.freeze_depth 0..9",
            "model.freeze_depth is 9: mobilenet_v2 has 7 stages",
        ),
        (f"{LENET} --axis optim.momentum 0.8 0.9", "axis is 'optim.momentum': no trial uses it: a"),
        (f"{LENET} --axis model.weights a b", "axis is 'model.weights': no trial uses it: init he"),
        (
            f"{LENET} --axis optim.optimizer adam sgd",
            r"adam takes none: use 0, or the optimizer adamw \(in a trial with .* optimizer=adam\)",
        ),
    ],
)
def test_every_value_of_a_space_is_checked(
    write_data: WriteData, tmp_path: Path, options: str, message: str
) -> None:
    """Both bounds of a range too, by the data set and the network."""
    torch.save(build("mobilenet_v2", 3).state_dict(), tmp_path / "w.pth")
    words = options.replace(" W ", f" {tmp_path / 'w.pth'} ").split()
    config = parse(["--data", write_data(), "--out", str(tmp_path / "sweep"), *words])
    with pytest.raises(ValueError, match=message):
        check(distinct_depths(config))


def test_a_field_that_some_trials_use_is_an_axis(write_data: WriteData, tmp_path: Path) -> None:
    words = f"{LENET} --axis optim.optimizer adamw sgd --axis optim.momentum 0.8 0.9".split()
    check(parse(["--data", write_data(), "--out", str(tmp_path / "sweep"), *words]))


def test_a_promotion_needs_a_test_split(write_data: WriteData) -> None:
    config = parse(["--data", write_data(test=0), *LENET.split(), "--promote"])
    with pytest.raises(ValueError, match="promote is True: this data set has no test split to"):
        check(config)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_images_is_none(write_data: WriteData, split: str) -> None:
    config = parse(["--data", write_data(**{split: 0}), *LENET.split()])
    with pytest.raises(ValueError, match=f"split is '{split}': this data set has"):
        check(config)


def test_a_sweep_is_not_written_into_its_data_set(write_data: WriteData) -> None:
    data = write_data()
    config = parse(["--data", data, "--out", f"{data}/", *LENET.split()])
    with pytest.raises(ValueError, match=r"out is .*: the data set is in this folder; use another"):
        tune_sweep(config)


def test_weights_that_no_trial_reads_are_refused_where_a_sweep_begins(
    write_data: WriteData, tmp_path: Path
) -> None:
    """An older Thaw took them, and its sweeps go on."""
    out = tmp_path / "sweep"
    config = parse(["--data", write_data(), "--out", str(out), *LENET.split()])
    model = replace(config.base.model, weights=str(tmp_path / "w.pth"))
    unread = replace(config, base=replace(config.base, model=model))
    with pytest.raises(ValueError, match=r"model.weights is .*w.pth': no trial reads it"):
        check(unread)
    write_json(out / "config.json", facts_of(unread, read_manifest(config.base.data).fingerprint))
    check(unread)


def test_a_folder_with_something_else_is_named(write_data: WriteData, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = parse(["--data", write_data(), "--out", str(out), *LENET.split()])
    write_json(out / "config.json", config.base.to_dict())
    with pytest.raises(ValueError, match=r"out is .*run': its config.json is not that of a sweep"):
        check(config)
    write_json(out / "config.json", facts_of(config, read_manifest(config.base.data).fingerprint))
    other = replace(config, base=replace(config.base, data=write_data(train=64)))
    with pytest.raises(ValueError, match=r"base.data is .*: the sweep in .*run has"):
        check(other)


def test_another_fold_and_data_that_was_prepared_again_are_told_apart(
    write_data: WriteData, tmp_path: Path
) -> None:
    data = write_data()
    manifest = read_manifest(data)
    folds = manifest.split("val"), part("fold-1", 2, 2, 2)
    train = join_splits([manifest.split("train"), folds[1]])
    write_manifest(data, replace(manifest, splits={**manifest.splits, "train": train}, folds=folds))
    config = parse(["--data", data, "--out", str(tmp_path / "sweep"), *LENET.split()])
    write_json(tmp_path / "sweep/config.json", facts_of(config, manifest.fingerprint))
    check(config)
    with pytest.raises(ValueError, match=r"base.fold is 1: the sweep in .*sweep has 0; use the sa"):
        check(replace(config, base=replace(config.base, fold=1)))
    write_manifest(data, replace(read_manifest(data), fingerprint="new"))
    with pytest.raises(ValueError, match=r"data is .*: it was prepared again since the sweep in"):
        check(config)


def test_an_axis_that_is_left_out_is_another_space(write_data: WriteData, tmp_path: Path) -> None:
    arguments = ["--data", write_data(), "--out", str(tmp_path / "sweep"), *LENET.split()]
    searched = parse([*arguments, "--axis", "optim.weight_decay", "0", "0.05"])
    facts = facts_of(searched, read_manifest(searched.base.data).fingerprint)
    write_json(tmp_path / "sweep/config.json", facts)
    check(searched)
    with pytest.raises(ValueError, match=r"space.optim.weight_decay is None: the sweep in .* has"):
        check(parse(arguments))


def test_options_set_the_fields_they_are_derived_from() -> None:
    line = "--data d --out o --trials 5 --seed 3 --epochs 1 --size-px 64 --policy none --views 2 "
    line += "--backbone lenet5 --clipnorms none 0.5 --num-workers 2 --wandb off --no-share"
    config = parse(line.split())
    found = flatten(config.to_dict())

    assert found["base.data"] == "d" and found["out"] == "o" and found["trials"] == 5
    assert found["seed"] == found["base.seed"] == 3
    assert (found["base.epochs"], found["base.schedule.warmup_epochs"]) == (1, "auto")
    assert training_of(config.base, {}).schedule.warmup_epochs == 0.5
    assert (found["base.ingest.size_px"], found["base.ingest.policy"]) == (64, "none")
    assert (found["base.ingest.views"], found["base.model.backbone"]) == (2, "lenet5")
    assert found["space.clipnorms"] == [None, 0.5]
    assert found["base.optim.global_clipnorm"] is None, "the space clips per tensor"
    assert found["base.loss.mixup_alpha"] == found["base.loss.cutmix_alpha"] == 0
    assert found["base.optim.weight_decay"] == RECIPES["finetune"].optim.weight_decay
    assert (found["base.cluster.num_workers"], found["base.track.wandb"]) == (2, "off")
    assert not found["share"]
