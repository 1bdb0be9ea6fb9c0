"""How much worse the advised freeze depth is than the best: python -m tests.bench.advice --out DIR.

Each task is a data set and a pretrained network. A sweep trains every freeze depth with several
learning rates. `advise` then sees the same data, with a cache of its own. Depths that may be the
best, and those that are advised, are trained with two more seeds: two runs of one training differ
by up to 0.045. The truth is the mean val/top1 at each depth's best learning rate. Regret is that of
the best depth minus that of the advised depth. Cost is the time of the advice as a share of the
time of the sweep. What is in --out is kept, so that the command can be run again until all tasks
are there.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster import runtime
from datasets.config import IngestConfig
from datasets.manifest_file import read_manifest
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from datasets.synthetic.config import SyntheticConfig
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
from tuning.axes.axis import FREEZE_DEPTH, LEARNING_RATE, Axis
from tuning.config import SpaceConfig, TuningConfig
from tuning.run import tune_sweep

CARS, WEIGHTS = (ROOT.parent / "shared" / name for name in ("cars", "weights"))
BACKBONE, BATCH_SIZE = "mobilenet_v2", 32
SIZE_PX = 64
VAL_PER_CLASS, MIN_EPOCHS, MAX_EPOCHS, MIN_STEPS = 20, 4, 10, 80
BODIES = ("SUV", "Coupe", "Sedan", "Convertible", "Van", "Minivan", "Cab", "Hatchback")
PRETRAINING = SyntheticConfig(num_classes=60, train_per_class=36, test_per_class=2, render_px=96,
                              label_by="body", seed=1)  # fmt: skip
SEEDS, MARGIN = (1, 2), 0.06
"""More seeds of a depth whose val/top1 is less than MARGIN below the best."""
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


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trial of a sweep."""

    depth: int
    rate: float
    top1: float


def plan_training(task: Task, model: ModelConfig) -> FinetuneConfig:
    num_images = read_manifest(str(task.data)).split("train").num_images
    epochs = MIN_STEPS * BATCH_SIZE // num_images
    return replace(
        pretrained(),
        data=str(task.data),
        epochs=min(max(epochs, MIN_EPOCHS), MAX_EPOCHS),
        global_batch_size=BATCH_SIZE,
        ingest=IngestConfig(size_px=SIZE_PX, policy="light"),
        model=model,
        track=TrackConfig(wandb="off"),
    )


def train_grid(base: FinetuneConfig, out: Path, name: str, space: SpaceConfig) -> list[Trained]:
    """Train every point of a space to its last epoch."""
    answer = tune_sweep(
        TuningConfig(base=base, space=replace(space, clipnorms=(None,), inits=("file",)),
                     out=str(out / name), search="grid", cache=str(out / "cache"),
                     grace_epochs=base.epochs, evaluate_winner=False, combine=False)
    )  # fmt: skip
    return [
        Trained(
            depth=resolve_depth(BACKBONE, row[FREEZE_DEPTH]),
            rate=row[LEARNING_RATE],
            top1=row["val_top1"] or 0.0,
        )
        for row in answer["trials"]
    ]


def sweep_depths(task: Task, base: FinetuneConfig, out: Path) -> tuple[list[Trained], float]:
    """Sweep every freeze depth; return the best trial of each, and the seconds."""
    file = out / f"{task.name}-sweep.json"
    if not file.exists():
        num_stages = len(find(BACKBONE).stages)
        frozen: tuple[FreezeDepth, ...] = ("all", num_stages - 1)
        trained: list[Trained] = []
        started_s = time.perf_counter()
        for part, depths, rates in (
            ("heads", frozen, (1e-2, 3e-3, 1e-3)),
            ("deeper", tuple(range(num_stages - 1)), (1e-3, 3e-4)),
        ):
            space = SpaceConfig(freeze_depths=depths, learning_rates=rates)
            trained += train_grid(base, out, f"{task.name}-{part}", space)
        best = {each.depth: each for each in sorted(trained, key=lambda each: each.top1)}
        seconds = time.perf_counter() - started_s
        found = {"best": list(map(asdict, best.values())), "seconds": seconds}
        file.write_text(json.dumps(found))
    known = json.loads(file.read_text())
    return [Trained(**each) for each in known["best"]], known["seconds"]


def repeat(task: Task, base: FinetuneConfig, trials: Sequence[Trained], out: Path) -> list[float]:
    """Train each trial with two more seeds; return its mean val/top1."""
    file = out / f"{task.name}-repeated.json"
    known: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}
    missing = [each for each in trials if str(each.depth) not in known]
    for rate in sorted({each.rate for each in missing}):
        depths = tuple(each.depth for each in missing if each.rate == rate)
        space = SpaceConfig(freeze_depths=depths, learning_rates=(rate,),
                            axes=(Axis(field="seed", values=SEEDS),))  # fmt: skip
        name = f"{task.name}-again-{rate}-{'-'.join(map(str, depths))}"
        for each in train_grid(base, out, name, space):
            known.setdefault(str(each.depth), []).append(each.top1)
        file.write_text(json.dumps(known))
    return [statistics.mean([each.top1, *known[str(each.depth)]]) for each in trials]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What following an advice costs."""

    task: str
    lecture: int
    advised: int
    best: int
    best_top1: float
    lecture_regret: float
    regret: float
    cost_share: float


def advise(task: Task, base: FinetuneConfig, out: Path) -> tuple[dict[str, Any], float]:
    """Ask for advice, with an empty cache, unless that is done; return it and its seconds."""
    file = out / f"{task.name}-advice.json"
    if not file.exists():
        started = time.perf_counter()
        advice = run_advise(
            AdviseConfig(data=str(task.data), backbone=BACKBONE, init="file",
                         weights=base.model.weights, normalization=base.model.normalization,
                         size_px=SIZE_PX, out=str(out / f"{task.name}-advice"),
                         cache=str(out / f"{task.name}-cache"), epochs=base.epochs,
                         global_batch_size=BATCH_SIZE, policy="light")
        )  # fmt: skip
        file.write_text(json.dumps({"advice": advice, "seconds": time.perf_counter() - started}))
    known = json.loads(file.read_text())
    return known["advice"], known["seconds"]


def judge(task: Task, model: ModelConfig, out: Path) -> Outcome:
    """Compare the advice with the truth."""
    base = plan_training(task, model)
    best_trials, sweep_s = sweep_depths(task, base, out)
    advice, advice_s = advise(task, base, out)
    advised = advice["race"]["depths"][0]["depth"]
    lecture = advice["verdict"]["freeze_depths"][0]
    least = max(each.top1 for each in best_trials) - MARGIN
    close = [t for t in best_trials if t.top1 > least or t.depth in (advised, lecture)]
    means = repeat(task, base, close, out)
    truth = {each.depth: mean for each, mean in zip(close, means, strict=True)}
    best = max(truth, key=lambda depth: truth[depth])
    return Outcome(
        task=task.name,
        lecture=lecture,
        advised=advised,
        best=best,
        best_top1=truth[best],
        lecture_regret=truth[best] - truth[lecture],
        regret=truth[best] - truth[advised],
        cost_share=advice_s / sweep_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "advice-bench")
    parser.add_argument("--minutes", type=float, default=1000.0, help="start no task after")
    options = parser.parse_args()
    out, ends_s = options.out.absolute(), time.monotonic() + 60 * options.minutes
    runtime.connect(None, quiet=True)
    tasks, drawn_weights = list_tasks(out), pretrain(out)
    outcomes: list[Outcome] = []
    for task in tasks:
        if time.monotonic() > ends_s and not (out / f"{task.name}-repeated.json").exists():
            continue
        outcome = judge(task, model_of(task, drawn_weights), out)
        outcomes.append(outcome)
        print(
            f"{task.name:<20} lecture {outcome.lecture} (regret {outcome.lecture_regret:.3f}), "
            f"advised {outcome.advised} ({outcome.regret:.3f}), best {outcome.best} "
            f"({outcome.best_top1:.3f}), cost {outcome.cost_share:.2f} of the sweep",
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
