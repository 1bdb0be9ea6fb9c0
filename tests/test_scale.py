"""Cost grows no faster than the work: counts of rows, bytes, calls and tasks, never seconds."""

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
from datasets.manifest import Manifest, Split
from tests.conftest import ROOT
from tests.support.paper_plans import count_reads, paper_manifest, paper_plan
from trainers.config import FinetuneConfig, TrackConfig
from trainers.feed import MAX_NAMES, Feed
from trainers.prepare import plan_ingest
from trainers.worker import WorkerContext
from tuning.config import SpaceConfig, TuningConfig
from tuning.progress import progress
from tuning.progress.display import SweepDisplay
from tuning.progress.progress import SweepProgress
from tuning.record import states
from tuning.record.results import FINISHED, RUNNING
from tuning.record.states import TrialStates, read_trials
from tuning.shared import Shared
from tuning.space import points

MANIFEST = paper_manifest(500_123)


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
def test_a_hint_says_how_workers_that_share_lanes_can_read_less(
    num_workers: int, hint: bool
) -> None:
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
        [sys.executable, "-m", "tests.support.programs.forked_ranks", "2", "6"],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=500,
    ).stdout  # fmt: skip
    two, six = map(json.loads, output.splitlines())

    for name in ("all_reduces", "rows", "files"):
        assert two[name] == six[name] > 0, name
    # Plus the predictions of validation images: 20 bytes each, 4 images a rank, every epoch.
    predictions = [2 * 20 * 4 * ranks for ranks in (2, 6)]
    assert (
        two["all_reduced_bytes"] - predictions[0] == six["all_reduced_bytes"] - predictions[1] > 0
    )
    assert six["row_bytes"] == pytest.approx(two["row_bytes"], rel=0.05)


def test_at_most_twenty_unreadable_images_are_named() -> None:
    """One percent of 100 million, which is allowed, would be 100 MB in every checkpoint."""

    def batches() -> Iterator[Batch]:
        for number in range(100):
            unreadable = [f"image {number} {index}" for index in range(8)]
            yield Batch(
                image=np.zeros((8, 2, 2, 3), np.uint8),
                label=np.full(8, -1),
                image_id=np.zeros(8, np.int64),
                unreadable=unreadable,
            )

    plan = paper_plan(MANIFEST, rank=0, world_size=1, worker_batch_size=8)
    worker = WorkerContext(device=torch.device("cpu"), threads=1)
    feed = Feed("train", plan, batches(), worker)  # pyright: ignore
    for _ in range(100):
        feed.next()

    names = feed.take_unreadable()
    assert len(names) == MAX_NAMES and names[0] == "image 0 0"
    assert feed.take_unreadable() == []


class CountedTrial(SimpleNamespace):
    """The fields of a Tune trial that the driver's callbacks read."""

    num_calls = 0

    def is_finished(self) -> bool:
        CountedTrial.num_calls += 1
        return False


def test_a_trial_costs_the_driver_the_same_among_a_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountedTrial, "num_calls", 0)
    config = TuningConfig(
        base=FinetuneConfig(data="", epochs=1, track=TrackConfig(wandb="off")), out=str(tmp_path)
    )
    train = Split(shards=(), class_counts=(20, 20), num_pixels=0)
    manifest = Manifest(
        classes=("a", "b"), splits={"train": train}, num_quarantined=0, fingerprint="", options={}
    )
    display = SweepDisplay(config, manifest, num_trials=1000, num_concurrent=8)
    shared = Shared(manifest=manifest)
    driver = SweepProgress(config, shared, display, TrialStates(config.out, num_trials=1000))
    num_ended_at_start: list[int] = []
    monkeypatch.setattr(
        display, "start", lambda *a, num_ended, **k: num_ended_at_start.append(num_ended)
    )
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

    assert CountedTrial.num_calls == 1000  # once each, not once for every start
    assert num_ended_at_start == [*range(1000)]


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
    """Why `datasets/ray_internals.py` is there: once this fails, it may go."""
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
