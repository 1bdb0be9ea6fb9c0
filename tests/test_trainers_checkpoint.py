"""Checkpoints are whole or not there."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress


def contents(value: float) -> dict[str, bytes]:
    """The files of a model whose weights are `value`."""
    weights = {"weight": torch.full((2, 3), value)}
    return {"model.safetensors": safetensors.torch.save(weights), "training.pt": b"%f" % value}


def save_epochs(run: str, val_top1s: Sequence[float | None]) -> TrainingProgress:
    """Epochs of 10 steps."""
    progress = TrainingProgress(classes=("a", "b"))
    for epoch, top1 in enumerate(val_top1s, start=1):
        progress = progress.after_epoch(
            global_step=10 * epoch, val_top1=top1, total_s=1.5 * epoch, peak_norm=0.0
        )
        checkpoint.save(run, contents(epoch), progress)
    return progress


def restore_latest(run: Path) -> TrainingProgress | None:
    latest = checkpoint.read_latest(str(run))
    return latest and latest.progress


def kept(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_two_latest_and_the_best_are_kept_and_found(tmp_path: Path) -> None:
    save_epochs(str(tmp_path), [0.2, 0.9, 0.5, 0.4, 0.3])

    progress, files = checkpoint.read(str(tmp_path), 50)
    best, weights = checkpoint.load_best(str(tmp_path))

    assert kept(tmp_path) == ["step-00000020", "step-00000040", "step-00000050"]
    assert progress == restore_latest(tmp_path)
    assert progress.epoch == 5 and progress.classes == ("a", "b") and progress.total_s == 7.5
    assert files == contents(5)
    assert best.epoch == 2 and torch.all(weights["weight"] == 2)


def test_without_validation_the_latest_is_the_best(tmp_path: Path) -> None:
    progress = save_epochs(str(tmp_path), [None, None, None])
    best, weights = checkpoint.load_best(str(tmp_path))

    assert kept(tmp_path) == ["step-00000020", "step-00000030"]
    assert (progress.best_epoch, progress.best_step) == (3, 30) and not progress.validated
    assert best.epoch == 3 and torch.all(weights["weight"] == 3)


def test_of_two_that_are_equally_good_the_earlier_is_the_best(tmp_path: Path) -> None:
    save_epochs(str(tmp_path), [0.5, 0.9, 0.9])

    assert checkpoint.load_best(str(tmp_path))[0].epoch == 2


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "progress.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, name: str, damage: str
) -> None:
    save_epochs(str(tmp_path), [0.5, 0.9])  # the latest is the best as well
    file = tmp_path / "checkpoints" / "step-00000020" / name
    content = file.read_bytes()
    half = len(content) // 2
    match damage:
        case "cut":
            file.write_bytes(content[:half])
        case "flipped":
            file.write_bytes(content[:half] + bytes([content[half] ^ 255]) + content[half + 1 :])
        case _:
            file.unlink()

    progress = restore_latest(tmp_path)

    assert progress is not None and progress.epoch == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_checkpoint_torn_anywhere_is_passed_over_and_said_to_be(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    dice = random.Random(seed)
    save_epochs(str(tmp_path), [0.5, 0.9])
    file = dice.choice(sorted((tmp_path / "checkpoints" / "step-00000020").iterdir()))
    file.write_bytes(file.read_bytes()[: dice.randrange(file.stat().st_size)])

    progress = restore_latest(tmp_path)

    assert progress is not None and progress.epoch == 1
    assert "step-00000020" in caplog.text and "is damaged" in caplog.text


def test_a_run_without_a_whole_checkpoint_starts_anew_and_has_no_best(tmp_path: Path) -> None:
    assert restore_latest(tmp_path) is None
    with pytest.raises(ValueError, match="has no whole checkpoint of an epoch; train it first"):
        checkpoint.load_best(str(tmp_path))


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    progress = save_epochs(str(tmp_path), [0.1, 0.2])
    checkpoint.save(str(tmp_path), contents(7), progress)

    assert torch.all(checkpoint.load_best(str(tmp_path))[1]["weight"] == 7)
    assert kept(tmp_path) == ["step-00000010", "step-00000020"]


def test_a_checkpoint_in_mid_epoch_is_the_latest_and_never_the_best(tmp_path: Path) -> None:
    progress = save_epochs(str(tmp_path), [0.1])
    middle = replace(progress, global_step=14, totals={"steps": 4.0}, unreadable=("one",))
    checkpoint.save(str(tmp_path), contents(9), middle)

    latest = restore_latest(tmp_path)
    assert latest is not None and latest.totals == {"steps": 4.0} and latest.unreadable == ("one",)
    assert (latest.trained_epoch, progress.trained_epoch) == (1, 0)
    assert torch.all(checkpoint.load_best(str(tmp_path))[1]["weight"] == 1)


def test_what_lies_beyond_a_resumed_step_goes_and_what_it_resumed_from_stays(
    tmp_path: Path,
) -> None:
    """As after a latest checkpoint that was damaged."""
    progress = save_epochs(str(tmp_path), [0.2, 0.1, 0.1])
    middle = replace(progress, epoch=1, global_step=14, totals={"steps": 4.0})
    checkpoint.save(str(tmp_path), contents(9), middle)

    assert kept(tmp_path) == ["step-00000010", "step-00000014"]
