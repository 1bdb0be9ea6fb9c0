"""Any field is an axis: from words, files and networks to points, trials, page and W&B."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from cluster.config import ClusterConfig
from datasets.config import IngestConfig
from tests.support.sweeps import write_sweep
from trainers.config import (
    ComputeConfig,
    FinetuneConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrackConfig,
)
from trainers.networks.backbones import build
from trainers.run.folder import read_config
from tuning.__main__ import parse
from tuning.axes.axis import (
    BACKBONE,
    CLIPNORM,
    FREEZE_DEPTH,
    INIT,
    LEARNING_RATE,
    NORMALIZATION,
    WEIGHTS,
    Condition,
    read_axis,
)
from tuning.check import distinct_depths, with_absolute_axes
from tuning.config import SpaceConfig, TuningConfig
from tuning.point import describe, training_of
from tuning.record.leaderboard import list_rows, read_leaderboard
from tuning.record.record import SweepRecord
from tuning.record.verdict import judge
from tuning.review.importance import rank_axes
from tuning.review.page import render_page
from tuning.run import tune_sweep
from tuning.sharing.keys import network_of, prefix_key
from tuning.space import corners, models, point_of, points, suggest
from tuning.wandb.views import build_views

ADAMW = FinetuneConfig(data="d", optim=OptimConfig(optimizer="adamw"))


def space(*axes: str, **values: Any) -> SpaceConfig:
    return SpaceConfig(axes=tuple(read_axis(axis.split()) for axis in axes), **values)


# ---- Words and files ----


def test_words_become_values_of_the_fields_type() -> None:
    axis = read_axis(["optim.weight_decay", "0", "0.05", "when", "model.freeze_depth=all,0.5"])
    assert axis.values == (0.0, 0.05) and type(axis.values[0]) is float
    assert axis.when == (Condition(field=FREEZE_DEPTH, values=("all", 0.5)),)
    assert read_axis(["model.freeze_depth", "all", "3", "-2", "0.5"]).values == ("all", 3, -2, 0.5)
    assert read_axis(["optim.ema_decay", "none", "0.99"]).values == (None, 0.99)
    assert read_axis(["model.freeze_batchnorm", "true", "false"]).values == (True, False)
    assert read_axis(["optim.decay", ".0001..1.e-2"]).range == (1e-4, 1e-2)
    drawn = read_axis(["optim.learning_rate", "1e-4..1e-2", "log"])
    assert (drawn.range, drawn.log, drawn.is_whole) == ((1e-4, 1e-2), True, False)
    assert read_axis(["ingest.views", "1..4"]).is_whole
    assert read_axis(["model.weights", "../a.pth", "../b.pth"]).values == ("../a.pth", "../b.pth")


def test_values_are_written_with_the_digits_that_were_typed() -> None:
    """Three of a number that was drawn; 0.9999 is not 1, nor two rates the same."""
    shown = read_axis(["optim.ema_decay", "none", "0.999", "0.9999", "0.99991"]).describe_values()
    assert shown == "none, 0.999, 0.9999, 0.99991"
    assert describe({"optim.learning_rate": 0.00123456789}) == "lr=0.00123"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optim.rate 1 2", r"space.axes is 'optim.rate': no such field"),
        ("learning_rate 1 2", r"no such field; use optim.learning_rate$"),
        ("optim.lr 1 2", r"no such field; use optim.optimizer or optim.learning_rate or"),
        ("nonsense 1 2", r"no such field; give one of a training, such as optim.decay"),
        ("epochs 1 2", r"space.axes is 'epochs': all trials of a sweep share this field"),
        ("cluster.num_workers 1 2", "all trials of a sweep share this field"),
        ("track.tags a b", "all trials of a sweep share this field"),
        ("optim.weight_decay much", r"optim.weight_decay is 'much': use a number"),
        (
            "ingest.policy light heavy",
            r"ingest.policy is 'heavy': use 'none', 'flip', 'light', 'cars'",
        ),
        ("optim.weight_decay 0 0.0", r"optim.weight_decay is \(0.0, 0.0\): give each value once"),
        ("optim.weight_decay", "give a field and its values"),
        ("optim.weight_decay 0 1 log", "log is for a range"),
        ("optim.weight_decay 0..1 log", "both above zero"),
        ("optim.weight_decay 1..0", "give the smaller bound first"),
        (
            "optim.weight_decay 1e-4...1e-2",
            r"is '1e-4...1e-2': give a range of two finite numbers as one word",
        ),
        (
            "optim.weight_decay 1e-4 .. 1e-2",
            "give a range of two finite numbers as one word, such as 1e-4..1e-2",
        ),
        (
            "optim.weight_decay 0..1 linear",
            r"is '0..1 linear': give a range of two finite numbers",
        ),
        ("optim.weight_decay nan..1", "give a range of two finite numbers as one word"),
        ("ingest.policy 0..1", "only a number can be drawn from a range"),
        ("ingest.views 0.5..2", "give whole numbers"),
        ("optim.weight_decay 0 1 when x", "use FIELD=VALUE"),
        ("optim.weight_decay 0 1 when optim.momentum=1", "is no axis of this space"),
        ("optim.weight_decay 0 1 when model.freeze_depth=5", "is never 5; choose from all, 0.75"),
        ("optim.weight_decay 0 1 when optim.weight_decay=0", "depends on itself"),
    ],
)
def test_a_bad_axis_names_field_value_and_remedy(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space(words)


def test_the_command_line_and_a_file_are_the_same_space(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(
        """
        [[axis]]
        field = "optim.weight_decay"
        values = [0, 0.05]
        when = { "model.freeze_depth" = ["all", 0.5] }
        [[axis]]
        field = "optim.learning_rate"
        range = [1e-4, 1e-2]
        log = true
        """
    )
    line = "--data d --axis optim.weight_decay 0 0.05 --when model.freeze_depth=all,0.5 "
    line += "--axis optim.learning_rate 1e-4..1e-2 log"
    config = parse(line.split())
    assert config == parse(["--data", "d", "--space", str(file)])
    assert config.space.values_of(LEARNING_RATE) == (1e-4, 1e-2), "in place of --learning-rates"
    assert TuningConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    file.write_bytes(b"\xef\xbb\xbf" + file.read_text().replace("\n", "\r\n").encode())
    assert config == parse(["--data", "d", "--space", str(file)]), "as an editor of Windows writes"
    with pytest.raises(ValueError, match=r"when is 'optim.momentum=1': write it after"):
        parse(["--data", "d", "--when", "optim.momentum=1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axis = 1", "needs tables"),
        ("[[axis]]\nfield = 'optim.momentum'\nvalue = [1]", "has field, values or range"),
        ("[[axis]]\nfield = 'optim.momentum'\nvalues = 1", "give a list of values"),
        ("[[axis]]\nfield = 'optim.momentum'\nrange = [1]", "give a range as two numbers"),
        ("[[axis]]\nfield = 'optim.momentum'\nvalues = ['much']", "optim.momentum is 'much'"),
        ("[axes]\n", "may have tables"),
        ("axis = [", "no TOML"),
    ],
)
def test_a_bad_file_names_itself_or_the_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse(["--data", "d", "--space", str(tmp_path / "space.toml")])
    with pytest.raises(ValueError, match="no such file"):
        parse(["--data", "d", "--space", str(tmp_path / "nothing.toml")])


# ---- Points ----


def test_a_condition_holds_in_every_search() -> None:
    wanted = space(
        "optim.weight_decay 0 0.05 when model.freeze_depth=all",
        "ingest.policy light cars",
        learning_rates=(1e-3,),
        clipnorms=(None,),
        inits=("imagenet", "he"),
    )
    grid = points(wanted, "grid", None, 0)
    assert len(grid) == (2 + 3 + 1) * 2, "all has two weight decays, the other depths have none"
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    drawn = []
    for _ in range(30):
        trial = study.ask()
        drawn.append(point_of(suggest(trial, wanted) | trial.params))
        study.tell(trial, 0.0)
    for point in (*grid, *drawn):
        assert ("optim.weight_decay" in point) == (point[FREEZE_DEPTH] == "all")
        assert point[FREEZE_DEPTH] == 0 or point[INIT] == "imagenet"
        training_of(ADAMW, point)
    assert {describe(point) for point in drawn} <= {describe(point) for point in grid}


def test_ranges_are_drawn_within_their_bounds() -> None:
    wanted = space(
        "optim.weight_decay 0.01..0.3 log when model.freeze_depth=0",
        "ingest.views 1..4",
        freeze_depths=("all", 0),
        inits=("imagenet",),
    )
    drawn = points(wanted, "random", 40, 0)
    assert len({describe(point) for point in drawn}) == 40
    assert {point["ingest.views"] for point in drawn} == {1, 2, 3, 4}
    decays = [float(str(p["optim.weight_decay"])) for p in drawn if "optim.weight_decay" in p]
    assert decays and all(0.01 <= decay <= 0.3 for decay in decays)
    with pytest.raises(ValueError, match=r"is '0.01..0.3 log': a grid needs values"):
        TuningConfig(base=ADAMW, space=wanted, search="grid")


def test_three_digits_of_a_narrow_range_are_drawn() -> None:
    drawn = points(space("optim.ema_decay 0.99..0.9999", inits=("he",)), "random", 100, 0)
    decays = {float(str(point["optim.ema_decay"])) for point in drawn}
    assert len(decays) > 90 and max(decays) < 0.9999, "not cut at the bound"


def test_one_stage_is_not_a_share_of_one() -> None:
    both = space("model.freeze_depth 1 1.0", inits=("imagenet",), clipnorms=(None,))
    assert len(models(both)) == 2
    assert len(points(both, "random", 100, 0)) == 2 * 3


def test_a_space_without_ranges_is_drawn_once() -> None:
    once = space("optim.weight_decay 0.01..0.3 when model.freeze_depth=0", inits=("imagenet",))
    drawn = points(once, "random", 1000, 0)
    whole = [point for point in drawn if point[FREEZE_DEPTH] == 0]
    assert len(drawn) == 1000 and len(drawn) - len(whole) == 3 * 3 * 2


def test_two_axes_of_a_field_apply_one_at_a_time() -> None:
    both = space("optim.weight_decay 0", "optim.weight_decay 1")
    with pytest.raises(ValueError, match=r"two axes of optim.weight_decay apply at once"):
        points(both, "grid", None, 0)
    with pytest.raises(ValueError, match="its conditions never hold"):
        corners(
            space(
                "optim.weight_decay 0 when model.init=he when model.freeze_depth=all",
                inits=("imagenet", "he"),
            )
        )


# ---- Networks ----

NETWORKS = SpaceConfig(
    backbones=("lenet5=a.pth@half", "lenet5=he", "mobilenet_v2"), inits=("imagenet",)
)


def test_each_network_has_its_own_weights_depths_and_normalization(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = distinct_depths(with_absolute_axes(TuningConfig(base=ADAMW, space=NETWORKS)))
    assert "in lenet5, 0.75 freezes the same 2 stages" in capsys.readouterr().out
    seen = {
        (model.backbone, model.init, Path(model.weights or "").name, model.normalization)
        for model in (training_of(ADAMW, point).model for point in models(config.space))
    }
    assert seen == {
        ("lenet5", "file", "a.pth", "half"),
        ("lenet5", "he", "", "auto"),
        ("mobilenet_v2", "imagenet", "", "auto"),
    }
    assert [p[FREEZE_DEPTH] for p in models(config.space) if p[INIT] == "file"] == ["all", 0.75, 0]
    assert len([p for p in models(config.space) if p[BACKBONE] == "mobilenet_v2"]) == 4
    (weights,) = config.space.values_of(WEIGHTS)
    assert str(weights).startswith("/") and config.space.values_of(NORMALIZATION) == ("half",)
    with pytest.raises(ValueError, match="each of --backbones has its own"):
        parse(["--data", "d", "--backbones", "lenet5", "mobilenet_v2", "--weights", "a.pth"])


def test_the_key_of_features_has_all_that_they_depend_on() -> None:
    base = FinetuneConfig(data="d", model=ModelConfig(backbone="lenet5", freeze_depth="all"))
    same = (
        replace(base, optim=OptimConfig(learning_rate=1.0, clipnorm=1.0)),
        replace(base, epochs=3, out="elsewhere", global_batch_size=8),
        replace(base, model=replace(base.model, freeze_depth=3)),
    )
    other = (
        replace(base, model=replace(base.model, backbone="alexnet")),
        replace(base, model=replace(base.model, init="file", weights="a.pth")),
        replace(base, model=replace(base.model, normalization="half")),
        replace(base, model=replace(base.model, freeze_depth=2)),
        replace(base, ingest=IngestConfig(policy="light")),
        replace(base, ingest=IngestConfig(size_px=64)),
        replace(base, seed=1),
    )
    keys = [prefix_key(training) for training in (base, *other)]
    assert {prefix_key(training) for training in same} == {keys[0]}
    assert len(set(keys)) == len(keys)
    blended = replace(base, loss=LossConfig(mixup_alpha=0.1))
    assert prefix_key(blended) == (network_of(base), 0), "pixels are blended: no features"


# ---- What is shown ----


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepRecord:
    wanted = space(
        "loss.label_smoothing 0.01..0.3 log when model.freeze_depth=0",
        "ingest.policy light cars",
        backbones=("lenet5=he", "mobilenet_v2=imagenet", "resnet50=imagenet"),
        learning_rates=(1e-3,),
        clipnorms=(None,),
    )
    out = tmp_path_factory.mktemp("sweeps") / "sweep"
    return SweepRecord.read(write_sweep(out, trials=40, space=wanted))


def test_files_and_tables_have_every_axis(sweep: SweepRecord) -> None:
    known = read_leaderboard(sweep.out)
    assert known is not None and [row.point for row in known[0]] == [t.point for t in sweep.trials]
    rows = list_rows(sweep.trials, sweep.base)
    whole = [row for row in rows if "loss.label_smoothing" in row]
    assert whole and {row[FREEZE_DEPTH] for row in whole} == {0}
    assert {row[BACKBONE] for row in rows} == {"lenet5", "mobilenet_v2", "resnet50"}
    assert sweep.fields[:2] == [BACKBONE, FREEZE_DEPTH]
    assert {*sweep.fields[2:]} == {LEARNING_RATE, CLIPNORM, INIT, *FREE}


FREE = ("loss.label_smoothing", "ingest.policy")


def test_the_network_is_the_first_axis_of_importance_page_and_wandb(sweep: SweepRecord) -> None:
    top1s = {"mobilenet_v2": 0.9, "resnet50": 0.5, "lenet5": 0.1}
    trials = [replace(row, val_top1=top1s[str(row.point[BACKBONE])]) for row in sweep.trials]
    shares = rank_axes(trials)
    assert next(iter(shares)) == BACKBONE and shares[BACKBONE] > 0.5
    assert set(FREE) <= set(shares) and sum(shares.values()) == pytest.approx(1)
    page = render_page(sweep).decode()
    verdict = judge(sweep)
    assert verdict.best is not None
    network = str(verdict.best.point[BACKBONE])
    assert verdict.headline.startswith(f"With {network}, ")
    assert verdict.headline in page and "label_smoothing" in page and ">net<" in page
    assert '<select name="network">' in page
    (_, review, *_) = build_views("team", "cars", sweep)
    panels = json.dumps(review._to_model().model_dump(mode="json"), default=str)
    assert all(field in panels for field in (BACKBONE, *FREE))


def test_a_point_of_a_file_is_checked(sweep: SweepRecord, tmp_path: Path) -> None:
    board = json.loads((Path(sweep.out) / "leaderboard.json").read_text())
    for field, value in (("optim.rate", 1), ("loss.label_smoothing", "much")):
        changed = json.loads(json.dumps(board))
        changed["trials"][0][field] = value
        (tmp_path / "leaderboard.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=field):
            read_leaderboard(str(tmp_path))


# ---- A sweep ----


@pytest.mark.ray
@pytest.mark.extended
def test_a_sweep_of_networks_shares_what_agrees(
    ray_cluster: str, easy_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two weights of LeNet-5, each with features of its own; label smoothing is trained on the same
    features as none. The same command again has nothing to do."""
    for number in range(2):
        torch.manual_seed(number)
        torch.save(build("lenet5", 3).state_dict(), tmp_path / f"{number}.pth")
    config = TuningConfig(
        base=FinetuneConfig(
            data=easy_data,
            epochs=1,
            global_batch_size=12,
            ingest=IngestConfig(size_px=32, policy="none"),
            compute=ComputeConfig(precision="fp32"),
            track=TrackConfig(wandb="off"),
            cluster=ClusterConfig(num_workers=0),
        ),
        space=space(
            "loss.label_smoothing 0 0.5 when model.freeze_depth=all",
            backbones=(f"lenet5={tmp_path}/0.pth", f"lenet5={tmp_path}/1.pth@half"),
            freeze_depths=("all", 0),
            learning_rates=(1e-3,),
            clipnorms=(None,),
        ),
        out=str(tmp_path / "sweep"),
        search="grid",
        evaluate_winner=False,
        combine=False,
    )
    answer = tune_sweep(config)
    rows = answer["trials"]
    assert len(rows) == 2 * (2 + 1) and {row["state"] for row in rows} == {"finished"}
    heads = [row for row in rows if row[FREEZE_DEPTH] == "all"]
    assert answer["sharing"]["num_on_features"] == len(heads) == 4
    assert answer["sharing"]["num_computed"] == 2 * (48 + 17), "once for each network"
    for row in rows:
        training = read_config(row["run"])
        assert training.model.weights == row[WEIGHTS]
        assert training.model.normalization == ("half" if "1.pth" in row[WEIGHTS] else "auto")
        assert training.loss.label_smoothing == row.get("loss.label_smoothing", 0)
    assert len(list((tmp_path / "sweep/prefixes").iterdir())) == 2
    assert metrics_of_tune(tmp_path / "sweep/tune") == [{"val/top1"}] * len(rows)
    before = [Path(row["run"], "result.json").stat().st_mtime_ns for row in rows]
    capsys.readouterr()
    assert tune_sweep(config)["trials"] == rows
    assert "finished: reusing it" in capsys.readouterr().out
    assert [Path(row["run"], "result.json").stat().st_mtime_ns for row in rows] == before
    smooth = replace(config.space.axes[0], values=(0, 0.1))
    with pytest.raises(ValueError, match=r"space\.loss\.label_smoothing when .* is \[0\.0, 0\.1\]"):
        tune_sweep(replace(config, space=replace(config.space, axes=(smooth,))))


def metrics_of_tune(folder: Path) -> list[set[str]]:
    """Return which metrics of ours Tune keeps of each trial: its driver's memory and its state
    grow with them."""
    (state,) = folder.glob("experiment_state-*.json")
    trials = [json.loads(run) for _, run in json.loads(state.read_text())["trial_data"]]
    return [{name for name in trial["metric_n_steps"] if "/" in name} for trial in trials]
