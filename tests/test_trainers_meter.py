"""How far a run is, from its rows."""

import io
import re
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from cluster import ray_internals
from cluster.io import terminal
from datasets.manifest import Manifest, Split
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.meter import Meter, describe_waits
from trainers.run import usage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now_s=0.0)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr(terminal, "time", clock)
    return clock


@pytest.fixture
def meter(clock: SimpleNamespace) -> Meter:
    """Of a run of 5 epochs of 20 steps of 10 images: 9 images are left over."""
    train = Split(shards=(), class_counts=(100, 109), num_pixels=0)
    manifest = Manifest(
        classes=("a", "b"), splits={"train": train}, num_quarantined=0, fingerprint="", options={}
    )
    return Meter(FinetuneConfig(data="", epochs=5, global_batch_size=10), manifest)


def row(epoch: int, step: int, **more: Any) -> dict[str, Any]:
    return {metrics.EPOCH: epoch, metrics.GLOBAL_STEP: step, **more}


def test_a_line_says_why_no_step_was_taken() -> None:
    times = {metrics.EPOCH_S: 9.0, metrics.TRAIN_S: 7.0, metrics.WAIT_S: 5.0, metrics.SAVE_S: 1.0}
    rows = [row(1, 10), row(1, 20, **times), row(2, 40, **times)]
    assert describe_waits(rows[:1]) is None
    assert describe_waits(rows) == (
        "50% waiting for images, 20% evaluation, 10% waiting for checkpoints of 20 s"
    )


def drawn(meter: Meter) -> str:
    """What it draws, without its bar."""
    file = io.StringIO()
    Console(file=file, width=100).print(meter.draw())
    return " ".join(re.sub("[━╸╺]", "", file.getvalue()).split())


def test_a_run_that_goes_on_is_timed_from_its_first_new_row(
    meter: Meter, clock: SimpleNamespace
) -> None:
    assert meter.describe() == ["starting", "", "", ""] and drawn(meter) == "starting"

    clock.now_s = 60  # workers start
    ended = {metrics.VAL_TOP1: 0.25, metrics.VAL_BEST_TOP1: 0.5}
    meter.update([row(1, 20, **ended), row(2, 30)])  # of the sitting before
    assert meter.describe() == ["epoch 2/5", "step 30/100", "", "val/top1 0.250"]
    assert drawn(meter) == "epoch 2/5 step 30/100 best 0.500"

    clock.now_s = 65
    meter.update([row(2, 35)])
    assert meter.describe()[2] == "10 images/s"  # 5 steps of 10 images in 5 s
    clock.now_s = 70
    assert drawn(meter) == "epoch 2/5 step 35/100 10 images/s 60 s left best 0.500"


def test_an_epoch_tells_its_own_rate(meter: Meter, clock: SimpleNamespace) -> None:
    meter.update([row(1, 20, **{metrics.IMAGES_PER_S: 211.6})])
    meter.update([])
    clock.now_s = 5
    meter.update([row(2, 25)])
    assert meter.describe() == ["epoch 2/5", "step 25/100", "212 images/s", ""]


def test_a_worker_says_what_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([[10.0, 50.0, 100.0], [30.0, 50.0, 300.0], [7.0, 8.0, 9.0]])
    monkeypatch.setattr(usage, "read_node_usage", lambda: next(samples, [0.0] * 3))
    monkeypatch.setattr(usage, "PERIOD_S", 1e9)
    with closing(usage.UsageMeter(1, torch.device("cpu"))) as meter:  # reads once
        meter._sample()
        assert meter.take() == {
            "system/cpu.cpu_percent": 30.0,
            "system/memory.memory_percent": 50.0,
            "system/proc.memory.rssMB": 300.0,
        }
        assert meter.take()["system/cpu.cpu_percent"] == 7.0, "an epoch shorter than the period"


def test_what_a_node_uses_is_read() -> None:
    ray_internals.read_node_usage()
    cpu, memory, rss_mb = ray_internals.read_node_usage()
    assert 0 <= cpu <= 100 and 0 < memory < 100 and 10 < rss_mb < 1e5
    assert ray_internals.open_gpu("GPU-none")() == [0.0] * 4
