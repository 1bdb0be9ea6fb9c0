"""Checkpoints are whole or not there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from trainers import checkpoint
from trainers.checkpoint import Progress


def trained(value: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A tiny model whose weights are `value`, and an optimizer with state."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    nn.init.constant_(model.weight, value)
    return model, optimizer


def save_epochs(run: str, val_top1s: list[float]) -> None:
    best, best_epoch = -1.0, 0
    for epoch, top1 in enumerate(val_top1s, start=1):
        if top1 > best:
            best, best_epoch = top1, epoch
        progress = Progress(
            epoch=epoch,
            val_top1=top1,
            best_val_top1=best,
            best_epoch=best_epoch,
            classes=("a", "b"),
        )
        checkpoint.save(run, *trained(epoch), progress)


def restore_latest(run: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    epoch = checkpoint.find_latest(run)
    return None if epoch is None else checkpoint.restore(run, epoch, model, optimizer)


def kept(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_two_latest_and_the_best_are_kept_and_found(tmp_path: Path) -> None:
    save_epochs(str(tmp_path), [0.2, 0.9, 0.5, 0.4, 0.3])
    model, optimizer = trained(0)

    progress = restore_latest(str(tmp_path), model, optimizer)
    best, weights = checkpoint.load_best(str(tmp_path))

    assert kept(tmp_path) == ["epoch-00002", "epoch-00004", "epoch-00005"]
    assert progress is not None and progress.epoch == 5 and progress.classes == ("a", "b")
    assert torch.all(model.weight == 5) and optimizer.state_dict()["state"][0]["step"] == 1
    assert best.epoch == 2 and torch.all(weights["weight"] == 2)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "progress.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, name: str, damage: str
) -> None:
    save_epochs(str(tmp_path), [0.5, 0.9])  # the latest is the best as well
    file = tmp_path / "checkpoints" / "epoch-00002" / name
    content = file.read_bytes()
    half = len(content) // 2
    match damage:
        case "cut":
            file.write_bytes(content[:half])
        case "flipped":
            file.write_bytes(content[:half] + bytes([content[half] ^ 255]) + content[half + 1 :])
        case _:
            file.unlink()

    progress = restore_latest(str(tmp_path), *trained(0))

    assert progress is not None and progress.epoch == 1


def test_a_run_without_a_whole_checkpoint_starts_anew_and_has_no_best(tmp_path: Path) -> None:
    assert restore_latest(str(tmp_path), *trained(0)) is None
    with pytest.raises(ValueError, match="has no whole checkpoint; train it first"):
        checkpoint.load_best(str(tmp_path))


def test_saving_the_same_epoch_again_replaces_it(tmp_path: Path) -> None:
    save_epochs(str(tmp_path), [0.1])
    model, optimizer = trained(7)
    checkpoint.save(str(tmp_path), model, optimizer, replace(Progress(), epoch=1, best_epoch=1))

    assert torch.all(checkpoint.load_best(str(tmp_path))[1]["weight"] == 7)
