"""Sweeps as they lie on storage, written without training, with numbers such as real ones have."""

import json
import random
from dataclasses import replace
from math import exp, log10
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.config import IngestConfig
from datasets.manifest import Manifest, Shard, Split
from datasets.manifest_file import read_manifest, write_manifest
from trainers import metrics
from trainers.config import FinetuneConfig, ModelConfig
from trainers.networks.backbones import find
from trainers.networks.freezing import resolve_depth
from tuning.axes.axis import BACKBONE, FREEZE_DEPTH, INIT, LEARNING_RATE
from tuning.config import SpaceConfig, TuningConfig
from tuning.point import Point, training_of
from tuning.record.leaderboard import write_leaderboard
from tuning.record.results import FINISHED, PRUNED, TrialResult, rank
from tuning.record.savings import Savings
from tuning.record.states import Trials
from tuning.space import points

Kind = Literal["normal", "chance", "failed"]
Status = Literal["ended", "running", "stopped"]
CARS = (
    "Audi TT",
    "BMW M3",
    "Fiat 500",
    "Ford GT",
    "Honda Fit",
    "Jeep Liberty",
    "Mini",
    "Volvo 240",
)


def write_sweep(
    out: Path,
    *,
    trials: int = 24,
    epochs: int = 9,
    kind: Kind = "normal",
    status: Status = "ended",
    classes: tuple[str, ...] = CARS,
    val_per_class: int = 40,
    data: str | None = None,
    backbone: str = "resnet50",
    predictions: bool = True,
    lead: float = 0.08,
    seed: int = 0,
    space: SpaceConfig | None = None,
) -> str:
    """Write a sweep and return its URI.

    Args:
        space: by default one of four axes.
        data: a prepared data set; default: only a manifest, beside the sweep.
        predictions: whether trials keep what they say to validation images.
        lead: by which the best freeze depth is better than the next, about.
    """
    rng = random.Random(seed)
    data = data or write_classes(out.parent / f"{out.name}-data", classes, val_per_class)
    manifest = read_manifest(data)
    config = TuningConfig(
        base=FinetuneConfig(
            data=data,
            out=str(out),
            epochs=epochs,
            ingest=IngestConfig(size_px=32),
            model=ModelConfig(
                backbone=backbone,
                init="imagenet" if space else "file",
                weights=None if space else "imagenet.pth",
            ),
        ),
        space=space
        or SpaceConfig(
            freeze_depths=("all", *range(len(find(backbone).stages) - 1, -1, -2)),
            learning_rates=(3e-3, 1e-3, 3e-4, 1e-4),
            learning_rate_range=(1e-5, 1e-2) if trials > 60 else None,
            clipnorms=(None, 1.0, 0.1),
            inits=("file", "he"),
        ),
        out=str(out),
        trials=trials or None,
        seed=seed,
    )
    write_json(out / "config.json", config.to_dict() | {"data_fingerprint": manifest.fingerprint})
    write_json(
        out / "started.json",
        {
            "command": f"python -m tuning --data {data} --out {out}",
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "versions": {"ray": "2.60.0", "torch": "2.14.1"},
            "started_at": "2026-11-24T18:00:00+00:00",
        },
    )
    states: list[TrialResult] = []
    counts = manifest.split("val").class_counts
    for number, point in enumerate(_draw(config, trials), start=1):
        state = _state(rng, number, trials, kind, status)
        run = out / "trials" / f"5eed0_{number - 1:05d}"
        network = str(point.get(BACKBONE, backbone))
        asymptote = _asymptote(rng, point, network, kind, 1 / len(manifest.classes), lead)
        num_epochs = {"failed": 0, "finished": epochs, "pruned": rng.choice((1, 3))}.get(
            state, rng.randint(1, max(1, epochs - 1))
        )
        write_json(run / "config.json", training_of(config.base, point).to_dict())
        top1s = _write_rows(rng, run, point, network, num_epochs, asymptote, counts)
        if predictions and top1s:
            best = max(top1s)
            name = f"val_predictions/epoch-{1 + top1s.index(best):05d}.parquet"
            write_predictions(run, manifest.classes, counts, best, seed=number, name=name)
        reason = "RuntimeError: CUDA out of memory" if state == "failed" else None
        states.append(
            TrialResult(
                trial_id=run.name,
                number=number,
                point=point,
                run=str(run),
                state=state,
                reason=reason,
            )
        )
    held = Trials(num_trials=trials, updated_at="2026-11-24T19:00:00+00:00", trials=tuple(states))
    write_json(out / "trials.json", held.to_dict())
    if status == "ended" and states:
        ended = [replace(t, state=FINISHED) if t.state == PRUNED else t for t in states]
        sharing = Savings(
            expected=2.4, num_on_features=9, num_passes=60_000, num_computed=4_000, computed_s=40.0
        )
        results = rank(ended, epochs=epochs, class_counts=counts)
        sync = [f"wandb sync {out}"]
        write_leaderboard(str(out), results, config.base, sync=sync, sharing=sharing.to_dict())
    return str(out)


def _draw(config: TuningConfig, trials: int) -> list[Point]:
    if not trials:
        return []
    listed = points(config.space, "random", trials, config.seed)
    random.Random(config.seed).shuffle(listed)
    return listed


def write_classes(folder: Path, classes: tuple[str, ...], val_per_class: int) -> str:
    """Write the manifest of a data set without images."""
    folder.mkdir(parents=True)
    splits = {
        name: Split(
            shards=(
                Shard(path=f"{name}.parquet", row_groups=(count * len(classes),), num_bytes=1),
            ),
            class_counts=(count,) * len(classes),
            num_pixels=1,
        )
        for name, count in (("train", 50), ("val", val_per_class), ("test", 30))
    }
    manifest = Manifest(
        classes=classes, splits=splits, num_quarantined=0, fingerprint="f1" * 32, options={}
    )
    write_manifest(str(folder), manifest)
    return str(folder)


def write_predictions(
    run: Path,
    classes: tuple[str, ...],
    counts: tuple[int, ...],
    top1: float,
    *,
    seed: int,
    name: str,
) -> None:
    """Write what a network of that accuracy says: neighbouring classes are taken for another."""
    rng = np.random.default_rng(seed)
    label_N = np.repeat(np.arange(len(counts)), counts)
    wrong_N = np.zeros(len(label_N), bool)
    num_wrong = len(label_N) - round(top1 * len(label_N))
    wrong_N[rng.permutation(len(label_N))[:num_wrong]] = True
    shift_N = np.minimum(rng.geometric(0.6, len(label_N)), len(counts) - 1)
    predicted_N = np.where(wrong_N, (label_N + shift_N) % len(counts), label_N)
    columns = {
        "row": pa.array(np.arange(len(label_N)), pa.int32()),
        **{
            title: pa.DictionaryArray.from_arrays(pa.array(values, pa.int32()), list(classes))
            for title, values in (("label", label_N), ("predicted", predicted_N))
        },
        "confidence": pa.array(rng.uniform(0.3, 1, len(label_N)), pa.float32()),
    }
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_test(run: Path, classes: tuple[str, ...], fingerprint: str, *, epoch: int) -> None:
    """Write the evaluation of a run on 30 test images per class, 0.7 of them right."""
    counts = (30,) * len(classes)
    write_predictions(run, classes, counts, 0.7, seed=1, name="evaluation_test/predictions.parquet")
    measured = {"test/top1": 0.7, "test/top5": 0.95, "num_images": sum(counts)}
    write_json(
        run / "evaluation_test.json", measured | {"epoch": epoch, "fingerprint": fingerprint}
    )


def write_combined(out: str, *, kept: str = "ensemble") -> None:
    """Write what a sweep found where it combined its trials: three ways, one of them kept."""
    tried = [
        {
            "kind": kind,
            "trials": ["5eed0_00001", "5eed0_00003"][: 1 if kind == "interpolation" else 2],
            "share": 0.75 if kind == "interpolation" else None,
            "top1": 0.9,
            "gain": {"mean": 0.02, "low": 0.01 if kind == kept else -0.01, "high": 0.03},
        }
        for kind in ("ensemble", "soup", "interpolation")
    ]
    write_json(Path(out, "combined/combined.json"), {"weights": ["a", "b"], "tried": tried})


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def _state(rng: random.Random, number: int, trials: int, kind: Kind, status: Status) -> str:
    if kind == "failed":
        return "failed"
    if status != "ended" and number > trials - 2:
        return "running" if status == "running" else "killed"
    if number == 2 and trials > 3:
        return "failed"
    return "pruned" if number > 1 and rng.random() < 0.6 else "finished"


def _asymptote(
    rng: random.Random, point: Point, backbone: str, kind: Kind, chance: float, lead: float
) -> float:
    """What a trial would reach: best with the later stages thawed and a rate of 1e-3."""
    if kind == "chance" or point[INIT] == "he":
        return chance + rng.uniform(-0.01, 0.01)
    depth: Any = point[FREEZE_DEPTH]
    num_stages = len(find(backbone).stages)
    share = resolve_depth(backbone, depth) / num_stages
    rate = float(str(point[LEARNING_RATE]))
    off = abs(share - 0.5) * 2
    return max(chance, 0.9 - lead * off * 2 - 0.16 * (log10(rate) + 3) ** 2 + rng.gauss(0, 0.01))


def _write_rows(
    rng: random.Random,
    run: Path,
    point: Point,
    backbone: str,
    num_epochs: int,
    asymptote: float,
    counts: tuple[int, ...],
) -> list[float]:
    """Write metrics.jsonl with a row within each epoch and one at its end; return val/top1."""
    depth: Any = point[FREEZE_DEPTH]
    stages = [name for name, _ in find(backbone).stages][resolve_depth(backbone, depth) :]
    clipnorm, total = point["optim.clipnorm"], sum(counts)
    rows, top1s = [], []
    for step in range(1, 2 * num_epochs + 1):
        row: dict[str, Any] = {"epoch": (step + 1) // 2, "global_step": 10 * step}
        row |= {"train/loss": 2 * exp(-step / 6), "train/top1": 1 - exp(-step / 5)}
        for name, parts in (
            ("", metrics.stage_metrics([""])),
            *((stage, metrics.stage_metrics([stage])) for stage in (*stages, "head")),
        ):
            norm = (6 if name in ("", "head") else 1.5) * exp(-step / 20) * rng.uniform(0.8, 1.2)
            limit = float(str(clipnorm)) if clipnorm is not None else norm
            names = [part.replace("//", "/") for part in parts]
            values = (norm, min(norm, 3 * limit), 0.0 if norm <= limit else 1 - limit / norm)
            row |= dict(zip(names, values, strict=True))
        if step % 2 == 0:
            reached = asymptote * (1 - 0.6 * exp(-row["epoch"] / 2)) + rng.gauss(0, 0.008)
            top1 = round(min(1.0, max(0.0, reached)) * total) / total
            top1s.append(top1)
            seconds = row["epoch"] * (0.3 if not stages else 4.0 * len(stages))
            row |= {"val/top1": top1, "val/loss": 1 - top1, metrics.TOTAL_S: seconds}
        rows.append(row)
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return top1s


def hostile_classes() -> tuple[str, ...]:
    """Names that would leave a tag, an attribute, a script or a chart's label, were they let."""
    return (
        "</script><script>alert(1)</script>",
        '"><img src=x onerror=alert(2)>',
        "<b>bold</b> <a href='javascript:alert(3)'>x</a>",
        "{{ 7 * 7 }} ${7*7} %{x}",
        "Škoda & Söhne <!-- ' --> \u2028",
    )
