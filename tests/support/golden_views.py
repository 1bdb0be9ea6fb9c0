"""Golden models of W&B's workspaces and reports, of an example sweep whose numbers are made up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.io import storage
from datasets.shards import Manifest, Shard, Split, write_manifest
from trainers.config import FinetuneConfig, ModelConfig, OptimConfig
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.evaluations import folder_of
from tuning.config import SpaceConfig, TuningConfig
from tuning.leaderboard import LEARNS, LEARNS_NOT, TrialResult, write_leaderboard
from tuning.record import SweepRecord
from tuning.sharing.savings import Savings
from tuning.space import CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE
from tuning.wandb.views import build_views

GOLDEN = Path(__file__).parent / "golden_wandb"
NAMES = ("run_review", "sweep_review", "decision_report", "model_card")
CLASSES = ("Audi S6", "BMW M3", "smart | fortwo")
FINGERPRINT = "0123abcd"


def write_sweep(folder: Path, *, promoted: bool = True) -> str:
    """Write what a sweep leaves, and what its promotion does, without any training."""
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
    write_leaderboard(sweep, standings, sync=[], sharing=savings.to_dict())
    trial = replace(
        base,
        out=standings[0].run,
        model=replace(base.model, init="file", weights="/home/alice/lenet5.pth", freeze_depth=1),
        optim=OptimConfig(learning_rate=1e-3, clipnorm=1.0),
    )
    write_run(trial, TrainingProgress(epoch=8, val_top1=0.95, best_epoch=8), top1=0.9375)
    if promoted:
        seed = replace(trial, out=f"{sweep}/promoted/seed-0", epochs=30, train_on="train+val")
        write_run(seed, TrainingProgress(epoch=30, best_epoch=30), top1=0.96875)
        write_json(f"{sweep}/promoted", "promoted.json", example_promotion(seed.out))
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


def write_run(config: FinetuneConfig, progress: TrainingProgress, *, top1: float) -> None:
    write_json(config.out, "config.json", config.to_dict())
    progress = replace(progress, classes=CLASSES, fingerprint=FINGERPRINT, total_s=12.3)
    checkpoint.save(config.out, {checkpoint.MODEL: b""}, progress)
    evaluation = {
        "test/top1": top1,
        "test/top5": 1.0,
        "num_images": 32,
        "epoch": progress.epoch,
        "fingerprint": FINGERPRINT,
        "per_class": [
            {"class": CLASSES[0], "f1": 1.0, "precision": 1.0, "recall": 1.0, "images": 11},
            {"class": CLASSES[1], "f1": 0.0, "precision": None, "recall": 0.0, "images": 1},
            {"class": CLASSES[2], "f1": 0.0, "precision": None, "recall": None, "images": 0},
        ],
        "most_confused": [
            {"true": CLASSES[1], "predicted": CLASSES[2], "count": 1, "share": 1.0, "example": 3}
        ],
    }
    write_json(config.out, "evaluation_test.json", evaluation)
    for folder in (config.out, folder_of(config.out, "test")):
        storage.write_bytes(f"{folder}/wandb_id", f"of {Path(folder).name}".encode())


def example_promotion(run: str) -> dict[str, Any]:
    """What promoted.json holds."""
    shares = {"test/top1": 0.96875, "test/top5": 1.0}
    intervals = {name: {"mean": mean, "low": 0.8, "high": 1.0} for name, mean in shares.items()}
    return {
        "run": run,
        "epochs": 30,
        "num_images": 32,
        "confidence": 0.95,
        "interval": "t over 2 seeds",
        "winner": {"test/top1": 0.9375, "test/top5": 1.0},
        "seeds": [{"seed": seed, **shares} for seed in (0, 1)],
        **intervals,
    }


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
    """Write the golden models anew."""
    for name, model in models_of(write_sweep(folder)).items():
        (GOLDEN / f"{name}.json").write_text(json.dumps(model, indent=1, ensure_ascii=False) + "\n")
