"""A training that is known is copied; another one never is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.small import small_training
from tests.support.training import train_here
from trainers import metrics
from trainers.config import FinetuneConfig, ModelConfig, OptimConfig, TrackConfig
from trainers.run import checkpoint
from trainers.run.folder import load_best_model, read_result
from trainers.run.rows import epoch_rows
from tuning.sharing.reuse import RecordedRun, copy_run, find_known, read_origin, record, result_key


@pytest.mark.parametrize(
    ("clipnorm", "peak", "other", "equal"),
    [
        (None, 0.5, 1.0, True),
        (None, 1.5, 1.0, False),
        (1.0, 0.5, None, True),
        (1.0, 0.5, 0.7, True),
        (1.0, 0.5, 0.4, False),
        (1.0, 1.5, 2.0, False),  # it was clipped
        (1.0, 1.5, 1.0, True),
        (None, 9.0, None, True),
    ],
)
def test_a_threshold_that_is_never_reached_changes_nothing(
    clipnorm: float | None, peak: float, other: float | None, equal: bool
) -> None:
    known = RecordedRun(run="", num_epochs=1, clipnorm=clipnorm, peak_norm=peak, sha256="")
    assert known.equals(other) is equal


def test_a_key_holds_all_that_decides_the_losses() -> None:
    config = FinetuneConfig(data="a")

    def key(changed: FinetuneConfig, fingerprint: str = "f", start_hash: str = "s") -> str:
        return result_key(changed, fingerprint=fingerprint, start_hash=start_hash)

    same = [
        replace(config, out="elsewhere", track=TrackConfig(wandb="off")),
        replace(config, optim=OptimConfig(clipnorm=1.0)),
        replace(config, checkpoint_every_steps=7),
        replace(config, model=ModelConfig(weights="/moved.pth")),
    ]
    other = [
        replace(config, seed=1),
        replace(config, epochs=11),
        replace(config, global_batch_size=16),
        replace(config, optim=OptimConfig(learning_rate=2e-3)),
        replace(config, ingest=replace(config.ingest, views=2)),
        replace(config, model=ModelConfig(freeze_depth=1)),
        replace(config, cluster=replace(config.cluster, num_workers=2)),
    ]
    assert {key(changed) for changed in same} == {key(config)}
    for depth, equal in ((4, 0.75), ("all", 5), (0, -5)):  # of 5 stages
        first, second = (ModelConfig(freeze_depth=each) for each in (depth, equal))
        assert key(replace(config, model=first)) == key(replace(config, model=second))
    keys = {key(config), *map(key, other), key(config, "g"), key(config, "f", "t")}
    assert len(keys) == len(other) + 3


@pytest.fixture(scope="module")
def known(
    ray_cluster: str, easy_data: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FinetuneConfig, str]:
    """A run of two epochs that was recorded, and the folder it was recorded in."""
    folder = tmp_path_factory.mktemp("known")
    config = small_training(
        easy_data,
        str(folder / "sweep" / "trials" / "first"),
        epochs=2,
        model=ModelConfig(backbone="lenet5", init="he"),
    )
    train_here(config)
    record(str(folder / "results"), config.out)
    return config, str(folder / "results")


@pytest.mark.ray
def test_a_copy_is_the_run(known: tuple[FinetuneConfig, str], tmp_path: Path) -> None:
    config, results = known
    peak = epoch_rows(config.out)[-1][metrics.PEAK_NORM]
    looser = replace(
        config, out=str(tmp_path / "trials" / "copy"), optim=OptimConfig(clipnorm=2 * peak)
    )
    assert find_known(results, replace(looser, optim=OptimConfig(clipnorm=peak / 2))) is None
    found = find_known(results, looser)
    assert found is not None and found.run == config.out
    copy_run(found, looser)

    assert epoch_rows(looser.out) == epoch_rows(config.out)
    origin = read_origin(looser.out)
    assert origin is not None and origin.run == config.out and read_origin(config.out) is None
    assert read_result(looser.out)["checkpoint"].startswith(looser.out)
    kept, was = (load_best_model(run)[2].state_dict() for run in (looser.out, config.out))
    assert all(torch.equal(kept[name], was[name]) for name in was)
    assert train_here(looser) == read_result(looser.out)  # it is over


@pytest.mark.ray
def test_a_run_that_was_stopped_early_is_gone_on_from(
    known: tuple[FinetuneConfig, str], tmp_path: Path
) -> None:
    """As ASHA stops it: no result, and the checkpoint of its first epoch."""
    config, _ = known
    stopped = str(tmp_path / "sweep" / "trials" / "stopped")
    shutil.copytree(config.out, stopped)
    Path(stopped, "result.json").unlink()
    first, second = (row[metrics.GLOBAL_STEP] for row in epoch_rows(config.out))
    shutil.rmtree(checkpoint.folder(stopped, second))
    rows = Path(stopped, "metrics.jsonl")
    lines = rows.read_text().splitlines(keepends=True)
    kept = [json.loads(line)[metrics.GLOBAL_STEP] <= first for line in lines]
    rows.write_text("".join(lines[: sum(kept)]))
    record(str(tmp_path / "results"), stopped)

    again = replace(config, out=str(tmp_path / "sweep" / "trials" / "again"))
    found = find_known(str(tmp_path / "results"), again)
    assert found is not None and found.num_epochs == 1
    copy_run(found, again)
    train_here(again)
    losses = [row[metrics.TRAIN_LOSS] for row in epoch_rows(again.out)]
    assert losses == [row[metrics.TRAIN_LOSS] for row in epoch_rows(config.out)]

    shutil.rmtree(stopped)
    assert find_known(str(tmp_path / "results"), again) is None
    shutil.copytree(again.out, stopped)  # another run in its place
    assert find_known(str(tmp_path / "results"), again) is None
