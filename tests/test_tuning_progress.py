"""What a sweep tells in the terminal."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from cluster.io import storage, terminal
from datasets.manifest import Manifest, Split
from trainers.config import FinetuneConfig
from tuning import run
from tuning.axes.axis import CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE
from tuning.commands import run_sweep
from tuning.config import TuningConfig
from tuning.point import Point
from tuning.progress import display as module
from tuning.progress import progress
from tuning.progress.display import SweepDisplay, estimate_left_s


def test_time_left_is_that_of_the_trials_that_ended() -> None:
    def left_s(num_left: int, durations_s: list[float], running_s: list[float], at_once: int):
        return estimate_left_s(
            num_left=num_left,
            durations_s=durations_s,
            running_s=running_s,
            num_concurrent=at_once,
        )

    assert left_s(10, [], [30.0], 1) is None, "no trial has ended"
    assert left_s(10, [60.0, 20.0], [], 1) == 400.0  # 10 x 40 s
    assert left_s(10, [60.0, 20.0], [10.0, 90.0], 2) == 175.0  # (400 - 10 - 40) / 2
    assert left_s(1, [40.0], [30.0], 8) == 10.0  # nobody helps the last one
    assert left_s(1, [40.0], [50.0], 8) is None, "overdue"
    assert left_s(0, [40.0], [], 2) is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now_s=0.0)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr(terminal, "time", clock)
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def display(clock: SimpleNamespace) -> SweepDisplay:
    """Of 4 trials of 3 epochs of 4 steps, two at a time."""
    train = Split(shards=(), class_counts=(20, 20), num_pixels=0)
    manifest = Manifest(
        classes=("a", "b"), splits={"train": train}, num_quarantined=0, fingerprint="", options={}
    )
    config = TuningConfig(base=FinetuneConfig(data="", epochs=3, global_batch_size=10))
    return SweepDisplay(config, manifest, num_trials=4, num_concurrent=2)


def point(depth: int) -> Point:
    return {FREEZE_DEPTH: depth, LEARNING_RATE: 0.001, CLIPNORM: None, INIT: "he"}


def start(display: SweepDisplay, number: int, run: Path, num_ended: int = 0) -> None:
    display.start(f"id{number}", number, point(number), str(run), num_ended=num_ended)


def lines(display: SweepDisplay, width: int = 120) -> list[str]:
    """What it draws, without its bar."""
    file = io.StringIO()
    Console(file=file, width=width).print(display.draw())
    drawn = re.sub("[━╸╺]", "", file.getvalue().removeprefix("\n"))
    return [" ".join(line.split()) for line in drawn.splitlines()]


def test_news_are_lines_and_the_block_says_where_the_sweep_is(
    clock: SimpleNamespace,
    display: SweepDisplay,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start(display, 1, tmp_path / "1")
    start(display, 2, tmp_path / "2")
    assert lines(display)[0] == "Sweep 0 of 4 trials 0:00"
    assert lines(display)[1:] == [
        "trial 1 freeze=1 lr=0.001 clip=none init=he starting",
        "trial 2 freeze=2 lr=0.001 clip=none init=he starting",
    ]
    clock.now_s = 65.0
    display.report("id1", {"epoch": 1, "val/top1": 0.7})
    display.report("id2", {"epoch": 1, "val/top1": 0.6})
    display.end("id1", "pruned after epoch 1")
    start(display, 3, tmp_path / "3", num_ended=1)
    clock.now_s = 75.0
    assert capsys.readouterr().out == (
        "[0:00] trial 1/4 freeze=1 lr=0.001 clip=none init=he  started\n"
        "[0:00] trial 2/4 freeze=2 lr=0.001 clip=none init=he  started\n"
        "[1:05] trial 1/4 freeze=1 lr=0.001 clip=none init=he  "
        "epoch 1/3  val/top1 0.700  (best 0.700)\n"
        "[1:05] trial 2/4 freeze=2 lr=0.001 clip=none init=he  "
        "epoch 1/3  val/top1 0.600  (best 0.700)\n"
        "[1:05] trial 1/4 freeze=1 lr=0.001 clip=none init=he  pruned after epoch 1\n"
        "[1:05] trial 3/4 freeze=3 lr=0.001 clip=none init=he  started\n"
    )

    (tmp_path / "2").mkdir()
    rows = [
        {"epoch": 1, "global_step": 4, "val/top1": 0.6, "ingest/images_per_s": 40.2},
        {"epoch": 2, "global_step": 6},
    ]
    (tmp_path / "2/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # 3 trials of 65 s, less 65 s and 10 s that two of them have trained, two at a time.
    assert lines(display) == [
        "Sweep 1 of 4 trials 1:15 about 60 s left",
        "Best val/top1 0.700 after epoch 1/3 of trial 1: freeze=1 lr=0.001 clip=none init=he",
        "trial 2 freeze=2 lr=0.001 clip=none init=he epoch 2/3 step 6/12 40 images/s "
        "val/top1 0.600",
        "trial 3 freeze=3 lr=0.001 clip=none init=he starting",
    ]
    assert all(len(line) <= 60 for line in lines(display, width=60))


def test_failures_are_told_where_it_is_quiet(
    display: SweepDisplay,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(terminal.QUIET_VAR, "1")
    start(display, 1, tmp_path / "1")
    start(display, 2, tmp_path / "2")
    display.end("id1", "finished")
    display.end("id2", "failed: RuntimeError: broken, see error.txt", failed=True)
    assert capsys.readouterr().out == (
        "[0:00] trial 2/4 freeze=2 lr=0.001 clip=none init=he  "
        "failed: RuntimeError: broken, see error.txt\n"
    )


def test_rows_that_cannot_be_read_now_do_not_end_the_block(
    display: SweepDisplay, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/metrics.jsonl").write_text('{"epoch": 1, "glo')
    start(display, 1, tmp_path / "1")
    assert lines(display)[1].endswith("starting")


def test_a_thousand_trials_at_a_time_have_twenty_lines_and_reads(
    display: SweepDisplay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1000):
        start(display, number, tmp_path / str(number))
    read: list[str] = []

    def count(uri: str) -> int:
        read.append(uri)
        raise FileNotFoundError(uri)

    monkeypatch.setattr(storage, "size_of", count)
    drawn = lines(display)

    assert len(read) == module.MAX_SHOWN
    assert len(drawn) == 1 + module.MAX_SHOWN + 1
    assert drawn[-1] == "and 980 more"


def test_a_reason_is_the_users_sentence_without_its_class(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    file.write_text("Traceback\n  ...\ncluster.io.errors.UserError: gradients are not finite\n\n")
    assert progress._last_line(str(file)) == "gradients are not finite"
    file.write_text("Traceback\nRuntimeError: CUDA out of memory\n")
    assert progress._last_line(str(file)) == "RuntimeError: CUDA out of memory"
    assert progress._last_line(None) == "no traceback was kept"


@pytest.mark.parametrize(
    ("states", "code"), [(["failed", "failed"], 1), (["failed", "pruned"], None)]
)
def test_a_sweep_whose_trials_all_failed_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, states: list[str], code: int | None
) -> None:
    answer = {"trials": [{"state": state} for state in states]}
    monkeypatch.setattr(run, "tune_sweep", lambda config: answer)
    config = TuningConfig(base=FinetuneConfig(data=""))
    try:
        found = run_sweep(config)
    except SystemExit as end:
        found = end.code
    assert found == code
