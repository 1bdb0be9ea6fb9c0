"""Folders that an older state of this repository wrote are read, or refused in one sentence."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from cluster.io.errors import UserError
from cluster.runtime import Resources
from datasets.manifest_file import read_manifest
from tests.support.old_states import (
    CLASSES,
    STATES,
    sweep_options,
    training_options,
    unpack,
)
from tests.support.training import train_here
from trainers.__main__ import parse
from trainers.prepare import prepare_run
from trainers.run.folder import load_best_model, read_config, read_result
from trainers.run.rows import read_rows
from tuning.__main__ import parse as parse_sweep
from tuning.check import check
from tuning.record.record import SweepRecord
from tuning.record.verdict import judge
from tuning.sharing.cache import list_entries

NODE = Resources(num_nodes=1, num_cpus=2, num_gpus=0, memory_gib=4, object_store_gib=1)

VALUES = "--learning-rate 1e-3 --ema-decay None"
"""What the recipe `transfer` had then."""


@pytest.fixture(scope="module", params=STATES)
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of one state."""
    return unpack(request.param, tmp_path_factory.mktemp("old"))


def test_a_data_set_is_read(old: Path) -> None:
    manifest = read_manifest(f"{old}/data")

    assert sum(split.num_images for split in manifest.splits.values()) == 48
    assert manifest.classes == CLASSES


def test_a_finished_run_is_read_and_returned(old: Path) -> None:
    config, progress, model = load_best_model(f"{old}/finished")
    result, rows = read_result(f"{old}/finished"), read_rows(f"{old}/finished")

    assert config == read_config(f"{old}/finished") and config.model.backbone == "lenet5"
    assert progress.classes == CLASSES and rows[-1]["global_step"] == result["global_step"]
    assert Path(result["checkpoint"]).parent == old / "finished" / "checkpoints"
    weights = safetensors.torch.load_file(old / "lenet5.safetensors")
    changed = [
        name
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor, weights[name])
    ]
    assert changed == ["head.weight", "head.bias"]
    again = training_options(old, "finished", 2)
    with pytest.raises(
        UserError, match=r"^optim.learning_rate is 0.006: .* was started with 0.001"
    ):
        prepare_run(parse(again.split()), NODE, here=True)
    assert prepare_run(parse(f"{again} {VALUES}".split()), NODE, here=True).result == result


@pytest.mark.ray
def test_an_interrupted_run_resumes(old: Path, ray_cluster: str) -> None:
    again = f"{training_options(old, 'interrupted', 2)} {VALUES}"
    before = read_rows(f"{old}/interrupted")
    result = train_here(parse(again.split()))
    rows = read_rows(f"{old}/interrupted")

    steps_per_epoch = result["global_step"] // 2
    assert [row["global_step"] for row in rows] == list(range(1, 2 * steps_per_epoch + 1))
    assert rows[:steps_per_epoch] == before[:steps_per_epoch]
    assert [row["epoch"] for row in rows if "val/loss" in row] == [1, 2]


def test_a_sweep_and_its_cache_are_read(old: Path) -> None:
    record = SweepRecord.read(f"{old}/sweep")

    assert [trial.state for trial in record.trials] == ["finished"] * 2
    assert record.winner is not None and record.winner.point["optim.learning_rate"] == 0.01
    assert judge(record).text
    assert {entry.facts["backbone"] for entry in list_entries(f"{old}/cache")} == {"lenet5"}


@pytest.mark.parametrize(("out", "epochs"), [("sweep", 2), ("stopped-sweep", 60)])
def test_a_sweep_of_a_recipe_that_has_changed_names_the_commit(
    old: Path, out: str, epochs: int
) -> None:
    state = next(state for state in STATES if f"thaw-{state}-" in old.name)
    with pytest.raises(UserError, match=r"base.optim.learning_rate is 0.006") as refused:
        check(parse_sweep(sweep_options(old, out, epochs).split()))
    assert f"use the same value, or commit {state}" in str(refused.value)
