"""Golden models of W&B's workspaces and report, of an example sweep with invented numbers."""

import json
from pathlib import Path
from typing import Any

from cluster.io import storage
from datasets.manifest import Manifest, Shard, Split
from datasets.manifest_file import write_manifest
from trainers.config import FinetuneConfig, ModelConfig
from tuning.axes.axis import CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE
from tuning.config import SpaceConfig, TuningConfig
from tuning.record.leaderboard import write_leaderboard
from tuning.record.record import SweepRecord
from tuning.record.results import LEARNS, LEARNS_NOT, TrialResult
from tuning.record.savings import Savings
from tuning.wandb.views import build_views

GOLDEN = Path(__file__).parent / "golden_wandb"
NAMES = ("run_review", "sweep_review", "report")
CLASSES = ("Audi S6", "BMW M3", "smart | fortwo")
FINGERPRINT = "0123abcd"


def write_sweep(folder: Path) -> str:
    """Write the files of a sweep, without any training."""
    data, sweep = str(folder / "cars"), str(folder / "sweep")
    write_manifest(data, example_manifest())
    base = FinetuneConfig(data=data, out=sweep, epochs=10, model=ModelConfig(backbone="lenet5"))
    space = SpaceConfig(freeze_depths=("all", 1, 0), inits=("file", "he"))
    config = TuningConfig(base=base, space=space, out=sweep, grace_epochs=2)
    write_json(sweep, "config.json", config.to_dict() | {"data_fingerprint": FINGERPRINT})
    started = {
        "command": f"python -m tuning --data {data} --out {sweep}",
        "commit": "0123456789abcdef-dirty",
        "versions": {"ray": "2.60.0", "torch": "2.14.1"},
        "started_at": "2026-11-24T20:00:00+00:00",
    }
    write_json(sweep, "started.json", started)
    standings = [
        standing(sweep, 1, 1, 0.95, best_epoch=8),
        standing(sweep, 2, 0, 0.875, num_epochs=6, state="pruned"),
        standing(sweep, 3, "all", 0.75, copied_from=f"{sweep}/trials/trial-2"),
        standing(sweep, 4, 0, 0.25, init="he", num_epochs=2, state="pruned", verdict=LEARNS_NOT),
        standing(sweep, 5, 0, None, num_epochs=0, state="failed", verdict=LEARNS_NOT),
    ]
    savings = Savings(num_on_features=2, num_passes=900, num_computed=90, computed_s=3.0)
    write_leaderboard(sweep, standings, config.base, sync=[], sharing=savings.to_dict())
    return sweep


def example_manifest() -> Manifest:
    def split(*class_counts: int) -> Split:
        num_images = sum(class_counts)
        shard = Shard(path="part.parquet", row_groups=(num_images,), num_bytes=1)
        return Split(shards=(shard,), class_counts=class_counts, num_pixels=num_images)

    splits = {"train": split(40, 30, 50), "val": split(8, 6, 6), "test": split(11, 11, 10)}
    return Manifest(classes=CLASSES, splits=splits, num_quarantined=2, fingerprint=FINGERPRINT)


def standing(
    sweep: str, rank: int, depth: int | str, val_top1: float | None, **changes: Any
) -> TrialResult:
    values: dict[str, Any] = {
        "point": {
            FREEZE_DEPTH: depth,
            LEARNING_RATE: 1e-3,
            CLIPNORM: 1.0 if rank == 1 else None,
            INIT: changes.pop("init", "file"),
        },
        "best_epoch": changes.get("num_epochs", 10) or None,
        "num_epochs": 10,
        "state": "finished",
        "seconds": 12.0,
        "verdict": LEARNS,
    }
    return TrialResult(
        rank=rank,
        trial_id=f"trial-{rank}",
        val_top1=val_top1,
        run=f"{sweep}/trials/trial-{rank}",
        **(values | changes),
    )


def write_json(folder: str, name: str, values: dict[str, Any]) -> None:
    storage.write_bytes(storage.join(folder, name), json.dumps(values).encode())


def models_of(sweep: str) -> dict[str, Any]:
    """Return what would be sent to W&B by name, without random ids and this machine's folders."""
    views = build_views("team", "cars", SweepRecord.read(sweep))
    text = json.dumps(
        {
            name: _without_ids(view._to_model().model_dump(mode="json", by_alias=True))
            for name, view in zip(NAMES, views, strict=False)
        }
    )
    return json.loads(text.replace(str(Path(sweep).parent), "RUNS"))


def _without_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_ids(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: "ID" if key in ("__id__", "id") else _without_ids(each)
        for key, each in value.items()
        if each is not None
    }


def record(folder: Path) -> None:
    """Write the golden models."""
    for name, model in models_of(write_sweep(folder)).items():
        (GOLDEN / f"{name}.json").write_text(json.dumps(model, indent=1, ensure_ascii=False) + "\n")
