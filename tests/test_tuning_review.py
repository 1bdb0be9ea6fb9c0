"""The review of a sweep: its answer, where that comes from, and what the page escapes."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch

from datasets.manifest_file import read_manifest, write_manifest
from tests.support.sweeps import (
    hostile_classes,
    write_combined,
    write_predictions,
    write_sweep,
    write_test,
)
from trainers.networks import backbones
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from tuning.axes.axis import CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE
from tuning.point import AXES
from tuning.progress import progress
from tuning.record.leaderboard import read_leaderboard
from tuning.record.record import SweepRecord
from tuning.record.results import PRUNED
from tuning.record.states import TrialStates, read_trials
from tuning.record.verdict import judge
from tuning.review import review
from tuning.review.charts import pareto_front
from tuning.review.config import ReviewConfig
from tuning.review.confusion import draw_confusion
from tuning.review.importance import rank_axes
from tuning.review.page import name_networks, render_page
from tuning.review.pictures import draw_makes, show_predictions
from tuning.review.review import run_review
from tuning.shared import Shared
from tuning.winner import list_next

MAX_BYTES = 8_000_000


# ---- The page ----


@pytest.mark.parametrize(
    ("options", "headline", "lead"),
    [
        ({"trials": 0, "status": "running"}, "No answer yet.", "none has finished an epoch"),
        ({"trials": 6, "kind": "failed"}, "Every trial failed.", "None of 6 trials"),
        (
            {"trials": 6, "kind": "chance"},
            "No trial learned.",
            "always predicting the most frequent class",
        ),
        ({"trials": 1}, "on.", "No other freeze depth has a result"),
        ({"status": "running"}, "Thaw from layer2 on.", "The best trial reaches"),
        ({"status": "stopped"}, "Thaw from layer2 on.", "The best trial reaches"),
        ({"trials": 500, "epochs": 27}, "Thaw from layer2 on.", "The best trial reaches"),
    ],
)
def test_every_kind_of_sweep_has_a_page(
    tmp_path: Path, options: dict[str, Any], headline: str, lead: str
) -> None:
    sweep = SweepRecord.read(write_sweep(tmp_path / "sweep", **options))
    verdict = judge(sweep)
    assert verdict.headline.endswith(headline) and lead in verdict.lead
    content = render_page(sweep)
    assert len(content) < MAX_BYTES
    assert verdict.headline in content.decode()
    depths = {sweep.frozen_of(row).short for row in sweep.trials}
    assert all(f">{depth}</td>" in content.decode() for depth in depths)
    assert sweep.status == options.get("status", "ended")


def test_importance_finds_the_axis_that_decides(tmp_path: Path) -> None:
    out = write_sweep(tmp_path / "sweep", trials=60)
    known = read_leaderboard(out)
    assert known is not None
    standings = known[0]
    shares = rank_axes(standings)
    assert set(shares) == set(AXES) and sum(shares.values()) == pytest.approx(1)
    assert shares[LEARNING_RATE] > shares[CLIPNORM]
    assert rank_axes(standings[:5]) == {}
    assert rank_axes([replace(row, val_top1=0.5) for row in standings]) == {}
    one_init = [row for row in standings if row.point[INIT] == "file"]
    assert rank_axes(one_init)[INIT] == 0


def test_pareto_front_is_what_none_beats(tmp_path: Path) -> None:
    sweep = SweepRecord.read(write_sweep(tmp_path / "sweep"))
    rows = [row for row in sweep.trials if row.val_top1 is not None]
    front = pareto_front(rows)
    assert front[-1] == rows[0]
    for row in front:
        assert row.val_top1 is not None
        assert not [
            r for r in rows if r.seconds < row.seconds and (r.val_top1 or 0) >= row.val_top1
        ]


def test_rungs_are_ashas(tmp_path: Path) -> None:
    for name, epochs, rungs in (("a", 10, [1, 3, 9]), ("b", 1, [])):
        out = write_sweep(tmp_path / name, trials=2, epochs=epochs)
        assert SweepRecord.read(out).config.rungs == rungs


# ---- Where it comes from ----


def test_states_survive_a_resumed_sweep(tmp_path: Path) -> None:
    states = TrialStates(str(tmp_path), num_trials=3)
    point = {FREEZE_DEPTH: "all", LEARNING_RATE: 1e-3, CLIPNORM: None, INIT: "file"}
    states.note("a", point=point, state="running")
    states.note("b", point=point, state="running")
    states.flush()
    states.note("a", point=point, state="failed", reason="OSError: disk")
    states.flush()  # within a second of the one before: nothing is written
    first = read_trials(str(tmp_path))
    assert first is not None and [trial.state for trial in first.trials] == ["running", "running"]
    states.end()
    again = TrialStates(str(tmp_path), num_trials=3)
    again.note("b", point=point, state="finished")
    again.flush(at_once=True)
    held = read_trials(str(tmp_path))
    assert held is not None and held.num_trials == 3
    assert [(t.state, t.reason) for t in held.trials] == [
        ("failed", "OSError: disk"),
        ("finished", None),
    ]
    assert [trial.number for trial in held.trials] == [1, 2] and again.number_of("c") == 3
    assert held.trials[0].point == point


def test_driver_keeps_states_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write_sweep(tmp_path / "sweep", trials=3, status="running")
    sweep = SweepRecord.read(out)
    os.remove(tmp_path / "sweep" / "trials.json")
    silent = SimpleNamespace(finish=lambda state: None)
    monkeypatch.setattr(progress, "RunMirror", lambda *_, **__: silent)
    options = {"group": "group", "max_failures": 1, "evaluate_winner": False}
    config = cast(Any, SimpleNamespace(base=sweep.base, out=out, **options))
    display = SimpleNamespace(start=lambda *_, **__: None, end=lambda *_, **__: None)
    states, shared = TrialStates(out, num_trials=3), Shared(manifest=read_manifest(sweep.base.data))
    callback = progress.SweepProgress(config, shared, cast(Any, display), states)
    trials: list[Any] = [
        SimpleNamespace(
            trial_id=row.trial_id,
            config=row.point,
            last_result={"epoch": epochs},
            error_file=None,
            is_finished=bool,
        )
        for row, epochs in zip(sweep.trials, (9, 1, 9), strict=True)
    ]
    for trial in trials:
        callback.on_trial_start(0, trials, trial)
    never_started = SimpleNamespace(trial_id="5eed0_00003", config=sweep.trials[0].point)
    never_started.error_file, never_started.is_finished = None, bool
    callback.on_trial_error(0, trials, cast(Any, never_started))
    callback.on_trial_complete(0, trials, trials[0])
    callback.on_trial_complete(0, trials, trials[1])
    callback.on_experiment_end(trials)
    held = read_trials(out)
    assert held is not None
    assert [t.state for t in held.trials] == ["finished", "pruned", "killed", "failed"]
    assert [trial.number for trial in held.trials] == [1, 2, 3, 4]


def test_sweep_of_an_older_thaw_is_told_by_its_leaderboard(tmp_path: Path) -> None:
    out = write_sweep(tmp_path / "sweep", predictions=False)
    for name in ("trials.json", "started.json"):
        (tmp_path / "sweep" / name).unlink()
    page = render_page(SweepRecord.read(out)).decode()
    assert "an older Thaw did not record it" in page
    assert "Its predictions were not kept" in page


def test_a_head_that_trains_ahead_of_its_trial_has_not_started(tmp_path: Path) -> None:
    out = write_sweep(tmp_path / "sweep", trials=3, status="running", predictions=False)
    trials = tmp_path / "sweep" / "trials"
    shutil.copytree(trials / "5eed0_00000", trials / "5eed0_00003")
    sweep = SweepRecord.read(out)
    assert sorted(row.trial_id for row in sweep.trials) == [f"5eed0_0000{n}" for n in range(3)]
    (tmp_path / "sweep" / "trials.json").unlink()
    assert len(SweepRecord.read(out).trials) == 4, "an older Thaw wrote no trials.json"


def test_the_page_names_the_networks(tmp_path: Path) -> None:
    record = SweepRecord.read(write_sweep(tmp_path / "sweep", predictions=False))
    assert name_networks(record) == "resnet50"
    space = replace(
        record.config.space, backbones=("mobilenet_v2", "resnet18"), inits=("imagenet",)
    )
    model = replace(record.base.model, init="imagenet", weights=None)
    base = replace(record.base, model=model)
    several = replace(record, config=replace(record.config, base=base, space=space))
    assert name_networks(several) == "mobilenet_v2 or resnet18"


def test_the_page_names_a_promotion_that_its_data_allow(tmp_path: Path) -> None:
    out = write_sweep(tmp_path / "sweep", trials=3, predictions=False)
    data = str(tmp_path / "sweep-data")
    manifest = read_manifest(data)
    splits = {name: split for name, split in manifest.splits.items() if name != "test"}
    command = f"python -m tuning promote --sweep {out}"
    for known, steps in (
        (manifest, [("Promote the winner", command)]),
        (
            replace(manifest, splits=splits, folds=(splits["val"], splits["train"])),
            [("Cross-validate the winner", f"{command} --folds")],
        ),
        (replace(manifest, splits=splits), []),
    ):
        write_manifest(data, known)
        first, *others = list_next(SweepRecord.read(out))
        assert first[0] == "Train the winner longer" and others == steps


def test_combinations_are_on_the_page_and_one_that_is_kept_has_its_command(tmp_path: Path) -> None:
    out = write_sweep(tmp_path / "sweep", trials=6)
    assert "combined-title" not in render_page(SweepRecord.read(out)).decode()
    write_combined(out)
    page = render_page(SweepRecord.read(out)).decode()
    assert "ensemble of 2 trials" in page and "interpolation of 75% of the winner" in page
    assert page.count("<td>+0.020</td>") == 3 and page.count("<td>not significant</td>") == 2
    command = f"trainers export --run {out}/combined/ensemble --out {out}/exported-ensemble"
    assert f"{command} --formats onnx torch_export" in page and "Export the soup" not in page


def test_a_trial_without_its_rows_is_left_out_of_the_curves(tmp_path: Path) -> None:
    """As in a folder that was copied in part."""
    out = write_sweep(tmp_path / "sweep", trials=6, epochs=3, predictions=False)
    sweep = SweepRecord.read(out)
    assert any(row.state == PRUNED for row in sweep.trials)
    for row in sweep.trials:
        if row.state == PRUNED:
            Path(row.run, "metrics.jsonl").unlink()
    assert b"<html" in render_page(SweepRecord.read(out))
    shutil.rmtree(Path(out, "trials"))
    with pytest.raises(ValueError, match="no run folder there"):
        render_page(SweepRecord.read(out))


def test_data_set_that_is_gone_is_said(tmp_path: Path) -> None:
    out = write_sweep(tmp_path / "sweep")
    (tmp_path / "sweep-data" / "manifest.json").unlink()
    sweep = SweepRecord.read(out)
    assert sweep.num_val_images == 320  # as many as the winner has answers to
    assert "The images are missing" in render_page(sweep).decode()


def test_no_sweep_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no sweep there"):
        run_review(ReviewConfig(out=str(tmp_path)))


def test_pictures_of_a_real_network(tmp_path: Path, easy_data: str) -> None:
    out = write_sweep(tmp_path / "sweep", trials=4, data=easy_data, backbone="lenet5")
    winner, manifest = SweepRecord.read(out).winner, read_manifest(easy_data)
    assert winner is not None and winner.best_epoch is not None
    missing = show_predictions(SweepRecord.read(out), pictures=True)
    assert missing is not None and missing.missing is not None and "No heat maps" in missing.missing
    assert missing.right[0].image is not None
    network = backbones.build("lenet5", 3)
    done = TrainingProgress(
        epoch=winner.best_epoch,
        best_epoch=winner.best_epoch,
        val_top1=0.9,
        best_val_top1=0.9,
        classes=manifest.classes,
        fingerprint=manifest.fingerprint,
    )
    weights = safetensors.torch.save(network.state_dict())
    checkpoint.save(winner.run, {checkpoint.MODEL: weights}, done)
    write_test(Path(winner.run), manifest.classes, manifest.fingerprint, epoch=winner.best_epoch)
    counts = manifest.split("test").class_counts
    name = "evaluation_test/predictions.parquet"
    write_predictions(Path(winner.run), manifest.classes, counts, 0.6, seed=0, name=name)
    predictions = show_predictions(SweepRecord.read(out), pictures=True)
    assert predictions is not None and predictions.missing is None
    found = (predictions.split, predictions.num_images, predictions.num_correct)
    assert found == ("test", 13, 8)
    assert all(image for _, image in predictions.pairs)
    assert [len(shown.heats) for shown in predictions.mistakes] == [2] * len(predictions.mistakes)
    assert predictions.mistakes[0].heats[0][2].startswith("data:image/webp;base64,")
    assert "test/top1" in render_page(SweepRecord.read(out)).decode()


def test_watch_writes_until_the_sweep_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, naps = write_sweep(tmp_path / "sweep", status="running"), []

    def nap(seconds: float) -> None:
        naps.append(Path(out, "review.html").read_text())
        if len(naps) == 2:
            write_sweep(tmp_path / "sweep", data=str(tmp_path / "sweep-data"))

    monkeypatch.setattr(review, "time", SimpleNamespace(sleep=nap))
    run_review(ReviewConfig(out=out, watch=True))
    assert len(naps) == 2 and all('data-refresh-s="5"' in page for page in naps)
    assert "data-refresh-s=" not in Path(out, "review.html").read_text()
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("Watching: ") and last.startswith("Review: ")


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    page = render_page(
        SweepRecord.read(write_sweep(tmp_path / "s", classes=hostile_classes()))
    ).decode()
    assert "alert(1)" in page
    for tag in ("<script>alert", "<img src=x", "<b>bold", "<a href='javascript"):
        assert tag not in page
    (figures,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page)
    assert "alert(1)" in json.loads(figures)["confusion"][""]["layout"]["yaxis"]["ticktext"][0]


def test_a_page_of_many_classes_has_cells_of_several() -> None:
    label_N = np.arange(3000) % 1000
    predicted_N = np.where(np.arange(3000) % 10, label_N, 0)
    found = draw_confusion(label_N, predicted_N, [f"class {number}" for number in range(1000)])

    mistakes, right = (
        sum(value for row in layer["customdata"] for value in row if value)
        for layer in found.figures[""].to_dict()["data"]
    )
    assert (mistakes, right) == (297, 2703) and "2703 of 3000 images" in found.label
    assert len(found.figures[""].to_json()) < MAX_BYTES


def test_classes_of_one_make_are_together_where_names_say_so() -> None:
    confusion_KK = np.array([[3, 1, 0], [2, 4, 1], [0, 0, 5]])
    label_N, predicted_N = (np.repeat(at, confusion_KK.ravel()) for at in divmod(np.arange(9), 3))
    found = draw_makes(label_N, predicted_N, ("Audi S4 2007", "Audi S4 2012", "BMW M3 2012"))

    assert found is not None and found.name == "makes"
    assert found.label.startswith("15 of 16 images are on the diagonal. Lowest recall: Audi")
    assert sorted(row[:2] for row in found.table) == [["Audi", 11], ["BMW", 5]]
    assert draw_makes(label_N, predicted_N, ("a", "b", "c")) is None
    assert draw_makes(label_N, predicted_N, ("A x 2007", "B x 2012", "C y 2012")) is None
