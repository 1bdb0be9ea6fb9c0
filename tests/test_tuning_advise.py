"""Advice: the rules of the four quadrants, its use in a sweep, and one real run."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.io.errors import UserError
from cluster.io.statistics import count_discordant, mcnemar
from cluster.runtime import Resources
from datasets.config import IngestConfig
from datasets.manifest import join_splits
from datasets.manifest_file import read_manifest, write_manifest
from datasets.passes.feature_tasks import Entry
from datasets.passes.features import View, write_part, write_view
from datasets.plan import IGNORE_INDEX
from tests.support.data import WriteData, find_shard
from tests.support.small import small_training
from tests.test_datasets_folds import part
from trainers.config import FinetuneConfig, ModelConfig
from trainers.inference import passes
from trainers.inference.passes import Features
from trainers.networks.backbones import build, find
from trainers.run.checkpoint import TrainingProgress
from trainers.run.folder import write_config, write_result
from tuning import ending
from tuning.__main__ import parse
from tuning.advice import race as race_module
from tuning.advice import stages
from tuning.advice.advice import Advice, advice_uri, read_advice, score_advice
from tuning.advice.advise import run_advise
from tuning.advice.candidates import plan_candidates
from tuning.advice.config import AdviseConfig
from tuning.advice.extrapolation import (
    SPREAD,
    Expected,
    Race,
    Raced,
    extrapolate,
    find_regrets,
)
from tuning.advice.front import Front, find_advice
from tuning.advice.quadrants import (
    QUADRANTS,
    Quadrant,
    Stage,
    find_quadrant,
    recommend,
    with_neighbours,
)
from tuning.advice.ranking import Ranked, mark_front
from tuning.axes.axis import BACKBONE, CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE
from tuning.axes.backbones import SETS, read_backbones
from tuning.check import distinct_depths
from tuning.config import TuningConfig
from tuning.point import training_of
from tuning.record.record import SweepRecord
from tuning.record.results import LEARNS, LEARNS_NOT, TrialResult
from tuning.record.savings import Savings
from tuning.shared import Shared
from tuning.space import models

CHANCE = 0.2


def probed(*top1s: float, p_better: tuple[float, ...] = ()) -> tuple[Stage, ...]:
    return tuple(
        Stage(
            name=f"stage{depth}",
            depth=depth,
            num_features=8,
            strength=1.0,
            top1=top1,
            low=top1 - 0.1,
            high=top1 + 0.1,
            p_better=dict(enumerate(p_better, start=1)).get(depth, 1.0),
        )
        for depth, top1 in enumerate(top1s, start=1)
    )


def judged(stages_: tuple[Stage, ...], images_per_class: float = 20) -> Quadrant:
    return find_quadrant(
        stages_, chance=CHANCE, images_per_class=images_per_class, little_per_class=100
    )


def test_a_task_is_similar_where_the_last_stage_closes_half_of_the_gap_and_none_is_better() -> None:
    assert judged(probed(0.3, 0.4, 0.61)).is_similar
    assert judged(probed(0.3, 0.4, 0.61)).gap_closed == pytest.approx(0.41 / 0.8)
    assert not judged(probed(0.3, 0.4, 0.59)).is_similar
    better = judged(probed(0.5, 0.9, 0.8, p_better=(1.0, 0.01)))
    assert (better.rival, better.is_similar) == ("stage2", False)
    # 0.03 would be significant alone, but each of two stages has half of 0.05.
    luck = judged(probed(0.5, 0.9, 0.8, p_better=(1.0, 0.03)))
    assert (luck.rival, luck.is_similar) == (None, True)
    both = judged(probed(0.85, 0.9, 0.8, p_better=(0.02, 0.001)))
    assert both.rival == "stage2"
    one_class = find_quadrant(probed(1.0, 1.0), chance=1.0, images_per_class=9, little_per_class=5)
    assert (one_class.gap_closed, one_class.is_similar) == (0.0, False)


def keep_features(out: Path, split: str, labels: list[int]) -> Entry:
    """Write features of images into a cache; those with IGNORE_INDEX are unreadable."""
    entry = Entry(uri=str(out / split), facts={}, shape=(3,), split=split, views=(0,), output=0)
    errors = [f"{row}: gone" if label == IGNORE_INDEX else None for row, label in enumerate(labels)]
    block = pa.table({"label": labels, "image_id": range(len(labels)), "read_error": errors})
    features = np.eye(3, dtype=np.float16)[np.clip(labels, 0, 2)]
    folder = f"{entry.uri}/view-0000"
    part = write_part(f"{folder}/part.parquet", features, block, (len(labels),), first_row=0)
    write_view(View(folder, (3,), (part,)), {})
    return entry


def test_networks_are_compared_on_the_images_that_all_of_them_have(
    write_data: WriteData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    manifest = read_manifest(write_data(train=12, val=6, test=3))
    labels = {"train": [0, 1, 2] * 4, "val": [0, 1, 2] * 2}

    def keep(name: str, unreadable: int | None) -> dict[str, Entry]:
        known = {split: list(of_split) for split, of_split in labels.items()}
        if unreadable is not None:
            known["val"][unreadable] = IGNORE_INDEX
        return {split: keep_features(tmp_path / name, split, of) for split, of in known.items()}

    features = [
        Features([keep("a1", None), keep("a2", 4)]),
        Features([keep("b1", 2), keep("b2", 2)]),
    ]
    monkeypatch.setattr(stages, "compute_features", lambda *_, **__: features)
    training = FinetuneConfig(data="", ingest=IngestConfig(max_bad_fraction=0.5))
    resources = Resources(num_nodes=1, num_cpus=2, num_gpus=0, memory_gib=8, object_store_gib=1)
    found, rows = stages.collect([training, training], manifest, resources, "")
    answers = [stages.probe_stages("lenet5", each, rows)[1] for each in found]

    assert rows["val"].tolist() == [0, 1, 3, 5] and rows["train"].tolist() == list(range(12))
    assert count_discordant(*answers) == (0, 0) and all(len(a) == 4 for a in answers)
    assert "2 of 6 val images could not be read: 2: gone ...; left out" in caplog.text


def test_data_is_little_below_the_bound() -> None:
    assert judged(probed(0.9), images_per_class=99.5).is_little
    assert not judged(probed(0.9), images_per_class=100).is_little


def test_two_classifiers_are_compared_on_the_images_where_they_differ() -> None:
    """Five images that only one has right: a chance of 1 in 32. One each way: 3 in 4."""
    none, five = np.zeros(9, bool), np.arange(9) < 5
    assert mcnemar(*count_discordant(five, none), "greater") == pytest.approx(1 / 32)
    assert mcnemar(*count_discordant(none, five), "greater") == pytest.approx(1.0)
    assert mcnemar(1, 1, "greater") == pytest.approx(3 / 4)
    assert mcnemar(*count_discordant(five, five), "greater") == 1.0


@pytest.mark.parametrize(
    ("is_little", "is_similar", "depths"),
    [
        (True, True, (7, 6, 5)),
        (True, False, (4, 3, 5)),
        (False, True, (5, 4, 6)),
        (False, False, (2, 1, 3)),
    ],
)
def test_each_quadrant_has_its_freeze_depth_and_its_neighbours(
    is_little: bool, is_similar: bool, depths: tuple[int, ...]
) -> None:
    """Of seven stages, the fourth the best: all, the best, all but a third, all but two thirds."""
    depth = recommend(7, is_little=is_little, is_similar=is_similar, best_depth=4)
    assert with_neighbours(depth, 7) == depths
    images_per_class = 20 if is_little else 1000
    top1s = (0.2, 0.3, 0.4, 0.9, 0.5, 0.5, 0.8 if is_similar else 0.5)
    verdict = judged(probed(*top1s), images_per_class)
    assert (verdict.freeze_depths, verdict.advice) == (depths, QUADRANTS[is_little, is_similar])


def test_small_networks_have_neighbours_too() -> None:
    assert with_neighbours(1, 2) == (1, 0, 2)
    assert with_neighbours(1, 1) == (1, 0)
    assert recommend(1, is_little=False, is_similar=True, best_depth=1) == 0


def test_the_verdict_says_its_numbers() -> None:
    data, task = judged(probed(0.5, 0.9, 0.8, p_better=(1.0, 0.01))).describe()
    assert data == "little: 20 training images in the median class, below --little-per-class 100"
    assert task == (
        "different: the last stage closes 0.75 of the gap between chance (0.200) and 1, at least "
        "0.5; stage2 is significantly better"
    )


BASE = FinetuneConfig(data="", model=ModelConfig(backbone="mobilenet_v2"))


def race_of(curves: dict[int, tuple[float, ...]], num_epochs: int = 4) -> Race:
    """The race of freeze depths with these accuracies on 100 images."""
    expected = [extrapolate(top1s, num_epochs, 100) for top1s in curves.values()]
    raced = [
        Raced(
            depth=depth, learning_rate=1e-3, top1s=curves[depth], expected=of_depth, regret=regret
        )
        for depth, of_depth, regret in zip(curves, expected, find_regrets(expected), strict=True)
    ]
    return Race(
        num_epochs=num_epochs, depths=tuple(sorted(raced, key=lambda each: each.regret.expected))
    )


def test_each_doubling_of_the_epochs_is_expected_to_multiply_the_error_as_the_last_one_did() -> (
    None
):
    done = extrapolate((0.2, 0.5, 0.4, 0.6), 4, 100)
    assert (done.top1, done.deviation) == (0.6, pytest.approx((0.24 / 200) ** 0.5))
    cut = extrapolate((0.2, 0.4, 0.4, 0.6), 16, 100)  # an error of 0.6 at epoch 2, of 0.4 at 4
    assert cut.top1 == pytest.approx(1 - 0.4 * (2 / 3) ** 2)
    of_law = 2 * SPREAD
    assert cut.deviation == pytest.approx((0.24 / 200 + (cut.top1 - 0.6) ** 2 + of_law**2) ** 0.5)
    assert extrapolate((0.9, 1.0), 100, 100).top1 == extrapolate((1.0, 1.0), 9, 9).top1 == 1.0
    assert extrapolate((0.4,), 2, 100).top1 == pytest.approx(1 - 0.6 * 0.75)


def test_the_regret_of_a_training_is_what_the_others_may_be_better_by() -> None:
    sure = find_regrets([Expected(top1=0.9, deviation=0.001), Expected(top1=0.8, deviation=0.001)])
    assert [each.expected for each in sure] == pytest.approx([0.0, 0.1], abs=1e-3)
    assert [each.p_tie for each in sure] == [1.0, 0.0]
    alike = find_regrets([Expected(top1=0.5, deviation=0.1)] * 2)
    # The mean of the positive part of a difference with a deviation of 0.1 * sqrt(2).
    assert alike[0].expected == pytest.approx(0.1 * 2**0.5 / (2 * np.pi) ** 0.5, rel=0.05)
    assert alike[0].p_tie == pytest.approx(0.5, abs=0.05)


def standing(rank: int, depth: object, top1: float | None, **changes: Any) -> TrialResult:
    values: dict[str, Any] = {"state": "finished", "verdict": LEARNS} | changes
    return TrialResult(
        rank=rank,
        trial_id=str(rank),
        point={FREEZE_DEPTH: depth, LEARNING_RATE: 1e-3, CLIPNORM: None, INIT: "file"},
        val_top1=top1,
        best_epoch=1,
        num_epochs=1,
        seconds=1.0,
        run="",
        **values,
    )


@pytest.mark.parametrize(
    ("standings", "sentence"),
    [
        (
            [standing(1, 5, 0.960), standing(2, "all", 0.855), standing(3, 7, 0.7)],
            " (its best trial: 0.855); the winner has 5 (0.960): "
            "freezing fewer stages gained 0.105",
        ),
        (
            [standing(1, -2, 0.960), standing(2, "all", 0.855, state="pruned")],
            " (its best trial: 0.855, pruned); the winner has 5 (0.960): "
            "freezing fewer stages gained 0.105",
        ),
        ([standing(1, "all", 0.9), standing(2, 5, 0.8)], "; the winner has it (0.900)"),
        (
            [standing(1, 5, 0.96), standing(2, 7, None, state="failed", verdict=LEARNS_NOT)],
            ", with which no trial of this sweep finished an epoch; the winner has 5 (0.960)",
        ),
        ([standing(1, 7, 0.1, verdict=LEARNS_NOT)], "; no trial of this sweep learned"),
    ],
)
def test_the_end_of_a_sweep_scores_the_advice(standings: list[TrialResult], sentence: str) -> None:
    scored = score_advice(7, BASE, standings)
    assert scored == f"recommended freeze depth 7{sentence}"


def test_freezing_more_may_gain_too() -> None:
    scored = score_advice(3, BASE, [standing(1, 7, 0.9), standing(2, 3, 0.8)])
    assert scored.endswith("the winner has 7 (0.900): freezing more stages gained 0.100")


@pytest.fixture
def advice(easy_data: str, tmp_path: Path) -> Advice:
    """Little data and a similar task, for LeNet-5, written below `tmp_path`/advice."""
    made = Advice(
        data=easy_data,
        fingerprint=read_manifest(easy_data).fingerprint,
        backbone="lenet5",
        init="file",
        weights="weights.pth",
        normalization="half",
        size_px=32,
        verdict=judged(probed(0.5, 0.9)),
        stages=probed(0.5, 0.9),
    )
    (tmp_path / "advice").mkdir()
    Path(advice_uri(str(tmp_path / "advice"))).write_text(json.dumps(made.to_dict()))
    return made


def test_advice_comes_back_as_it_was_written(advice: Advice, tmp_path: Path) -> None:
    assert read_advice(str(tmp_path / "advice")) == advice
    values = advice.to_dict()
    assert values["quadrant"] == ["little data", "similar task"]
    older = values | {"stages": [stage | {"logme": 0.5} for stage in values["stages"]]}
    assert Advice.from_dict(older) == advice
    with pytest.raises(ValueError, match=r"from_advice is .*: no advice there \(advice\.json is"):
        read_advice(str(tmp_path))


def test_advice_sets_the_options_that_the_command_line_leaves_out(
    advice: Advice, tmp_path: Path
) -> None:
    out = str(tmp_path / "advice")
    config = parse(["--from-advice", out])
    assert (config.base.data, config.base.ingest.size_px) == (advice.data, 32)
    model = config.base.model
    assert (model.backbone, model.weights, model.normalization) == ("lenet5", "weights.pth", "half")
    assert (config.space.freeze_depths, config.space.inits) == (("all", 0.75, 0.5, 0), ("file",))
    assert config.advice == out
    raced = replace(advice, race=race_of({0: (0.9, 0.95), 2: (0.8, 0.81), 1: (0.5, 0.5)}))
    Path(advice_uri(out)).write_text(json.dumps(raced.to_dict()))
    assert read_advice(out) == raced and raced.recommended == 0
    assert parse(["--from-advice", out]).space.freeze_depths == (0, 2, 1)

    copy = shutil.copytree(advice.data, tmp_path / "copy")
    options = f"--data {copy} --freeze-depths all 1 --inits he --size-px 48 --epochs 3"
    config = parse(["transfer", "--from-advice", out, *options.split()])
    assert (config.base.data, config.base.ingest.size_px) == (str(copy), 48)
    assert (config.space.freeze_depths, config.space.inits) == (("all", 1), ("he",))
    assert (config.base.epochs, config.base.model.backbone) == (3, "lenet5")
    assert config.base.model.weights is None, "no trial would read them"

    of_race = replace(raced, epochs=30, global_batch_size=8, policy="cars")
    Path(advice_uri(out)).write_text(json.dumps(of_race.to_dict()))
    config = parse(["--from-advice", out, "--epochs", "5"])
    base = config.base
    assert (base.epochs, base.global_batch_size, base.ingest.policy) == (5, 8, "cars")
    assert parse(["--from-advice", out]).base.epochs == 30, "as the race predicts"

    assert parse(["--data", "d"]).advice is None
    with pytest.raises(ValueError, match="data is None: give --data URI, or --from-advice OUT"):
        parse([])


def test_the_advice_of_a_ranking_sweeps_its_front(advice: Advice, tmp_path: Path) -> None:
    """Each network with its own weights, normalization and freeze depths; a dominated one is not
    swept."""
    out = tmp_path / "ranking"
    alexnet = replace(advice, backbone="alexnet", weights="b.pth", normalization="auto")
    race = race_of({4: (0.9, 0.95), 3: (0.8, 0.81), 2: (0.5, 0.5), 0: (0.1, 0.1)})
    alexnet = replace(alexnet, race=race)
    for name, of_network in {"lenet5": advice, "alexnet": alexnet, "vgg16": advice}.items():
        (out / name).mkdir(parents=True)
        Path(advice_uri(str(out / name))).write_text(json.dumps(of_network.to_dict()))
    rows = [{"name": n, "on_front": n != "vgg16"} for n in ("alexnet", "lenet5", "vgg16")]
    (out / "backbones.json").write_text(json.dumps({"networks": rows}))

    config = distinct_depths(parse(["--from-advice", str(out)]))
    assert (config.base.data, config.base.ingest.size_px) == (advice.data, 32)
    found: dict[tuple[object, ...], list[object]] = {}
    for point in models(config.space):
        model = training_of(config.base, point).model
        key = model.backbone, model.init, model.weights, model.normalization
        found.setdefault(key, []).append(model.freeze_depth)
    assert found == {
        ("alexnet", "file", "b.pth", "auto"): [4, 3, 2],
        # Nothing raced: the usual ones.
        ("lenet5", "file", "weights.pth", "half"): ["all", 0.75, 0.5, 0],
    }
    other = parse(["--from-advice", str(out), "--freeze-depths", "all", "0"])
    assert not other.space.axes, "those of the command line"
    alone = parse(["--from-advice", str(out), "--backbone", "alexnet"])
    assert (alone.base.model.weights, alone.space.freeze_depths) == ("b.pth", (4, 3, 2))

    trials = [standing(1, 0, 0.9), standing(2, 4, 0.8)]
    trials[0].point[BACKBONE], trials[1].point[BACKBONE] = "lenet5", "alexnet"
    scored = find_advice(str(out)).score(config.base, trials)
    assert scored == (
        "ranked alexnet first of 2 networks, which reached 0.800; the winner has lenet5 (0.900)"
    )
    (out / "backbones.json").write_text(json.dumps({"networks": [{"name": "../x"}]}))
    with pytest.raises(ValueError, match=r"backbones\.json"):
        parse(["--from-advice", str(out)])


@pytest.mark.parametrize(
    ("kind", "options", "depths"),
    [
        ("advice", "--backbones resnet18 lenet5=w.pth", {}),
        ("advice", "--axis model.backbone lenet5 resnet18", {}),
        ("advice", "--backbones lenet5=w.pth", {"lenet5": (2, 0)}),
        ("advice", "--backbone resnet18", {}),
        ("ranking", "--backbone resnet18", {}),
        ("ranking", "--backbones resnet18 vgg16", {}),
        ("ranking", "--backbones lenet5 alexnet=he", {}),
        ("ranking", "--backbones vgg16 lenet5=w.pth", {"lenet5": (2, 0), "vgg16": (2, 0)}),
        ("ranking", "--backbones vgg16", {"vgg16": (2, 0)}),
    ],
)
def test_networks_of_the_command_line_take_the_place_of_those_of_the_advice(
    advice: Advice, tmp_path: Path, kind: str, options: str, depths: dict[str, tuple[int, ...]]
) -> None:
    """With the freeze depths that the advice has for them, if it has them for all."""
    advice = replace(advice, race=race_of({2: (0.9, 0.95), 0: (0.8, 0.81)}), epochs=7)
    out = tmp_path / "of-many"
    networks = ("lenet5", "vgg16") if kind == "ranking" else ("lenet5",)
    for name in networks:
        folder = out / name if kind == "ranking" else out
        folder.mkdir(parents=True)
        of_network = replace(advice, backbone=name)
        Path(advice_uri(str(folder))).write_text(json.dumps(of_network.to_dict()))
    if kind == "ranking":
        rows = [{"name": name, "on_front": True} for name in networks]
        (out / "backbones.json").write_text(json.dumps({"networks": rows}))

    config = parse(["--from-advice", str(out), *options.split()])
    assert (config.base.data, config.base.ingest.size_px) == (advice.data, 32)
    assert (config.base.epochs, config.base.model.weights) == (7, None)
    found = {
        axis.when[0].values[0]: axis.values
        for axis in config.space.axes
        if axis.field == FREEZE_DEPTH
    }
    assert found == depths and config.space.freeze_depths == ("all", 0.75, 0.5, 0)
    assert config.advice == (str(out) if depths else None), "it has no say about other networks"


def test_advice_of_a_fold_sets_the_fold(advice: Advice, tmp_path: Path) -> None:
    data = str(shutil.copytree(advice.data, tmp_path / "folds"))
    manifest = read_manifest(data)
    val, fold = manifest.splits["val"], part("fold-1", 2, 2, 2)
    splits = {**manifest.splits, "train": join_splits([manifest.splits["train"], fold])}
    write_manifest(data, replace(manifest, splits=splits, folds=(val, fold)))
    of_fold = replace(
        advice, data=data, fold=1, fingerprint=read_manifest(data, fold=1).fingerprint
    )
    Path(advice_uri(str(tmp_path / "advice"))).write_text(json.dumps(of_fold.to_dict()))
    out = str(tmp_path / "advice")
    assert read_advice(out) == of_fold
    assert parse(["--from-advice", out]).base.fold == 1
    assert parse(["--from-advice", out, "--fold", "0"]).base.fold == 0


def test_advice_about_other_data_is_refused(advice: Advice, tmp_path: Path) -> None:
    other = str(shutil.copytree(advice.data, tmp_path / "other"))
    write_manifest(other, replace(read_manifest(other), fingerprint="new"))
    with pytest.raises(ValueError, match="other': the advice was measured on another data set"):
        parse(["--from-advice", str(tmp_path / "advice"), "--data", other])


def test_a_sweep_ends_with_the_score(
    advice: Advice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = FinetuneConfig(data=advice.data)
    config = TuningConfig(base=base, advice=str(tmp_path / "advice"))
    record = SweepRecord(
        out=str(tmp_path),
        config=config,
        fingerprint=None,
        status="ended",
        num_trials=1,
        trials=[standing(1, 2, 0.3, verdict=LEARNS_NOT)],
        savings=Savings(),
        sync=(),
        started=None,
        promoted=None,
        manifest=None,
    )
    ending.print_answer(record)
    assert "Advice:       recommended freeze depth 2; no trial" in capsys.readouterr().out


def test_candidates_are_names_sets_and_weights() -> None:
    training = FinetuneConfig(data="data", out="out", model=ModelConfig(init="imagenet"))

    def plan(*texts: str) -> list[tuple[str, ModelConfig]]:
        planned = plan_candidates(texts, training)
        return [(candidate.name, candidate.training.model) for candidate in planned]

    model = partial(ModelConfig, init="imagenet")
    assert plan("lenet5", "lenet5=he", "resnet50=s3://b/f.pth@half", "timm/resnet18", "lenet5") == [
        ("lenet5", model(backbone="lenet5")),
        ("lenet5-2", model(backbone="lenet5", init="he")),
        (
            "resnet50",
            model(backbone="resnet50", init="file", weights="s3://b/f.pth", normalization="half"),
        ),
        ("timm-resnet18", model(backbone="timm/resnet18")),
    ]
    assert plan("mobilenet_v2=here.pth")[0][1].weights == str(Path("here.pth").absolute())
    assert [candidate.training.out for candidate in plan_candidates(("lenet5",), training)] == [
        "out/lenet5"
    ]
    for text, sentence in {
        "resnet50=": "use NAME, NAME=INIT",
        "resnet50@whole": "backbones is 'whole'",
        "resnet5000": "resnet5000",
    }.items():
        with pytest.raises(UserError, match=sentence):
            plan(text)


def test_the_networks_of_the_sets_are_there() -> None:
    networks = [network.name for network in read_backbones(tuple(SETS))]
    assert len(networks) == len(set(networks)) == 12
    assert {find(network).source for network in networks} == {"torchvision", "timm"}


def test_the_front_has_networks_that_no_other_dominates() -> None:
    def ranked(name: str, top1: float, image_ms: float) -> Ranked:
        return Ranked(
            name=name,
            backbone=name,
            init="he",
            weights="he",
            license=None,
            note=None,
            stage="stem",
            top1=top1,
            low=top1,
            high=top1,
            p_best=1.0,
            image_ms=image_ms,
            size_mib=1.0,
            on_front=False,
        )

    rows = mark_front(
        [
            ranked("slow", 0.8, 9.0),
            ranked("fast", 0.6, 1.0),
            ranked("best", 0.9, 5.0),
            ranked("equal", 0.9, 6.0),
            ranked("middle", 0.7, 3.0),
        ]
    )
    assert [row.name for row in rows] == ["best", "equal", "slow", "middle", "fast"]
    assert [row.name for row in rows if row.on_front] == ["best", "middle", "fast"]


@pytest.fixture
def passes_run(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The number of networks and of images of each pass."""
    found: list[tuple[int, int]] = []

    def run_pass(networks: Any, *arguments: Any, **options: Any) -> Any:
        built = run_pass_(networks, *arguments, **options)
        found.append((len(networks), built.num_images))
        return built

    run_pass_ = passes.run_pass
    monkeypatch.setattr(passes, "run_pass", run_pass)
    return found


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    torch.save(build("lenet5", 3).state_dict(), tmp_path / "lenet5.pth")
    return str(tmp_path / "lenet5.pth")


@pytest.mark.ray
def test_networks_are_compared_in_one_pass(
    ray_cluster: str,
    easy_data: str,
    tmp_path: Path,
    weights: str,
    passes_run: list[tuple[int, int]],
    one_thread: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "advice"
    config = AdviseConfig(
        data=easy_data,
        out=str(out),
        backbones=(f"lenet5={weights}@half", "lenet5=zeros"),
        size_px=32,
        race=False,
    )
    out.mkdir()
    Path(advice_uri(str(out))).write_text("{}")  # of one network
    values = run_advise(config)
    assert isinstance(find_advice(str(out)), Front)
    run_advise(replace(config, backbones=(*config.backbones, "lenet5=he")))

    assert passes_run == [(2, 48 + 17), (1, 48 + 17)]
    first, last = values["networks"]
    assert (first["name"], last["name"], last["init"]) == ("lenet5", "lenet5-2", "zeros")
    assert first["top1"] > last["top1"] and last["p_best"] < 0.05
    assert first["on_front"] and first["image_ms"] > 0
    assert (out / "backbones.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((out / "backbones.json").read_text())["networks"]) == 3
    printed = capsys.readouterr().out
    assert f"Sweep it: python -m tuning --from-advice {out}/lenet5" in printed
    advice = read_advice(f"{out}/lenet5")
    assert (advice.normalization, advice.stages[-1].top1 <= first["top1"]) == ("half", True)
    assert parse(["--from-advice", f"{out}/lenet5-2"]).space.inits == ("zeros",)


@pytest.mark.ray
def test_advice_on_rotten_data_stops_in_one_sentence(
    ray_cluster: str, write_data: WriteData, tmp_path: Path, weights: str, one_thread: None
) -> None:
    data = write_data()
    config = AdviseConfig(data=data, out=str(tmp_path / "advice"), backbone="lenet5", init="file",
                          weights=weights, size_px=32, race=False)  # fmt: skip
    find_shard(data, "train").unlink()
    with pytest.raises(UserError, match=r"max_bad_fraction is 0\.01: 48 of 48 train images could"):
        run_advise(config)


@pytest.mark.ray
def test_stages_are_probed_on_the_users_images_in_one_pass_that_is_kept(
    ray_cluster: str,
    easy_data: str,
    tmp_path: Path,
    weights: str,
    passes_run: list[tuple[int, int]],
    one_thread: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = AdviseConfig(
        data=easy_data,
        out=str(tmp_path / "advice"),
        backbone="lenet5",
        init="file",
        weights=weights,
        size_px=32,
        little_per_class=10,
        race=False,
    )
    (tmp_path / "advice").mkdir()
    (tmp_path / "advice/backbones.json").write_text("{}")  # of several networks
    values = run_advise(config)
    assert not (tmp_path / "advice/backbones.json").exists()
    assert run_advise(config) == values
    assert passes_run == [(1, 48 + 17)]

    assert (tmp_path / "advice" / "advice.png").read_bytes().startswith(b"\x89PNG")
    found = read_advice(config.out)
    assert found.to_dict() == values
    assert [stage.name for stage in found.stages] == [name for name, _ in find("lenet5").stages]
    assert found.verdict.images_per_class == 16 and not found.verdict.is_little
    # Each class is a bar at its own height: easy, even for layers drawn at random.
    assert found.stages[-1].top1 > found.verdict.chance == 6 / 17
    printed = capsys.readouterr().out
    assert f"Sweep it: python -m tuning --from-advice {config.out}" in printed
    assert parse(["--from-advice", config.out]).space.freeze_depths == ("all", 0.75, 0.5, 0)


HERE = Resources(num_nodes=1, num_cpus=2, num_gpus=0, memory_gib=8, object_store_gib=2)


def race_with(
    train: Callable[[int, float, int], tuple[float, ...]],
    data: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Race:
    """Race MobileNetV2's depths for 10 epochs; `train` has val/top1 by depth, rate and epochs."""

    def share(sweep: TuningConfig, *_: Any) -> tuple[list[race_module.Training], None]:
        depths = [int(depth) for depth in sweep.space.freeze_depths]
        assert depths == [7, 6, 5, 4, 2, 0]
        return [
            race_module.Training(
                depth=depth,
                config=replace(
                    sweep.base,
                    out=f"{depth}-{each}",
                    optim=replace(sweep.base.optim, learning_rate=each),
                ),
                is_cheap=depth > 5,
            )
            for depth in depths
            for each in (race_module.CHEAP_RATES if depth > 5 else race_module.RATES)
        ], None

    def train_to(config: FinetuneConfig, epochs: int, *_: Any) -> tuple[float, ...]:
        return train(int(config.out.split("-")[0]), config.optim.learning_rate, epochs)

    monkeypatch.setattr(race_module, "_share", share)
    monkeypatch.setattr(race_module, "_train", train_to)
    config = AdviseConfig(
        data=data,
        out="advice",
        backbone="mobilenet_v2",
        init="file",
        weights="unused.pth",
        size_px=32,
        epochs=10,
        global_batch_size=4,
    )
    training = passes.build_training(config, "advice")
    return race_module.run_race(config, training, read_manifest(data), HERE)


@pytest.mark.parametrize(
    ("rate", "leads", "joins", "diverged"),
    [
        (1e-3, 2, True, ()),
        (3e-4, 2, True, ()),
        (1e-3, 4, False, ()),
        (3e-4, 2, True, ((5, 1e-3), (4, 3e-4), (7, 1e-2))),
    ],
)
def test_a_race_takes_the_better_rate_and_trains_the_whole_network_where_less_frozen_leads(
    easy_data: str,
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    leads: int,
    joins: bool,
    diverged: tuple[tuple[int, float], ...],
) -> None:
    """Of MobileNetV2's seven stages; the best head has 0.3 after all of 10 epochs."""
    asked: dict[tuple[int, float], int] = {}

    def train(depth: int, its_rate: float, epochs: int) -> tuple[float, ...]:
        assert asked.get((depth, its_rate), 0) < epochs, "trained already"
        asked[depth, its_rate] = epochs
        if (depth, its_rate) in diverged:
            return ()
        top = 0.3 if depth > 5 else {leads: 0.9, 0: 0.95}.get(depth, 0.7)
        top *= 1.0 if depth > 5 or its_rate == rate else 0.5
        return tuple(top * (1 - 0.5 ** (epoch + 1)) for epoch in range(epochs))

    found = race_with(train, easy_data, monkeypatch)

    assert found.depths[0].depth == (0 if joins else leads)
    assert all(each.learning_rate == rate for each in found.depths if each.depth < 6)
    other = min(set(race_module.RATES) - {rate})
    assert [depth for depth, its_rate in asked if its_rate == other and depth < 6] == [5]
    assert ((0, rate) in asked) == joins
    assert all(asked[7, each] == 10 for each in race_module.CHEAP_RATES), "heads train to the end"
    assert {epochs for (depth, _), epochs in asked.items() if depth < 6} == {4}
    assert {(each.depth, each.learning_rate) for each in found.depths}.isdisjoint(diverged)


def test_a_race_of_trainings_that_diverged_has_the_others_or_ends(
    easy_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float]] = []

    def train(depth: int, rate: float, epochs: int) -> tuple[float, ...]:
        asked.append((depth, rate))
        return (0.2, 0.3) if depth > 5 else ()

    found = race_with(train, easy_data, monkeypatch)
    assert {each.depth for each in found.depths} == {6, 7}
    assert [depth for depth, _ in asked if depth < 6] == [5, 5], "no rate is known"
    with pytest.raises(UserError, match="race is True: every training diverged; use --no-race"):
        race_with(lambda *_: (), easy_data, monkeypatch)


def test_a_training_that_diverged_is_left_out_again(
    easy_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModelConfig(backbone="lenet5", init="he", freeze_depth="all")
    config = small_training(easy_data, str(tmp_path / "run"), model=model)
    shared = Shared(manifest=read_manifest(easy_data))
    write_config(config)
    write_result(config.out, TrainingProgress(), diverged="gradients are not finite")
    assert race_module._train(config, 3, shared, HERE) == ()
    assert "run: gradients are not finite" in capsys.readouterr().out
    write_result(config.out, TrainingProgress())
    with pytest.raises(UserError, match="seed is 1: the run in"):
        race_module._train(replace(config, seed=1), 3, shared, HERE)


@pytest.mark.ray
def test_freeze_depths_race_and_the_race_is_kept(
    ray_cluster: str,
    easy_data: str,
    tmp_path: Path,
    weights: str,
    one_thread: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = AdviseConfig(
        data=easy_data,
        out=str(tmp_path / "advice"),
        backbone="lenet5",
        init="file",
        weights=weights,
        size_px=32,
        epochs=3,
        global_batch_size=16,
        policy="none",
        num_workers=0,
    )
    race = Advice.from_dict(run_advise(config)).race
    assert race is not None and race.num_epochs == 3
    base = parse(["--from-advice", config.out]).base
    found = base.epochs, base.global_batch_size, base.ingest.policy
    assert found == (3, 16, "none"), "the sweep that the race predicts"
    assert {raced.depth for raced in race.depths} >= {1, len(find("lenet5").stages)}
    assert {len(raced.top1s) for raced in race.depths} <= {2, 3}
    regrets = [raced.regret.expected for raced in race.depths]
    assert regrets == sorted(regrets)
    trials = list((tmp_path / "advice" / "race").glob("*/trials/*/metrics.jsonl"))
    written = {file: file.read_bytes() for file in trials}
    assert len(trials) >= len(race.depths)

    assert Advice.from_dict(run_advise(config)).race == race
    assert {file: file.read_bytes() for file in trials} == written
    printed = capsys.readouterr().out
    assert "Sure:     as good as the best of them, within 0.01, with a chance of" in printed
    assert f"Lecture:  {read_advice(config.out).verdict.advice} (freeze depth" in printed
