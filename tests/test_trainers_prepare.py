"""What a training finds out before it starts is found out once."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from cluster.io import storage
from cluster.runtime import Resources
from cluster.scaling import plan_workers
from datasets.manifest import Manifest, Split
from datasets.sources import MemorySource
from tests.support.small import small_training
from tests.support.training import train_here
from trainers import commands, launch, metrics, prepare
from trainers.config import (
    AUTO,
    ClusterConfig,
    FinetuneConfig,
    ModelConfig,
    ScheduleConfig,
    TrackConfig,
)
from trainers.evaluation import calibrate
from trainers.prepare import SharedImages, plan_ingest, plan_training, prepare_run
from trainers.resume import describe_changes
from trainers.run import checkpoint
from trainers.run.folder import read_config, write_config
from trainers.run.rows import epoch_rows

pytestmark = pytest.mark.ray


@pytest.fixture
def config(ray_cluster: str, easy_data: str, tmp_path: Path) -> FinetuneConfig:
    return small_training(
        easy_data,
        str(tmp_path / "run"),
        epochs=2,
        model=ModelConfig(backbone="lenet5", init="he"),
        track=TrackConfig(wandb="off"),  # its picture of the data set reads the manifest again
        cluster=ClusterConfig(num_workers=0, address=ray_cluster),
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was read, by its name, each content hashed, and the ingest planned."""
    counted: Counter[str] = Counter()

    def read_bytes(uri: str, **options: int) -> bytes:
        counted[uri.rsplit("/", 1)[-1]] += 1
        return read(uri, **options)

    def sha256(content: bytes) -> object:
        digest = hashlib.sha256(content)
        counted[digest.hexdigest()] += 1
        return digest

    def choose_ingest(*arguments, **options):
        counted["ingest"] += 1
        return choose(*arguments, **options)

    read, choose = storage.read_bytes, prepare.choose_ingest
    monkeypatch.setattr(storage, "read_bytes", read_bytes)
    monkeypatch.setattr(prepare, "choose_ingest", choose_ingest)
    monkeypatch.setattr(checkpoint, "hashlib", SimpleNamespace(sha256=sha256))
    return counted


def test_the_command_reads_manifest_and_checkpoint_once_and_plans_ingest_once(
    config: FinetuneConfig, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrating afterwards, which reads the best checkpoint, is left out."""
    from trainers.commands import run_training

    monkeypatch.setattr(calibrate, "calibrate", lambda run, manifest, **_: "")
    run_training(replace(config, epochs=1))
    assert (calls["manifest.json"], calls["ingest"]) == (1, 1)
    assert calls["model.safetensors"] == 0

    latest = checkpoint.latest_progress(config.out)
    assert latest is not None
    calls.clear()
    run_training(config)
    assert (calls["manifest.json"], calls["ingest"]) == (1, 1)
    for name, facts in latest.files.items():
        assert (calls[name], calls[str(facts["sha256"])]) == (1, 1), name


def test_a_run_says_what_it_found(config: FinetuneConfig) -> None:
    new = prepare_run(replace(config, epochs=1), here=True)
    assert (new.resume, new.result, new.workers.num_workers) == (None, None, 0)
    assert not Path(config.out).exists(), "preparing writes nothing"
    train_here(replace(config, epochs=1))

    longer = prepare_run(config, here=True)
    assert longer.resume is not None and longer.resume.epoch == 1 and longer.result is None
    assert prepare_run(replace(config, epochs=1), here=True).result is not None


def test_a_run_is_extended_with_the_warm_up_it_has(config: FinetuneConfig) -> None:
    schedule = ScheduleConfig(warmup_epochs=AUTO)
    config = replace(config, schedule=schedule)
    write_config(prepare_run(replace(config, epochs=1), here=True).config)

    assert prepare_run(config, here=True).config.schedule.warmup_epochs == 0.5
    longer = replace(config, out=f"{config.out}-2", epochs=4)
    write_config(prepare_run(longer, here=True).config)
    with pytest.raises(ValueError, match=r"epochs is 1: .*warmup_epochs 1(\.0)?; use more epochs"):
        prepare_run(replace(longer, epochs=1), here=True)


def test_a_finished_run_keeps_the_config_it_was_trained_with(config: FinetuneConfig) -> None:
    train_here(config)
    shorter = prepare_run(replace(config, epochs=1), here=True)
    assert list(describe_changes(shorter)) == ["epochs is 1: not used, the run has ended with 2"]

    assert launch.fit_in_process(shorter)["epochs"] == 2
    assert read_config(config.out).epochs == 2
    assert commands._trained_config(shorter).epochs == 2, "which W&B shows"


def test_workers_that_have_one_image_each_are_refused_before_they_start(
    config: FinetuneConfig,
) -> None:
    model = ModelConfig(backbone="mobilenet_v2", init="he")
    config = replace(config, model=model, global_batch_size=8, cluster=ClusterConfig())
    nodes = Resources(num_nodes=8, num_cpus=16.0, num_gpus=0, memory_gib=32, object_store_gib=8)
    message = r"global_batch_size is 8: .* parts of one image \(cluster.num_workers 8"
    with pytest.raises(ValueError, match=message):
        prepare_run(config, nodes)


@pytest.mark.parametrize(("cpus", "num_workers"), [(1, 0), (2, 2)])
def test_gpus_without_a_cpu_are_named(
    config: FinetuneConfig, cpus: int, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, cluster=ClusterConfig())
    node = Resources(
        num_nodes=1, num_cpus=cpus, num_gpus=4, memory_gib=8, object_store_gib=2, started_here=True
    )
    assert plan_training(config, node).num_workers == num_workers
    assert f"{4 - cpus} of 4 GPUs are idle" in caplog.text


def test_a_run_reaches_workers_as_it_is(config: FinetuneConfig) -> None:
    """Its images in memory included."""
    run = prepare_run(config, here=True)
    assert isinstance(run.source("train"), MemorySource)

    assert ray.get(ray.put(run)) == run


def test_trainings_that_share_images_decode_them_once(
    config: FinetuneConfig, write_data: Callable[..., str]
) -> None:
    data = write_data()  # of its own, to be deleted
    first = prepare_run(replace(config, data=data), here=True, lends_images=True)
    images = SharedImages(memory=first.memory, ingest=first.ingest)
    second = prepare_run(
        replace(config, data=data, out=f"{config.out}-2"), here=True, images=images
    )
    launch.fit_in_process(first)
    for split in ("train", "val"):
        shutil.rmtree(f"{data}/{split}")

    launch.fit_in_process(second)

    losses = [
        [(row[metrics.TRAIN_LOSS], row[metrics.VAL_LOSS]) for row in epoch_rows(run.config.out)]
        for run in (first, second)
    ]
    assert len(losses[0]) == 2 and losses[0] == losses[1]


@pytest.mark.parametrize(("num_trainings", "remember"), [(1, False), (8, True)])
def test_a_sweep_has_one_budget_for_the_one_copy_of_its_images(
    num_trainings: int, remember: bool
) -> None:
    """Not one for each of its trials, or for each of those at a time."""
    split = Split(shards=(), class_counts=(10_000,), num_pixels=10_000 * 256**2)
    manifest = Manifest(
        classes=("one",),
        splits={"train": split, "val": split},
        num_quarantined=0,
        fingerprint="",
        options={"short_side_px": 256},
    )
    resources = Resources(
        num_nodes=1, num_cpus=8, num_gpus=0, memory_gib=64, object_store_gib=4.0 / 0.3
    )
    workers = plan_workers(resources, ClusterConfig(num_workers=1), num_concurrent=4)

    found, why = plan_ingest(
        FinetuneConfig(data="", epochs=1),
        manifest,
        resources,
        workers,
        num_concurrent=4,
        num_trainings=num_trainings,
    )

    assert found == remember
    if remember:
        assert why == (
            "memory: 3.66 GiB decoded, 4.00 GiB to keep them in, one copy for 8 trainings"
        )
