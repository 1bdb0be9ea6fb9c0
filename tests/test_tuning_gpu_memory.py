"""Trials that share a GPU: how many fit, and what each of them reserves."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from cluster.config import ClusterConfig
from cluster.runtime import Resources
from cluster.scaling import in_process, max_concurrent_trials, plan_workers
from datasets.manifest_file import read_manifest
from tests.conftest import ROOT
from tests.test_tuning_estimate import config as config  # a fixture
from tests.test_tuning_estimate import keys_of, plan_of
from trainers.heads.grouping import GPU_BYTES
from trainers.launch import worker_here
from trainers.prepare import PrefixFeatures
from tuning import run, sweep_plan
from tuning.axes.axis import FREEZE_DEPTH, Axis
from tuning.budget import gpu_memory
from tuning.budget.gpu_memory import GpuMemory
from tuning.config import TuningConfig
from tuning.shared import Shared
from tuning.sharing.plan import SharingPlan
from tuning.sharing.prefixes import BuiltPrefixes, PrefixStore
from tuning.space import point_of, points
from tuning.sweep_plan import SweepPlan, count_concurrent, share_gpus
from tuning.trial import build_trial

GIB = 2**30
FOUR_GPUS = Resources(num_nodes=1, num_cpus=32, num_gpus=4, memory_gib=64, object_store_gib=16)


@pytest.mark.parametrize(
    ("used_gib", "expected"),
    [(1.0, 72), (36.0, 2), (36.4, 1), (80.0, 1), (90.0, 1)],
)
def test_as_many_trials_fit_as_leave_a_tenth_more_to_each(
    config: TuningConfig, used_gib: float, expected: int
) -> None:
    head, _ = keys_of(config)
    memory = GpuMemory(used_bytes={head: used_gib * GIB}, total_bytes=80 * GIB)
    assert memory.count_trials(head) == expected


@pytest.mark.parametrize(
    ("side_by_side", "gpus"), [(1, 1.0), (4, 1.0), (5, 0.5), (8, 0.5), (12, 0.3333), (32, 0.125)]
)
def test_a_trial_reserves_a_fraction_that_ray_can_add_up(side_by_side: int, gpus: float) -> None:
    alone = in_process(ClusterConfig())
    plan = plan_workers(FOUR_GPUS, alone, num_concurrent=side_by_side)
    assert plan.gpus_per_worker == gpus
    assert side_by_side * plan.gpus_per_worker <= 4
    assert side_by_side * plan.cpus_per_worker <= 16, "the other half is left to readers"


def test_ranks_have_whole_gpus() -> None:
    assert plan_workers(FOUR_GPUS, ClusterConfig(num_workers=2)).gpus_per_worker == 1
    with pytest.raises(ValueError, match=r"cluster\.num_workers is 2 .* 4 GPUs"):
        plan_workers(FOUR_GPUS, ClusterConfig(num_workers=2), num_concurrent=3)
    assert plan_workers(replace(FOUR_GPUS, num_gpus=0), ClusterConfig()).gpus_per_worker == 0


def grid(config: TuningConfig, num_rates: int) -> TuningConfig:
    """Half of its trials train the head, half of them the whole network."""
    rates = tuple(1e-3 * (number + 1) for number in range(num_rates))
    base = replace(config.base, cluster=in_process(config.base.cluster))
    return replace(config, base=base, space=replace(config.space, learning_rates=rates))


def test_each_network_has_its_fraction(
    config: TuningConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = grid(config, 20)
    head, whole = keys_of(config)
    memory = GpuMemory(used_bytes={head: 9 * GIB, whole: 30 * GIB}, total_bytes=80 * GIB)
    monkeypatch.setattr(sweep_plan, "measure_gpu_memory", lambda *_: memory)
    manifest, sharing = read_manifest(config.base.data), plan_of(config)
    fractions, line = share_gpus(config, manifest, FOUR_GPUS, sharing, 40)
    assert fractions == {head: 32, whole: 8}
    assert line == "fractional GPUs: 2 to 8 trials on each; steps take 9.0 to 30.0 of 80.0 GiB"

    plan = SweepPlan(
        config=config,
        manifest=manifest,
        resources=FOUR_GPUS,
        num_trials=40,
        num_concurrent=32,
        fractions=fractions,
    )
    trainable = build_trial(plan, Shared(manifest=manifest))
    for point in points(config.space, "grid", None, 0):
        bundle = trainable._resources({"point": point}).required_resources  # pyright: ignore
        is_head = point_of({"point": point})["model.freeze_depth"] == "all"
        assert bundle["GPU"] == (0.125 if is_head else 0.5)
        assert bundle["CPU"] == (0.5 if is_head else 1.0)


@pytest.mark.parametrize(
    ("change", "num_trials", "expected"),
    [
        ({}, 4, None),
        ({"fractional_gpus": False}, 40, "a GPU for each trial (--no-fractional-gpus)"),
        ({"num_workers": 2}, 40, "whole GPUs, as some trials have DDP workers"),
        ({"device": "cpu"}, 40, None),
    ],
)
def test_nothing_is_measured_where_no_gpu_is_shared(
    config: TuningConfig, change: dict, num_trials: int, expected: str | None
) -> None:
    config = grid(config, 20)
    if "fractional_gpus" in change:
        config = replace(config, **change)
    else:
        cluster = replace(config.base.cluster, **change)
        config = replace(config, base=replace(config.base, cluster=cluster))
    manifest = read_manifest(config.base.data)
    found = share_gpus(config, manifest, FOUR_GPUS, SharingPlan(), num_trials)
    assert found == ({}, expected)


def test_a_range_of_freeze_depths_has_trials_that_train_stages(
    config: TuningConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a base that trains the head only, as that of `transfer`."""
    (head, _), sharing = keys_of(config), plan_of(config)
    base, axes = config.base, (Axis(field=FREEZE_DEPTH, range=(0, 3)),)
    cluster, model = replace(base.cluster, num_workers=2), replace(base.model, freeze_depth="all")
    base = replace(base, cluster=cluster, model=model)
    space = replace(config.space, axes=axes)
    config = replace(config, base=base, space=space, search="random", share=False)
    manifest = read_manifest(base.data)

    found = share_gpus(config, manifest, FOUR_GPUS, sharing, 40)
    assert found == ({}, "whole GPUs, as some trials have DDP workers")
    no_gpu = replace(FOUR_GPUS, num_gpus=0)
    of_workers = max_concurrent_trials(no_gpu, cluster)
    assert count_concurrent(config, no_gpu, sharing) == of_workers < 32
    monkeypatch.setattr(run, "start_runner", lambda: "runner")
    plan = SweepPlan(
        config=config, manifest=manifest, resources=no_gpu, num_trials=9, num_concurrent=2
    )
    features = {head: PrefixFeatures(depth=head[1], sources={}, tensors="")}
    built = BuiltPrefixes(prefixes=features, num_images=0, seconds=0.0, problems=())
    shared = run._share(plan, cast(PrefixStore, None), built)
    assert shared.runner == "runner" and shared.images is not None


def test_steps_of_each_network_are_measured_once(config: TuningConfig, one_thread: None) -> None:
    """What is used once their steps were taken; a batch of heads may fill all it is allowed to."""
    used_gib = iter(range(1, 9))

    def read() -> tuple[float, float]:
        used = next(used_gib)
        return (80 - used) * GIB, 80 * GIB

    manifest = read_manifest(config.base.data)
    memory = gpu_memory._measure(config, manifest, plan_of(config), read, 1, True)
    head, whole = keys_of(config)
    assert memory.used_bytes == {head: GIB + GPU_BYTES, whole: 2 * GIB}
    assert memory.total_bytes == 80 * GIB


def test_a_trial_takes_no_more_memory_than_its_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    alone = in_process(ClusterConfig())
    for side_by_side in (1, 8):
        plan = plan_workers(FOUR_GPUS, alone, num_concurrent=side_by_side)
        assert worker_here(alone, plan).device.type == "cuda"
    assert fractions == [0.5]


@pytest.mark.ray
@pytest.mark.extended
def test_a_sweep_on_logical_gpus(own_ray: dict[str, str], easy_data: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.programs.gpu_trials", easy_data,
         str(tmp_path / "sweep")],
        env={**os.environ, **own_ray}, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert run.returncode == 0, run.stderr[-3000:]
    assert "4 trials side by side" in run.stdout
