"""Nothing grows faster than the work: counts of rows, bytes, calls and tasks, never seconds."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.data._internal.cluster_autoscaler import base_autoscaling_coordinator as base
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator

from cluster.config import ClusterConfig
from cluster.runtime import Resources
from cluster.scaling import plan_workers
from datasets.config import IngestConfig
from datasets.epochs import Batch
from datasets.shards import Manifest, Split
from tests.bench.report import ROOT
from tests.bench.scale import DOC, PICTURE, fill
from tests.bench.scale_constants import exponent, read_constants
from tests.bench.scale_data import count_reads, paper_manifest, paper_plan
from tests.bench.scale_model import Keeping, Scale, Step, first_size
from trainers.config import FinetuneConfig, TrackConfig
from trainers.feed import MAX_NAMES, Feed, WorkerContext
from trainers.launch import plan_ingest
from trainers.networks.backbones import on_meta
from tuning import progress, states
from tuning.config import SpaceConfig, TuningConfig
from tuning.progress import SweepProgress
from tuning.space import points
from tuning.states import FINISHED, RUNNING, TrialStates, read_trials
from tuning.sweep_display import SweepDisplay
from tuning.trial import Shared

MANIFEST = paper_manifest(500_123)


def test_the_tables_of_the_document_are_those_of_the_recorded_constants() -> None:
    text = DOC.read_text()

    assert fill(text, Scale()) == text, "run `python -m tests.bench.scale --write`"
    assert PICTURE.stat().st_size > 10_000
    assert fill(text, Scale(gpus=64)) != text


def test_a_step_is_that_of_the_formulas() -> None:
    """1.5 M parameters, two of four parts of the network frozen, two nodes of two GPUs."""
    scale = Scale(
        gpus=4, gpus_per_node=2, worker_batch_size=10, gpu_images_per_s=100, network_gbps=0.08,
        nvlink_gbps=0.48, hop_us=1000,
    )  # fmt: skip
    constants = {
        "network": {
            "forward_flops": 4.0,
            "frozen_flops": [0.0, 2.0],
            "trained_parameters": [3_000_000, 1_500_000],
        }
    }
    step = Step(scale, constants, 1)

    assert step.gradient_bytes == 6e6
    assert step.compute_s == pytest.approx(0.1 * (2 + 3 * 2) / 12)
    assert step.backward_s == pytest.approx(0.1 * 2 * 2 / 12)
    assert step.wire_bytes == 6e6  # 2 (n - 1) / n of two nodes
    # 0.1 s inside a node, 0.6 s across, one bucket's two hops of 1 ms
    assert step.all_reduce_s == pytest.approx(0.1 + 0.6 + 0.002)
    assert step.exposed_s == pytest.approx(0.702)  # one bucket: nothing hides it
    assert step.images_per_s == pytest.approx(40 / (0.2 / 3 + 0.702))
    assert Step(replace(scale, gpus=1), constants, 1).share == 0


def test_the_first_size_that_breaks_is_found() -> None:
    assert [first_size(lambda n, at=at: n >= at) for at in (1, 2, 49, 1000)] == [1, 2, 49, 1000]
    assert first_size(lambda n: False) == float("inf")


def test_young_balances_checkpoints_and_failures() -> None:
    constants = {"checkpoint": {"bytes": [9e7], "serialize_s": [2.0]}, "rows": {"row_bytes": 1000}}
    scale = Scale(gpus=10, gpu_hours_per_failure=10, checkpoint_every_steps=100, epochs=1)
    keeping = Keeping(scale, constants, step_s=0.1)

    assert keeping.best_interval_s == pytest.approx((2 * 2 * 3600) ** 0.5)
    assert keeping.best_interval_steps == 1200
    assert keeping.overhead == pytest.approx(0.2)
    # Rewritten for every row, the bytes are the square of the rows.
    more = Keeping(replace(scale, epochs=10), constants, step_s=0.1)
    assert more.rewritten_bytes / keeping.rewritten_bytes == pytest.approx(100, rel=0.01)


def test_recorded_parameters_are_those_of_the_network() -> None:
    parameters = sum(p.numel() for p in on_meta("resnet50", 196).parameters())

    assert read_constants()["network"]["trained_parameters"][0] == parameters


def test_an_exponent_tells_growth() -> None:
    assert exponent([1, 8, 64], [3.0, 24.0, 192.0]) == pytest.approx(1)
    assert exponent([1, 8, 64], [3.0, 3.0, 3.0]) == pytest.approx(0)
    assert exponent([1, 8, 64], [1.0, 64.0, 4096.0]) == pytest.approx(2)


def test_the_plan_of_a_rank_has_as_many_tasks_among_64_as_alone() -> None:
    tasks, images = [], []
    for world_size in (1, 8, 64):
        plan = paper_plan(
            paper_manifest(51_200 * world_size),
            rank=world_size - 1,
            world_size=world_size,
            worker_batch_size=32,
        )
        chunks = list(plan.chunks())
        tasks.append(len(chunks))
        images.append(sum(chunk.num_images for chunk in chunks))

    assert len(set(tasks)) == 1
    assert images == [51_200] * 3


@pytest.mark.parametrize("world_size", [64, 1000])
def test_a_lane_for_each_worker_reads_an_image_about_once(world_size: int) -> None:
    manifest = paper_manifest(2_012_345)
    lanes = {
        interleave: count_reads(
            manifest, world_size=world_size, worker_batch_size=32, interleave=interleave
        )
        for interleave in (8, world_size)
    }

    assert lanes[8] > 2
    assert lanes[world_size] < 1.35


@pytest.mark.parametrize(("num_workers", "hint"), [(8, False), (64, True)])
def test_workers_that_share_lanes_are_told_how_to_read_less(num_workers: int, hint: bool) -> None:
    config = FinetuneConfig(data="", ingest=IngestConfig(ingest="stream"), global_batch_size=64)
    resources = Resources(
        num_nodes=8, num_cpus=768, num_gpus=64, memory_gib=1000, object_store_gib=800
    )
    both = replace(MANIFEST, splits={"val": MANIFEST.split("train"), **MANIFEST.splits})
    plan = plan_workers(resources, ClusterConfig(num_workers=num_workers))
    _, why = plan_ingest(config, both, resources, plan)

    assert ("less is read with --interleave 64" in why) == hint


@pytest.mark.slow
def test_more_ranks_reduce_and_report_no_more() -> None:
    """Forked ranks with the loop's own code, in a process of their own: threads hinder forking."""
    output = subprocess.run(
        [sys.executable, "-m", "tests.bench.scale_ranks", "2", "6"],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
    two, six = map(json.loads, output.splitlines())

    for name in ("all_reduces", "rows", "files"):
        assert two[name] == six[name] > 0, name
    # Beside the answers to validation images, 12 bytes each and 4 images a rank, in each epoch.
    answers = [2 * 12 * 4 * ranks for ranks in (2, 6)]
    assert two["all_reduced_bytes"] - answers[0] == six["all_reduced_bytes"] - answers[1] > 0
    assert six["row_bytes"] == pytest.approx(two["row_bytes"], rel=0.05)


def test_lost_images_are_named_twenty_times_at_most() -> None:
    """One percent of 100 million, which is allowed, would be 100 MB in every checkpoint."""

    def batches() -> Iterator[Batch]:
        for number in range(100):
            unreadable = [f"image {number} {place}" for place in range(8)]
            yield Batch(
                image=np.zeros((8, 2, 2, 3), np.uint8),
                label=np.full(8, -1),
                image_id=np.zeros(8, np.int64),
                unreadable=unreadable,
            )

    plan = paper_plan(MANIFEST, rank=0, world_size=1, worker_batch_size=8)
    place = WorkerContext(device=torch.device("cpu"), threads=1, reader_cpus=1)
    feed = Feed("train", plan, batches(), place)  # pyright: ignore
    for _ in range(100):
        feed.next()

    names = feed.take_unreadable()
    assert len(names) == MAX_NAMES and names[0] == "image 0 0"
    assert feed.take_unreadable() == []


class CountedTrial(SimpleNamespace):
    """What the driver's callbacks look at of a trial of Tune's."""

    asked = 0

    def is_finished(self) -> bool:
        CountedTrial.asked += 1
        return False


def test_a_trial_costs_the_driver_the_same_among_a_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountedTrial, "asked", 0)
    config = TuningConfig(
        base=FinetuneConfig(data="", epochs=1, track=TrackConfig(wandb="off")), out=str(tmp_path)
    )
    train = Split(shards=(), class_counts=(20, 20), num_pixels=0)
    manifest = Manifest(
        classes=("a", "b"), splits={"train": train}, num_quarantined=0, fingerprint="", options={}
    )
    display = SweepDisplay(config, manifest, num_trials=1000, num_concurrent=8)
    driver = SweepProgress(config, Shared(), display, TrialStates(config.out, num_trials=1000))
    told: list[int] = []
    monkeypatch.setattr(display, "start", lambda *a, num_ended, **k: told.append(num_ended))
    monkeypatch.setattr(display, "end", lambda *a, **k: None)
    monkeypatch.setattr(progress, "read_origin", lambda run: None)
    point = {"model.freeze_depth": 0, "optim.learning_rate": 1e-3, "optim.clipnorm": None,
             "model.init": "he"}  # fmt: skip
    trials: list[Any] = [
        CountedTrial(trial_id=f"t{n}", config=point, last_result={"epoch": 1}) for n in range(1000)
    ]
    for trial in trials:
        driver.on_trial_start(0, trials, trial)
        driver.on_trial_complete(0, trials, trial)

    assert CountedTrial.asked == 1000  # once each, not once for every start
    assert told == [*range(1000)]


def test_trials_json_is_written_for_a_tenth_of_the_time_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now_s=0.0)
    clock.monotonic = lambda: clock.now_s
    sizes: list[int] = []
    write = states.storage.write_bytes

    def write_slowly(uri: str, content: bytes) -> None:
        sizes.append(len(content))
        clock.now_s += len(content) / 20_000  # bytes a second
        write(uri, content)

    monkeypatch.setattr(states, "time", clock)
    monkeypatch.setattr(states.storage, "write_bytes", write_slowly)
    kept = TrialStates(str(tmp_path), num_trials=300)
    point = points(SpaceConfig(), "grid", None, 0)[0]
    for number in range(300):
        for state in (RUNNING, FINISHED):
            kept.note(f"t{number}", point=point, state=state)
            clock.now_s += 0.5
            kept.flush()
    assert sum(sizes) / 20_000 < 0.15 * clock.now_s
    assert len(sizes) < 100  # of 600 changes

    kept.end()
    known = read_trials(str(tmp_path))
    assert known is not None and len(known.trials) == 300


@pytest.mark.parametrize(("workers", "cpus"), [(8, 6.0), (64, 0.0)])
def test_ray_data_gives_no_cpu_to_more_streams_than_a_node_has(workers: int, cpus: float) -> None:
    """Why `datasets/share.py` is there: once this fails, it may go."""
    nodes = [
        {"Alive": True, "NodeID": f"n{number}", "Resources": {"CPU": 96.0, "memory": 1e12}}
        for number in range(workers // 8)
    ]
    actor = coordinator._AutoscalingCoordinatorActor(
        send_resources_request=lambda *a, **k: None, get_cluster_nodes=lambda: nodes
    )
    for stream in range(2 * workers):
        actor.request_resources(f"data-{stream}", [], 180.0, base.STANDARD_RESOURCE_TYPES)

    reserved = actor.get_reserved_resources("data-0")
    assert sum(node.get("CPU", 0.0) for node in reserved.values()) == cpus
