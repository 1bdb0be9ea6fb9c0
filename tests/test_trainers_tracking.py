"""metrics.jsonl, and whether W&B mirrors it."""

from pathlib import Path
from typing import Any

import pytest

from trainers.config import TrackConfig
from trainers.tracking import JsonlTracker, find_mode, read_rows


def row(step: int, **metrics: float) -> dict[str, Any]:
    return {"epoch": 1, "global_step": step, "train/loss": 1.0 / step, **metrics}


def test_rows_after_the_checkpoint_are_dropped_at_a_resume(tmp_path: Path) -> None:
    first = JsonlTracker(str(tmp_path))
    for step in (1, 2, 3):
        first.log(row(step))
    JsonlTracker(str(tmp_path), last_row=row(2)).log(row(3, resumed=1.0))

    assert [found["global_step"] for found in read_rows(str(tmp_path))] == [1, 2, 3]
    assert read_rows(str(tmp_path))[-1]["resumed"] == 1.0


@pytest.mark.parametrize(
    ("configured", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "secret"}, "online"),
        ("auto", {"WANDB_API_KEY": "secret", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "off"),
        ("off", {"WANDB_API_KEY": "secret"}, "off"),
    ],
)
def test_the_mode_follows_config_then_environment(
    monkeypatch: pytest.MonkeyPatch, configured: Any, environment: dict[str, str], mode: str
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert find_mode(TrackConfig(wandb=configured)) == mode
