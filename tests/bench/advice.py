"""How much worse the advised freeze depth is than the best: python -m tests.bench.advice --out DIR.

Each task is a data set and a pretrained network. A sweep trains every freeze depth with several
learning rates, which gives the truth: the best val/top1 at each depth. `advise` then sees the same
data, with a cache of its own. Regret is the best val/top1 of any depth minus that of the advised
depth. Cost is the time of the advice as a share of the time of the sweep. What is in --out is kept,
so that the command can be run again until all tasks are there.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from cluster import runtime
from datasets.config import IngestConfig, PrepareConfig, SyntheticConfig
from datasets.prepare.prepare import prepare
from datasets.shards import read_manifest
from tests.bench.report import ROOT, report, to_row
from trainers.commands import run_training
from trainers.config import (
    FinetuneConfig,
    FreezeDepth,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrackConfig,
)
from trainers.networks.backbones import find
from trainers.networks.freezing import resolve_depth
from trainers.recipes import pretrained
from trainers.run.folder import read_result
from tuning.advice.advise import run_advise
from tuning.advice.config import AdviseConfig
from tuning.axes.axis import FREEZE_DEPTH
from tuning.config import SpaceConfig, TuningConfig
from tuning.run import tune_sweep

CARS, WEIGHTS = (ROOT.parent / "shared" / name for name in ("cars", "weights"))
BACKBONE, BATCH_SIZE = "mobilenet_v2", 32
SIZE_PX = 64
VAL_PER_CLASS, MIN_EPOCHS, MAX_EPOCHS, MIN_STEPS = 20, 4, 10, 80
BODIES = ("SUV", "Coupe", "Sedan", "Convertible", "Van", "Minivan", "Cab", "Hatchback")
PRETRAINING = SyntheticConfig(num_classes=60, train_per_class=36, test_per_class=2, render_px=96,
                              label_by="body", seed=1)  # fmt: skip
MEAN_REGRET, MAX_REGRET, COST_SHARE = 0.01, 0.03, 0.15
"""Targets."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, and whose weights the network starts from."""

    data: Path
    drawn: bool = False
    """Weights of a network that was trained on other synthetic cars, not on ImageNet."""

    @property
    def name(self) -> str:
        return f"{self.data.name}{'-drawn' if self.drawn else ''}"


def class_of(folder: str, *, by_body: bool) -> str:
    """Return the class of a car model: itself, or its body type."""
    return next(body for body in BODIES if body in folder.split()) if by_body else folder


def prepare_photographs(out: Path, name: str, per_class: int | None, *, by_body: bool) -> Path:
    """Prepare the first images of each class of Stanford Cars; those of its test split validate."""
    data, source = out / name, out / "sources" / name
    if (data / "manifest.json").exists():
        return data
    for split, folder, limit in (("train", "train", per_class), ("val", "test", VAL_PER_CLASS)):
        for cars in sorted((CARS / folder).iterdir()):
            target = source / split / class_of(cars.name, by_body=by_body)
            target.mkdir(parents=True, exist_ok=True)
            for image in sorted(cars.iterdir())[:limit]:
                link = target / f"{cars.name} {image.name}"
                link.unlink(missing_ok=True)
                link.symlink_to(image)
    prepare(PrepareConfig(source="folder", root=str(source), out=str(data), short_side_px=96))
    return data


def prepare_drawings(out: Path, num_classes: int, per_class: int) -> Path:
    """Render synthetic cars, as many to validate as to train on."""
    data = out / f"drawings-{num_classes}"
    cars = SyntheticConfig(num_classes=num_classes, train_per_class=2 * per_class,
                           test_per_class=1, render_px=96)  # fmt: skip
    prepare(PrepareConfig(source="synthetic", out=str(data), short_side_px=96, val_fraction=0.5,
                          synthetic=cars))  # fmt: skip
    return data


def list_tasks(out: Path) -> list[Task]:
    photographs = [
        prepare_photographs(out, name, per_class, by_body=by_body)
        for name, per_class, by_body in (
            ("cars-5", 5, False),
            ("cars-10", 10, False),
            ("cars-20", 20, False),
            ("cars-all", None, False),
            ("bodies-10", 10, True),
            ("bodies-all", None, True),
        )
    ]
    drawings = [prepare_drawings(out, *size) for size in ((10, 40), (40, 20), (100, 8))]
    return [
        *(Task(data=data) for data in photographs),
        *(Task(data=data) for data in drawings),
        *(Task(data=data, drawn=True) for data in (*drawings, photographs[3])),
    ]


def pretrain(out: Path) -> str:
    """Train a network on the body types of other synthetic cars; return its weights' URI."""
    data = str(out / "other-cars")
    prepare(PrepareConfig(source="synthetic", out=data, short_side_px=96, synthetic=PRETRAINING))
    config = FinetuneConfig(
        data=data,
        out=str(out / "pretrained"),
        epochs=5,
        global_batch_size=BATCH_SIZE,
        ingest=IngestConfig(size_px=SIZE_PX, policy="light"),
        model=ModelConfig(backbone=BACKBONE, init="he"),
        optim=OptimConfig(optimizer="adamw", learning_rate=1e-3, global_clipnorm=1.0),
        schedule=ScheduleConfig(schedule="cosine", warmup_epochs=0.25),
        track=TrackConfig(wandb="off"),
    )
    if not Path(config.out, "result.json").exists():
        run_training(replace(config, cluster=replace(config.cluster, num_workers=0)))
    return str(Path(read_result(config.out)["checkpoint"], "model.safetensors"))


def model_of(task: Task, drawn_weights: str) -> ModelConfig:
    file = drawn_weights if task.drawn else str(WEIGHTS / "mobilenet_v2_imagenet.pth")
    normalization = "imagenet" if task.drawn else "half"
    return ModelConfig(backbone=BACKBONE, init="file", weights=file, normalization=normalization)


def find_truth(task: Task, model: ModelConfig, out: Path) -> tuple[dict[int, float], float]:
    """Sweep every freeze depth; return the best val/top1 of each, and the seconds."""
    file = out / f"{task.name}-truth.json"
    if not file.exists():
        num_images = read_manifest(str(task.data)).split("train").num_images
        epochs = MIN_STEPS * BATCH_SIZE // num_images
        base = replace(
            pretrained(),
            data=str(task.data),
            epochs=min(max(epochs, MIN_EPOCHS), MAX_EPOCHS),
            global_batch_size=BATCH_SIZE,
            ingest=IngestConfig(size_px=SIZE_PX, policy="light"),
            model=model,
            track=TrackConfig(wandb="off"),
        )
        num_stages = len(find(BACKBONE).stages)
        frozen: tuple[FreezeDepth, ...] = ("all", num_stages - 1)
        best, seconds = defaultdict[int, float](float), 0.0
        for part, depths, rates in (
            ("heads", frozen, (1e-2, 3e-3, 1e-3)),
            ("deeper", tuple(range(num_stages - 1)), (1e-3, 3e-4)),
        ):
            space = SpaceConfig(freeze_depths=depths, learning_rates=rates, clipnorms=(None,),
                                inits=("file",))  # fmt: skip
            folder = str(out / f"{task.name}-{part}")
            started_s = time.perf_counter()
            answer = tune_sweep(
                TuningConfig(base=base, space=space, out=folder, search="grid",
                             cache=str(out / "cache"), grace_epochs=base.epochs,
                             evaluate_winner=False, combine=False)
            )  # fmt: skip
            seconds += time.perf_counter() - started_s
            for row in answer["trials"]:
                depth = resolve_depth(BACKBONE, row[FREEZE_DEPTH])
                best[depth] = max(best[depth], row["val_top1"] or 0.0)
        file.write_text(json.dumps({"best": best, "seconds": seconds, "epochs": base.epochs}))
    known = json.loads(file.read_text())
    return {int(depth): top1 for depth, top1 in known["best"].items()}, known["seconds"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What following an advice costs."""

    task: str
    lecture: int
    advised: int
    best: int
    lecture_regret: float
    regret: float
    cost_share: float


def advise(task: Task, model: ModelConfig, truth: dict[int, float], sweep_s: float, out: Path):
    """Ask for advice, with an empty cache, unless that is done; compare it with the truth."""
    file = out / f"{task.name}-advice.json"
    if not file.exists():
        epochs = json.loads((out / f"{task.name}-truth.json").read_text())["epochs"]
        started = time.perf_counter()
        advice = run_advise(
            AdviseConfig(data=str(task.data), backbone=BACKBONE, init="file",
                         weights=model.weights, normalization=model.normalization,
                         size_px=SIZE_PX, out=str(out / f"{task.name}-advice"),
                         cache=str(out / f"{task.name}-cache"), epochs=epochs,
                         global_batch_size=BATCH_SIZE, policy="light")
        )  # fmt: skip
        file.write_text(json.dumps({"advice": advice, "seconds": time.perf_counter() - started}))
    known = json.loads(file.read_text())
    advised = known["advice"]["race"]["depths"][0]["depth"]
    lecture = known["advice"]["verdict"]["freeze_depths"][0]
    best = max(truth, key=lambda depth: truth[depth])
    return Outcome(
        task=task.name,
        lecture=lecture,
        advised=advised,
        best=best,
        lecture_regret=truth[best] - truth[lecture],
        regret=truth[best] - truth[advised],
        cost_share=known["seconds"] / sweep_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "advice-bench")
    parser.add_argument("--minutes", type=float, default=1000.0, help="start no sweep after")
    options = parser.parse_args()
    out, ends_s = options.out.absolute(), time.monotonic() + 60 * options.minutes
    runtime.connect(None, quiet=True)
    tasks, drawn_weights = list_tasks(out), pretrain(out)
    truths: list[tuple[Task, ModelConfig, dict[int, float], float]] = []
    for task in tasks:
        if time.monotonic() > ends_s and not (out / f"{task.name}-truth.json").exists():
            continue
        model = model_of(task, drawn_weights)
        truths.append((task, model, *find_truth(task, model, out)))
    outcomes: list[Outcome] = []
    for task, model, truth, sweep_s in truths:
        outcome = advise(task, model, truth, sweep_s, out)
        outcomes.append(outcome)
        print(
            f"{task.name:<20} lecture {outcome.lecture} (regret {outcome.lecture_regret:.3f}), "
            f"advised {outcome.advised} ({outcome.regret:.3f}), best {outcome.best} "
            f"({truth[outcome.best]:.3f}), cost {outcome.cost_share:.2f} of the sweep",
            flush=True,
        )
    summary = {
        "advice/regret_mean": (MEAN_REGRET, statistics.mean(o.regret for o in outcomes)),
        "advice/regret_max": (MAX_REGRET, max(o.regret for o in outcomes)),
        "advice/cost_share": (COST_SHARE, statistics.mean(o.cost_share for o in outcomes)),
    }
    lectures = [o.lecture_regret for o in outcomes]
    peers = (statistics.mean(lectures), max(lectures), 1.0)
    report(
        [
            to_row(name, ours=ours, peer=max(peer, 1e-9), limit=target, target=target,
                   num_runs=len(outcomes))
            for (name, (target, ours)), peer in zip(summary.items(), peers, strict=True)
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
