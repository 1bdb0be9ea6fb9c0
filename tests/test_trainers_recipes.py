"""Every recipe builds, travels as JSON, fits the command line, and trains as recorded."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.golden import GOLDEN, RUNS, losses_of
from trainers.__main__ import parse
from trainers.config import AUTO, FinetuneConfig, OptimConfig, ScheduleConfig
from trainers.recipes import RECIPES, finetune, pretrained, scratch, staged, transfer
from tuning.__main__ import parse as sweep_parse
from tuning.axes.axis import read_axis
from tuning.config import TuningConfig
from tuning.winner import command_of

# Convolutions add up in another order on another kind of CPU.
GOLDEN_TOLERANCE = 5e-3
# Where most of a random network trains, each step multiplies that by 20 or more (AMD against Intel:
# scratch 4e-5, 8e-4, 5e-2 from the second step on; finetune 1e-6, 2e-5, 6e-3): the first epoch is
# compared. `finetune test_vit` compares both epochs of that recipe.
GOLDEN_STEPS = {"scratch": 3, "finetune": 3}


@pytest.mark.ray
@pytest.mark.parametrize("run", RUNS)
def test_the_losses_of_a_recipe_are_those_recorded(
    ray_cluster: str, easy_data: str, tmp_path: Path, run: str
) -> None:
    recorded = json.loads(GOLDEN.read_text())[run]
    losses = losses_of(run, easy_data, str(tmp_path / "run"))
    steps = GOLDEN_STEPS.get(run)

    assert len(losses) == len(recorded) == 6
    assert losses[:steps] == pytest.approx(recorded[:steps], rel=GOLDEN_TOLERANCE)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_travels_as_json_and_as_a_command(recipe: str) -> None:
    config = parse([recipe, "--data", "d"])

    assert FinetuneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert command_of(config) == f"python -m trainers {recipe} --data d"


def test_phases_and_switches_survive_the_way_through_a_command() -> None:
    phases = ["--phases", *("all", "2", "1e-3"), *("4", "1", "1e-4"), *("0", "3", "1e-5")]
    switches = ["--compile", "--no-channels-last", "--no-freeze-batchnorm"]
    config = parse(["staged", "--data", "d", *phases, *switches])

    assert parse(shlex.split(command_of(config))[3:]) == config
    assert [phase.end_epoch for phase in config.phases] == [2, 3, 6] and config.num_epochs == 6


@pytest.mark.parametrize(
    ("wrong", "right", "field"),
    [
        ("--clipnorm 1", "--clipnorm 1 --global-clipnorm None", "optim.global_clipnorm"),
        ("--ema-decay 2", "--ema-decay None", "optim.ema_decay"),
        ("--early-stopping-epochs 0", "--early-stopping-epochs None", "early_stopping_epochs"),
    ],
)
def test_an_option_is_switched_off_as_its_error_says(
    wrong: str, right: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["finetune", "--data", "d", *wrong.split()])
    sentence = re.sub(r"[│\s]+", " ", capsys.readouterr().err)  # tyro puts it into a box

    assert re.search(rf"{field} is \S+: .*None", sentence)
    parse(["finetune", "--data", "d", *right.split()])


def test_an_axis_takes_none_as_an_option_writes_it() -> None:
    for word in ("none", "None"):
        assert read_axis(["optim.ema_decay", word, "0.5"]).values == (None, 0.5)


def test_a_config_of_an_older_thaw_trains_on_train() -> None:
    older = FinetuneConfig(data="d").to_dict()
    del older["train_on"]

    assert FinetuneConfig.from_dict(older).train_on == "train"


def test_a_training_that_validates_nothing_has_nothing_to_stop_by() -> None:
    config = parse(["transfer", "--data", "d", "--train-on", "train+val"])

    assert not config.validates and parse(shlex.split(command_of(config))[3:]) == config
    with pytest.raises(ValueError, match=r"early_stopping_epochs is 2: train_on train\+val"):
        replace(config, schedule=ScheduleConfig(early_stopping_epochs=2))
    with pytest.raises(ValueError, match=r"train_on is 'val': choose from train, train\+val"):
        replace(config, train_on="val")
    with pytest.raises(ValueError, match=r"train_on is 'train\+val': a sweep ranks by validation"):
        TuningConfig(base=config)


def test_scratch_is_the_lecture_to_the_letter() -> None:
    config = scratch()

    assert config.optim == OptimConfig(learning_rate=1e-3, clipnorm=1e-3, decay=1e-5)
    assert (config.model.backbone, config.model.init, config.epochs) == ("resnet50", "xavier", 50)
    assert config.ingest.size_px == 224


def test_sweeps_of_transfer_have_its_settings_for_heads_where_no_stage_trains() -> None:
    heads, both, random = (
        sweep_parse(["transfer", "--data", "d", *options]).base
        for options in (
            ["--freeze-depths", "all", "--inits", "imagenet"],
            ["--freeze-depths", "all", "0", "--inits", "imagenet"],
            ["--freeze-depths", "all"],
        )
    )

    assert heads == replace(transfer(), data="d")
    assert both == random == replace(pretrained(), data="d")


def test_transfer_trains_the_head_and_staged_goes_on_from_there() -> None:
    assert transfer().model.freeze_depth == "all"
    first, second = staged().phases
    assert first.freeze_depth == "all" and second.freeze_depth == -2
    assert second.learning_rate < first.learning_rate


def test_finetune_has_what_practitioners_use() -> None:
    config = finetune()

    assert config.optim.layer_decay == AUTO and config.optim.ema_decay is not None
    assert config.schedule.schedule == "cosine" and config.schedule.warmup_epochs == AUTO
    assert config.loss.label_smoothing > 0 and config.ingest.policy == "light"
