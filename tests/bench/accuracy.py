"""Accuracy by precision on a CPU: python -m tests.bench.accuracy --minutes 4.

Trains recipes on 20 classes of ../shared/cars at 128 px, for 5 epochs, each with three seeds in
float32 and in bfloat16, and evaluates them on the 817 test images. What is in --out is kept, so
that the command can be run again until all trainings are there; prints a table of those that are.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

from cluster import runtime
from cluster.scaling import in_process
from datasets.config import IngestConfig
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from tests.bench.report import ROOT
from tests.support.training import train_here
from trainers.config import (
    ComputeConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    Precision,
    TrackConfig,
)
from trainers.evaluation import split as split_module
from trainers.evaluation.evaluate import evaluate
from trainers.recipes import RECIPES

SHARED = ROOT.parent / "shared"
EPOCHS, SIZE_PX, SEEDS = 5, 128, (0, 1, 2)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
PHASES = (("all", 2, 3e-3), (-2, 3, 1e-3))


def training_of(recipe: str, precision: Precision, seed: int, out: Path) -> FinetuneConfig:
    """A recipe with MobileNetV2, short enough for two cores."""
    config = RECIPES[recipe]
    schedule = config.schedule
    return replace(
        config,
        data=str(out / "cars"),
        out=str(out / f"{recipe}-{precision}-{seed}"),
        epochs=EPOCHS,
        seed=seed,
        ingest=IngestConfig(size_px=SIZE_PX, policy="light"),
        model=ModelConfig(
            backbone="mobilenet_v2",
            init="file",
            weights=str(SHARED / "weights" / "mobilenet_v2_imagenet.pth"),
            normalization="half",
            freeze_depth=config.model.freeze_depth,
        ),
        optim=OptimConfig(learning_rate=3e-3) if recipe == "transfer" else config.optim,
        schedule=replace(schedule, phases=PHASES if schedule.phases else (), schedule="cosine"),
        compute=ComputeConfig(precision=precision),
        track=TrackConfig(wandb="off"),
        cluster=in_process(config.cluster),
    )


def measure(config: FinetuneConfig) -> float:
    """Train, unless that is done; return top-1 on the test split."""
    file = Path(config.out, "top1.txt")
    if not file.exists():
        train_here(config)
        file.write_text(str(evaluate(config.out, split="test").is_correct_N.mean()))
    return float(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1000.0, help="start no training after")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "accuracy")
    options = parser.parse_args()
    ends_s = time.monotonic() + 60 * options.minutes
    runtime.connect(None, quiet=True)
    cars, out = SHARED / "cars", options.out.absolute()
    if not (out / "cars" / "manifest.json").exists():
        prepare(
            PrepareConfig(source="folder", root=str(cars / "train"), test_root=str(cars / "test"),
                          out=str(out / "cars"))
        )  # fmt: skip
    split_module.FEW_IMAGES = 10**6  # in this process, which has the network and its memory
    found: dict[tuple[str, Precision], list[float]] = {}
    for seed in SEEDS:
        for recipe in ("transfer", "staged", "finetune"):
            for precision in PRECISIONS:
                config = training_of(recipe, precision, seed, out)
                if time.monotonic() < ends_s or Path(config.out, "top1.txt").exists():
                    found.setdefault((recipe, precision), []).append(measure(config))
    for (recipe, precision), top1s in found.items():
        mean, seeds = statistics.mean(top1s), ", ".join(f"{top1:.3f}" for top1 in top1s)
        print(f"{recipe:<9} {precision}  {mean:.3f}  ({seeds})")


if __name__ == "__main__":
    main()
