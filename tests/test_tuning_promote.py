"""A sweep's winner trained on train and validation, by hand-made sweeps of one real tiny trial."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from cluster.config import ClusterConfig
from cluster.io.errors import UserError
from cluster.runtime import Resources
from datasets.config import IngestConfig
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest, write_manifest
from tests.support.calibration import CALIBRATION
from tests.support.small import small_training
from tests.support.training import train_here
from trainers.config import FinetuneConfig, LossConfig, ModelConfig, OptimConfig, TrackConfig
from trainers.evaluation import calibrate, evaluate
from trainers.export.config import ExportConfig
from trainers.run import checkpoint
from trainers.run.calibration import write_calibration
from trainers.run.folder import load_best_model, read_result
from trainers.run.predictions import read_predictions
from trainers.run.rows import read_rows
from trainers.tracking.mirror import RunMirror
from tuning.axes.axis import CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE
from tuning.budget import deadline
from tuning.budget.deadline import BudgetClock, BudgetSpent, read_spent
from tuning.budget.rates import TrainingSeconds
from tuning.config import TuningConfig
from tuning.promotion import length, promote, seeds, trainings
from tuning.promotion.config import PromoteConfig
from tuning.promotion.length import fit_epochs
from tuning.promotion.promote import run_promote
from tuning.promotion.resolution import Resolution, choose_size, count_last
from tuning.promotion.trainings import count_longest, plan_trainings
from tuning.record.files import promotion_uri
from tuning.record.leaderboard import write_leaderboard
from tuning.record.results import LEARNS, LEARNS_NOT, TrialResult
from tuning.winner import evaluate_once

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_thread")]


def trial(data: str, sweep: Path) -> FinetuneConfig:
    return small_training(
        data,
        str(sweep / "trials" / "a"),
        epochs=1,
        model=ModelConfig(backbone="lenet5", init="he"),
        optim=OptimConfig(learning_rate=1e-3),
        loss=LossConfig(class_weights="balanced"),
        track=TrackConfig(wandb="off", log_every_steps=1),
        cluster=ClusterConfig(num_workers=0),
    )


def standing(run: str, verdict: str = LEARNS) -> TrialResult:
    return TrialResult(
        rank=1,
        trial_id="a",
        point={FREEZE_DEPTH: 0, LEARNING_RATE: 1e-3, CLIPNORM: None, INIT: "he"},
        val_top1=0.9,
        best_epoch=1,
        num_epochs=1,
        state="finished",
        seconds=1.0,
        verdict=verdict,
        run=run,
    )


def write_sweep(sweep: Path, config: FinetuneConfig, verdict: str = LEARNS) -> None:
    """Write what a sweep of one trial leaves, without its training."""
    Path(config.out).mkdir(parents=True, exist_ok=True)
    (Path(config.out) / "config.json").write_text(json.dumps(config.to_dict()))
    fingerprint = read_manifest(config.data).fingerprint
    facts = TuningConfig(base=config, out=str(sweep)).to_dict() | {"data_fingerprint": fingerprint}
    (sweep / "config.json").write_text(json.dumps(facts))
    write_leaderboard(str(sweep), [standing(config.out, verdict)], config, sync=[])


class Mirror(RunMirror):
    """A mirror that W&B never sees, but the test does."""

    opened: list[dict[str, Any]]

    def __init__(self, config: FinetuneConfig, manifest: Manifest, **options: Any) -> None:
        Mirror.opened.append(options)
        super().__init__(config, manifest, **options)

    def close(self, **_: Any) -> str:
        return f"python -m trainers track sync {self._config.out}"


def test_the_winner_is_trained_on_train_and_val_with_each_seed_and_tested_once(
    ray_cluster: str,
    easy_data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("trainers.commands.RunMirror", Mirror)
    Mirror.opened = []

    def refuse() -> None:
        raise UserError("formats has ONNX: it needs onnx")

    monkeypatch.setattr(seeds, "require_onnx", refuse)
    sweep, out = tmp_path / "sweep", tmp_path / "final"
    export, spent_s = seeds.export, list[float]()

    def export_as_if_killed(config: ExportConfig) -> Any:
        spent_s.append(read_spent(str(out)).seconds)
        return export(config)

    monkeypatch.setattr(seeds, "export", export_as_if_killed)
    monkeypatch.setattr(deadline, "WRITE_EVERY_S", 0.1)
    won = trial(easy_data, sweep)
    write_sweep(sweep, won)
    train_here(won)
    before = evaluate_once(won.out, device="cpu")
    write_calibration(won.out, checkpoint.load_best(won.out)[0].global_step, CALIBRATION)
    options = {"seeds": 2, "epochs": 2, "num_workers": 0, "wandb": "off"}
    config = PromoteConfig(sweep=str(sweep), out=str(out), **options)
    capfd.readouterr()
    summary = run_promote(config)
    printed = capfd.readouterr().out

    assert 0 < spent_s[0] < read_spent(str(out)).seconds, "also where the driver is killed"
    runs = [str(out / f"seed-{seed}") for seed in (0, 1)]
    assert [row["run"] for row in summary["seeds"]] == runs
    losses = []
    for run in runs:
        rows = read_rows(run)
        losses.append([row["train/loss"] for row in rows])
        # 65 images are 4 steps of 16; the 48 of train alone would be 3.
        assert [row["global_step"] for row in rows] == list(range(1, 9))
        assert not any(name.startswith("val/") for row in rows for name in row)
        result = json.loads(Path(run, "result.json").read_text())
        assert (result["best_epoch"], result["val/top1"]) == (2, None)
        test = json.loads(Path(run, "evaluation_test.json").read_text())
        assert test["epoch"] == 2
        # Its validation images trained: the winner's calibration is used, which left them out.
        assert (test["calibration"]["origin"], test["calibration"]["temperature"]) == (won.out, 2.0)
    assert losses[0] != losses[1]
    weights = safetensors.torch.load_file(summary["weights"])
    last = safetensors.torch.load_file(f"{runs[0]}/checkpoints/step-00000008/model.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights.items())

    tests = [json.loads(Path(run, "evaluation_test.json").read_text()) for run in runs]
    top1s = [test["test/top1"] for test in tests]
    assert summary["test/top1"]["mean"] == pytest.approx(sum(top1s) / 2)
    assert summary["interval"] == "t over 2 seeds" and summary["num_images"] == 13
    assert summary["winner"]["test/top1"] == before["test/top1"]
    assert json.loads((out / "promoted.json").read_text()) == summary
    assert f"Exported: {out}/exported" in printed and f"Review:   {out}/review.html" in printed
    exported = {path.name for path in (out / "exported").iterdir()}
    assert exported == {"README.md", "config.json", "model.safetensors", "model.pt2"}
    assert "2 seeds" in (out / "review.html").read_text()
    assert "on 65 images of 3 classes" in printed and "Promoted:" in printed
    assert printed.count("W&B:") == 1 and f"track sync {out}\n" in printed
    assert {(m["job_type"], m["group"]) for m in Mirror.opened} == {("promote", "sweep")}

    # Again: nothing is trained or tested twice, but the one test that is missing.
    Path(runs[1], "evaluation_test.json").unlink()
    evaluated, write_evaluation = [], evaluate.write_evaluation

    def counted(run: str, **options: Any) -> dict[str, Any]:
        evaluated.append(run)
        return write_evaluation(run, **options)

    monkeypatch.setattr(evaluate, "write_evaluation", counted)
    monkeypatch.setattr(trainings, "follow_training", pytest.fail)
    assert run_promote(config) == summary
    assert evaluated == [runs[1]]
    again = capfd.readouterr().out
    assert "seed-0 is trained: reusing it" in again and "Promoted:" in again

    with pytest.raises(ValueError, match=r"epochs is 3: .*seed-0 was promoted with 2; use the"):
        run_promote(replace(config, epochs=3))


def test_a_seed_is_the_winner_but_longer_and_without_a_stop(
    easy_data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    won = trial(easy_data, tmp_path)
    patient = replace(won, schedule=replace(won.schedule, early_stopping_epochs=1))
    write_sweep(tmp_path, patient)
    config = PromoteConfig(sweep=str(tmp_path))
    planned = plan_trainings(config, patient, str(tmp_path), "promoted", num_folds=0)
    first, second, third = planned

    assert (first.seed, second.seed, third.seed) == (0, 1, 2)
    assert (third.epochs, third.train_on, third.out) == (3, "train+val", "promoted/seed-2")
    assert third.schedule.early_stopping_epochs is None
    assert "early_stopping_epochs is not used" in caplog.text
    assert (third.model, third.optim, third.loss) == (won.model, won.optim, won.loss)

    slow = replace(won, epochs=4, schedule=replace(won.schedule, warmup_epochs=1.0))
    (short, *_) = plan_trainings(replace(config, epochs=1), slow, str(tmp_path), "promoted")
    assert short.schedule.warmup_epochs == 0.5, "of a budget for one epoch"

    config = replace(config, folds=True)
    from_head = replace(patient, model=replace(patient.model, head="head.safetensors"))
    folds = plan_trainings(config, from_head, str(tmp_path), "folds", num_folds=2)
    assert folds[0].model.head is None and "model.head is not used" in caplog.text
    assert [(each.fold, each.seed, each.train_on) for each in folds] == [
        (0, won.seed, "train"),
        (1, won.seed, "train"),
    ]
    assert [each.out for each in folds] == ["folds/fold-0", "folds/fold-1"]
    assert {each.schedule.early_stopping_epochs for each in folds} == {None}
    with pytest.raises(ValueError, match=r"folds is True: the data set .* has none; prepare it"):
        plan_trainings(config, patient, str(tmp_path), "folds", num_folds=0)
    with pytest.raises(ValueError, match="seeds is 5: with --folds each fold is trained once"):
        replace(config, seeds=5)


def test_a_budget_is_divided_among_epochs_and_seeds() -> None:
    plan = {"epoch_s": 10.0, "fixed_s": 0.0, "seeds": 3, "shortest": 5, "longest": 15}
    assert fit_epochs(1e6, **plan) == 15
    assert fit_epochs(300, **plan) == 10, "of each of three seeds"
    assert fit_epochs(300, **plan | {"fixed_s": 30.0}) == 7, "each of them starts, and is tested"
    assert fit_epochs(120, **plan) == 6, "of two: three would have four"
    assert (
        fit_epochs(60, **plan) == 6 and fit_epochs(30, **plan) == 3 and fit_epochs(1, **plan) == 1
    )
    with pytest.raises(ValueError, match="budget is 'soon': give a time such as 45m"):
        PromoteConfig(sweep="s", budget="soon")
    with pytest.raises(ValueError, match="budget is '1h': with --folds each fold is trained"):
        PromoteConfig(sweep="s", budget="1h", folds=True)


@pytest.mark.parametrize(
    ("budget", "epochs", "trained"),
    [
        (None, 2, ["length", "seed-0", "seed-1", "seed-2"]),
        ("1h", 2, ["length", "seed-0", "seed-1", "seed-2"]),
        ("2m", 1, ["seed-0", "seed-1", "seed-2"]),
        ("50s", 1, ["seed-0"]),
    ],
)
def test_what_a_promotion_trains_is_planned_from_seconds(
    easy_data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: str | None,
    epochs: int,
    trained: list[str],
) -> None:
    """An epoch takes 20 s, a test 4 s, and `length` was best after 2 of 3 epochs."""
    write_sweep(tmp_path / "sweep", base := trial(easy_data, tmp_path / "sweep"))
    out, planned = str(tmp_path / "out"), list[FinetuneConfig]()
    measured = TrainingSeconds(epoch_s=20.0, test_s=4.0)
    result = {"best_epoch": 2, "epochs": 3, "val/best_top1": 0.9, "time/total_s": 20.0}
    monkeypatch.setattr(seeds, "measure_training", lambda *_: measured)
    monkeypatch.setattr(seeds, "prepare_run", lambda training, **_: SimpleNamespace(
        config=training, memory=None, result=None))  # fmt: skip
    monkeypatch.setattr(seeds, "train", lambda run: planned.append(run.config))
    monkeypatch.setattr(seeds, "evaluate_once", lambda run, **_: None)
    lent = list[tuple[str, str]]()
    monkeypatch.setattr(calibrate, "lend_calibration", lambda *runs, **_: lent.append(runs))
    for module in (seeds, length):
        monkeypatch.setattr(module, "read_result", lambda run: result)
    config = PromoteConfig(sweep=str(tmp_path / "sweep"), budget=budget, num_workers=0)
    resources = Resources(num_nodes=1, num_cpus=2.0, num_gpus=0, memory_gib=4, object_store_gib=1)
    promotion = seeds.Promotion(
        config, standing(base.out), base, read_manifest(easy_data), resources, config.sweep, out
    )
    found = promotion._count_epochs(None)
    assert found == epochs
    if budget is not None:
        assert promotion._clock.budget_s is not None
        promotion._clock._started_s -= promotion._clock.budget_s
        with pytest.raises(BudgetSpent, match="is spent before the first seed: run the same"):
            promotion._count_epochs(None)
        promotion._clock._started_s += promotion._clock.budget_s
    if budget == "50s":  # the first seed is over it
        monkeypatch.setattr(promotion._clock, "budget_s", 0.0)
    promotion._train(promotion._plan(found), None)
    assert [Path(each.out).name for each in planned] == trained
    assert {each.train_on for each in planned if "seed" in each.out} == {"train+val"}
    assert lent == [(base.out, each.out) for each in planned if "seed" in each.out]
    if "length" in trained:
        first = planned[0]
        assert (first.train_on, first.epochs, first.schedule.early_stopping_epochs) == (
            "train",
            3,
            1,
        )
        assert promotion.notes[0].startswith(
            "Epochs:   2 of each seed: val/top1 was best then, 0.9"
        )


def test_trials_that_a_budget_shortened_do_not_shorten_the_seeds(
    easy_data: str, tmp_path: Path
) -> None:
    won = trial(easy_data, tmp_path)
    assert count_longest(won, str(tmp_path)) == 3
    write_sweep(tmp_path, won)
    facts = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(facts | {"full_epochs": 4}))
    assert count_longest(won, str(tmp_path)) == 12


def test_larger_images_follow_where_the_network_takes_them(easy_data: str, tmp_path: Path) -> None:
    base = trial(easy_data, tmp_path)
    assert choose_size(base, "auto") is None, "41 px are nearest to 32"
    of_224 = replace(
        base, model=ModelConfig(backbone="mobilenet_v2"), ingest=IngestConfig(size_px=224)
    )
    assert choose_size(of_224, "auto") == 288 and choose_size(of_224, 256) == 256
    assert choose_size(of_224, None) is None
    with pytest.raises(ValueError, match="last_size_px is 192: the sweep has images of 224 px"):
        choose_size(of_224, 192)
    with_adapters = replace(of_224, model=replace(of_224.model, freeze_depth="lora:8"))
    assert choose_size(with_adapters, "auto") is None
    with pytest.raises(ValueError, match="last_size_px is 288: the network or its adapters keep"):
        choose_size(with_adapters, 288)
    with pytest.raises(ValueError, match="last_size_px is 8: too small for lenet5"):
        choose_size(base, 8)
    assert [count_last(epochs) for epochs in (1, 14, 16, 30)] == [1, 1, 2, 3]


@pytest.mark.extended
def test_a_budget_and_larger_images_end_in_one_folder(
    ray_cluster: str,
    easy_data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The winner predicts one class only, so that a further epoch at 64 px is better."""
    sweep = tmp_path / "sweep"
    won = replace(
        trial(easy_data, sweep),
        model=ModelConfig(backbone="mobilenet_v2", init="he"),
        optim=OptimConfig(learning_rate=1e-2),
    )
    write_sweep(sweep, won)
    train_here(won)
    monkeypatch.setattr(Resolution, "is_better", True)
    options = {"seeds": 2, "num_workers": 0, "wandb": "off", "last_size_px": 64}
    config = PromoteConfig(sweep=str(sweep), budget="10m", **options)
    summary = run_promote(config)
    printed = capfd.readouterr().out
    assert "Images:   last epochs at 64 px: val/top1" in printed
    assert summary["resolution"]["used"] and "kept by position" not in printed
    measured = read_result(str(sweep / "promoted/length"))
    assert summary["epochs"] == measured["best_epoch"] <= 3, "at most three times those of a trial"
    assert f"Epochs:   {measured['best_epoch']} of each seed: val/top1 was best then" in printed
    assert [Path(row["run"]).name for row in summary["seeds"]] == ["seed-0-64px", "seed-1-64px"]
    config_of_run, progress, _ = load_best_model(summary["run"])
    assert (config_of_run.ingest.size_px, config_of_run.epochs, progress.epoch) == (64, 1, 1)
    start = safetensors.torch.load_file(str(config_of_run.model.weights))
    _, before = checkpoint.load_best(str(sweep / "promoted/seed-0"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.items())
    card = (sweep / "promoted/exported/README.md").read_text()
    assert "64 px" in card and (sweep / "promoted/spent.json").exists()

    # A budget that is spent begins no other seed.
    assert run_promote(replace(config, seeds=3, budget="2s"))["seeds"] == summary["seeds"]
    assert "2 of 3 seeds; run the same command with a larger budget" in capfd.readouterr().out


@pytest.mark.extended
def test_each_fold_is_validated_by_a_training_on_the_others(
    ray_cluster: str, easy_data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = str(shutil.copytree(easy_data, tmp_path / "data"))
    manifest = read_manifest(data)
    folds = (manifest.split("val"), manifest.split("train"))  # of 17 and 48 images
    splits = {name: split for name, split in manifest.splits.items() if name != "test"}
    write_manifest(data, replace(manifest, splits=splits, folds=folds))
    sweep = tmp_path / "sweep"
    write_sweep(sweep, trial(data, sweep))

    config = PromoteConfig(sweep=str(sweep), folds=True, epochs=2, num_workers=0, wandb="off")
    summary = run_promote(config)

    out = sweep / "folds"
    assert json.loads((out / "folds.json").read_text()) == summary
    assert [row["num_images"] for row in summary["folds"]] == [17, 48]
    last_top1s = []
    for fold, num_steps in ((0, 3), (1, 1)):  # an epoch of the other fold, in batches of 16
        rows = read_rows(str(out / f"fold-{fold}"))
        assert rows[-1]["global_step"] == 2 * num_steps
        last_top1s.append(rows[-1]["val/top1"])
        predictions = read_predictions(str(out / f"fold-{fold}"), 2)
        assert predictions is not None
        assert len(predictions.table) == folds[fold].num_images
    assert [row["val/top1"] for row in summary["folds"]] == last_top1s
    assert summary["val/top1"]["mean"] == pytest.approx(sum(last_top1s) / 2)
    printed = capfd.readouterr().out
    assert "on 65 images of train and val, each validated once" in printed
    assert "Promote:" not in printed  # without a test split it would be refused


def test_another_winner_is_promoted_beside_the_first(easy_data: str, tmp_path: Path) -> None:
    """As of a sweep that was resumed with a larger budget."""
    won = trial(easy_data, tmp_path)
    write_sweep(tmp_path, won)
    winner, before = standing(won.out), replace(standing(won.out), trial_id="b")
    first = tmp_path / "promoted"
    assert promotion_uri(str(tmp_path), winner) == str(first)
    first.mkdir()
    (first / "winner.json").write_text(json.dumps(before.to_dict()))
    assert promotion_uri(str(tmp_path), before) == str(first)
    assert promotion_uri(str(tmp_path), winner) == str(tmp_path / "promoted-a")
    with pytest.raises(UserError, match=r"trial b was promoted there, and a won: use another --ou"):
        run_promote(PromoteConfig(sweep=str(tmp_path), out=str(first)))


@pytest.mark.parametrize(("promoted_before", "budget_s"), [("a", 2400.0), ("b", 1800.0)])
def test_a_promotion_within_a_budget_has_what_is_left_of_it(
    easy_data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    promoted_before: str,
    budget_s: float,
) -> None:
    """Of 30 minutes that are left; sessions before took 10 for this winner, or for another."""
    write_sweep(tmp_path, won := trial(easy_data, tmp_path))
    (tmp_path / "promoted").mkdir()
    before = replace(standing(won.out), trial_id=promoted_before)
    (tmp_path / "promoted/winner.json").write_text(json.dumps(before.to_dict()))
    (tmp_path / "promoted/spent.json").write_text(json.dumps({"seconds": 600.0}))
    given = list[PromoteConfig]()
    monkeypatch.setattr(promote, "run_promote", lambda config: given.append(config) or {})
    promote.promote_winner(TuningConfig(base=won, out=str(tmp_path)), 1800.0)
    (config,) = given
    assert config.budget == f"{budget_s:.0f}s"
    clock = BudgetClock(promotion_uri(str(tmp_path), standing(won.out)), budget_s)
    assert clock.whole_left_s == pytest.approx(1800.0, abs=10.0)


def test_what_cannot_be_promoted_is_named(easy_data: str, tmp_path: Path) -> None:
    config = PromoteConfig(sweep=str(tmp_path))
    with pytest.raises(ValueError, match=r"no finished sweep there \(leaderboard\.json is missing"):
        run_promote(config)

    won = trial(easy_data, tmp_path)
    write_sweep(tmp_path, won, LEARNS_NOT)
    with pytest.raises(
        ValueError, match="it has no winner, as none of its 1 trials is better than"
    ):
        run_promote(config)

    data = shutil.copytree(easy_data, tmp_path / "data")
    manifest = read_manifest(str(data))
    splits = {name: split for name, split in manifest.splits.items() if name != "test"}
    for folds, remedy in (((), "sweep data"), ((splits["val"],), "cross-validate it with --folds")):
        write_manifest(str(data), replace(manifest, splits=splits, folds=folds))
        write_sweep(tmp_path, replace(won, data=str(data)))
        with pytest.raises(ValueError, match=f"no test split to test the winner on; {remedy}"):
            run_promote(config)

    write_sweep(tmp_path, won)
    with pytest.raises(
        ValueError, match="registry is 'cars': W&B is off: set WANDB_API_KEY or log"
    ):
        run_promote(replace(config, registry="cars", wandb="off"))

    shutil.rmtree(won.out)
    with pytest.raises(ValueError, match="no run folder there"):
        run_promote(config)
    assert not (tmp_path / "promoted").exists()

    with pytest.raises(ValueError, match="registry is 'a//b': give a name, such as cars"):
        PromoteConfig(sweep="s", registry="a//b")
    with pytest.raises(ValueError, match="seeds is 0: use 1 to 1000"):
        PromoteConfig(sweep="s", seeds=0)
