"""The artifacts of moved runs, and of names that W&B does not take."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
import wandb

from cluster.io import storage
from datasets.manifest_file import read_manifest
from tests.support.small import small_training
from tests.support.wandb.files import inspect
from tests.support.wandb.records import ORGANIZATION
from tests.support.wandb.server import WandbServer, serving
from trainers.config import FinetuneConfig, ModelConfig, TrackConfig
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.evaluations import predictions_uri
from trainers.tracking.artifacts import clean_name, data_artifact
from trainers.tracking.evaluation import track_evaluation
from trainers.tracking.registry import link_model


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with serving(monkeypatch) as server:
        yield server


def write_moved(data: str, folder: Path, mode: str) -> FinetuneConfig:
    """Write a trained run in `folder`/good that was trained as `folder`/latest; return its config
    of today."""
    track = TrackConfig(wandb=mode, project="t")  # pyright: ignore[reportArgumentType]
    trained = small_training(
        data, str(folder / "latest"), track=track, model=ModelConfig(backbone="lenet5", init="he")
    )
    config = replace(trained, out=str(folder / "good"))
    storage.write_bytes(f"{config.out}/config.json", json.dumps(trained.to_dict()).encode())
    storage.write_bytes(f"{config.out}/wandb_id", b"id-of-good")
    weights = safetensors.torch.save({"weight": torch.zeros(1)})
    progress = TrainingProgress(
        epoch=1, global_step=10, best_epoch=1, best_step=10, fingerprint="f"
    )
    checkpoint.save(config.out, {checkpoint.MODEL: weights}, progress)
    return config


def test_an_evaluation_names_the_checkpoint_of_a_moved_run(easy_data: str, tmp_path: Path) -> None:
    run = write_moved(easy_data, tmp_path, "offline").out
    folder = f"{run}/evaluation_val"
    names = pa.array(["a", "b"]).dictionary_encode()
    columns = {"row": np.arange(2, dtype=np.int32), "label": names, "predicted": names}
    storage.write_parquet(predictions_uri(folder), pa.table(columns | {"confidence": [0.5, 0.5]}))
    lists = {"most_confused": [], "per_class": [], "reliability": []}
    facts = {"split": "val", "data": easy_data, "tta": False, "epoch": 1, "val/top1": 1.0}
    facts["fingerprint"] = read_manifest(easy_data).fingerprint
    storage.write_bytes(f"{folder}.json", json.dumps(facts | lists).encode())

    assert track_evaluation(run, folder, facts | lists) is not None
    (session,) = Path(folder, "wandb").glob("offline-run-*")
    records = [json.loads(line) for line in inspect(session).splitlines()]
    artifacts = {r["artifact"]["type"]: r["artifact"] for r in records if "artifact" in r}
    assert artifacts["model"]["name"] == "checkpoint-id-of-good"
    assert json.loads(artifacts["model"]["metadata"])["uri"].startswith(f"{run}/checkpoints/")
    assert {"dataset", "model", "evaluation"} < set(artifacts)
    assert not (tmp_path / "latest").exists()


def test_a_moved_run_of_data_with_an_accent_is_registered(
    server: WandbServer, easy_data: str, tmp_path: Path
) -> None:
    data = str(shutil.copytree(easy_data, tmp_path / "voitures_été"))
    config = write_moved(data, tmp_path, "online")
    exported = tmp_path / "exported"
    storage.write_bytes(f"{exported}/model.onnx", b"onnx")

    assert link_model(
        str(tmp_path / "promoted"),
        str(exported),
        config.out,
        collection="véhicules",
        alias="candidate",
        metadata={},
    )
    assert [*server.records.collections] == [f"{ORGANIZATION}/wandb-registry-model/véhicules"]
    (run,) = server.runs.values()
    inputs = {artifact.type: artifact for artifact in run.inputs}
    assert inputs["dataset"].metadata["fingerprint"] == read_manifest(data).fingerprint
    assert inputs["model"].metadata["uri"].startswith(f"{config.out}/checkpoints/")
    assert not (tmp_path / "latest").exists()


@pytest.mark.parametrize("bucket", ["s3://cars", "gs://cars", "hf://datasets/me/cars"])
def test_a_file_in_a_bucket_is_referred_to_without_the_library_of_its_cloud(
    bucket: str, easy_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("boto3", "google.cloud.storage"):
        monkeypatch.setitem(sys.modules, library, None)

    entries = data_artifact(f"{bucket}/196", read_manifest(easy_data)).manifest.entries
    assert entries["manifest.json"].ref == f"{bucket}/196/manifest.json"


@pytest.mark.parametrize(
    "name", ["voitures_été", "汽车", "卡车", "my cars", "a/b", "x" * 200, "-", "é" * 200, "\udcff"]
)
def test_a_name_that_wandb_refuses_becomes_another(name: str) -> None:
    assert wandb.Artifact(clean_name(name), type="dataset").name == clean_name(name)


def test_names_stay_apart_and_valid_ones_as_they_are() -> None:
    assert clean_name("汽车") != clean_name("卡车")
    assert clean_name("a b") != clean_name("a-b") == "a-b"
    assert clean_name("x" * 120) == "x" * 120 != clean_name("x" * 121)[:120]
