"""What a training finds out before it starts is found out once."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from cluster.io import storage
from datasets.sources import MemorySource
from tests.support.small import small_training
from tests.support.training import train_here
from trainers import prepare
from trainers.config import ClusterConfig, FinetuneConfig, ModelConfig, TrackConfig
from trainers.prepare import prepare_run
from trainers.run import checkpoint

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
    config: FinetuneConfig, calls: Counter[str]
) -> None:
    from trainers.commands import run_training

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


def test_a_run_reaches_workers_as_it_is(config: FinetuneConfig) -> None:
    """Its images in memory included."""
    run = prepare_run(config, here=True)
    assert isinstance(run.source("train"), MemorySource)

    assert ray.get(ray.put(run)) == run
