"""Each ingredient of a recipe, by what it gains: python -m tests.bench.recipes transfer.

Trains a recipe, and the recipe with some settings changed, with three seeds each on 20 classes of
../shared/cars with MobileNetV2's file (or --backbone and --weights), at 224 px in float32 by
default; `finetune` is the other recipe. The best epoch on the validation images is evaluated on the
817 test images. What is in --out is kept, so that the command can be run again (--minutes 4) until
all trainings are there; prints those. Heads train on features that are computed once, of the pixels
they would see.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.io.markers import replace_at
from cluster.runtime import connect
from cluster.scaling import in_process
from datasets.manifest_file import read_manifest
from datasets.passes.features import count_bytes
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from tests.bench.report import ROOT
from tests.support.training import train_here
from trainers.config import ComputeConfig, FinetuneConfig, TrackConfig
from trainers.evaluation import split as split_module
from trainers.evaluation.evaluate import evaluate
from trainers.inference.prefix import open_frozen
from trainers.networks.backbones import find
from trainers.networks.freezing import is_head_only
from trainers.prepare import PrefixFeatures
from trainers.recipes import RECIPES
from trainers.run.folder import read_result
from tuning.config import TuningConfig
from tuning.sharing.keys import network_of, prefix_key
from tuning.sharing.plan import PrefixPlan, SharingPlan
from tuning.sharing.prefixes import PrefixStore

SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_imagenet.pth"
SEEDS = (0, 1, 2)
T_95 = 4.303
"""Of three values: the mean's 95 percent interval is this many standard errors to each side."""

Changes = dict[str, Any]
VARIANTS: dict[str, dict[str, Changes]] = {
    "transfer": {
        "recipe": {},
        "learning rate 1e-3": {"optim.learning_rate": 1e-3},
        "without average": {"optim.ema_decay": None},
        "cosine": {"schedule.schedule": "cosine"},
        "policy none": {"ingest.policy": "none"},
        "label smoothing 0.1": {"loss.label_smoothing": 0.1},
        "AdamW, weight decay 0.05": {"optim.optimizer": "adamw", "optim.weight_decay": 0.05},
        "30 epochs": {"epochs": 30},
        "policy light": {"ingest.policy": "light"},
        "policy cars": {"ingest.policy": "cars"},
        "before: cars, 1e-3, no average": {
            "ingest.policy": "cars",
            "optim.learning_rate": 1e-3,
            "optim.ema_decay": None,
        },
    },
    "finetune": {
        "recipe": {},
        "before: cars, layer decay, mixup": {
            "ingest.policy": "cars",
            "optim.layer_decay": 0.7,
            "loss.mixup_alpha": 0.1,
        },
        "policy cars": {"ingest.policy": "cars"},
        "policy flip": {"ingest.policy": "flip"},
        "layer decay 0.7": {"optim.layer_decay": 0.7},
        "mixup 0.1": {"loss.mixup_alpha": 0.1},
        "without label smoothing": {"loss.label_smoothing": 0.0},
        "without average": {"optim.ema_decay": None},
        "without clipping": {"optim.global_clipnorm": None},
        "without weight decay": {"optim.weight_decay": 0.0},
        "without warm-up": {"schedule.warmup_epochs": 0.0},
        "constant rate": {"schedule.schedule": "constant"},
        "learning rate 3e-3": {"optim.learning_rate": 3e-3},
        "whole network": {"model.freeze_depth": 0},
    },
}


def training_of(recipe: str, changes: Changes, seed: int, options: Any) -> FinetuneConfig:
    config = RECIPES[recipe]
    model = replace(
        config.model,
        backbone=options.backbone,
        init="file",
        weights=str(options.weights.absolute()),
        normalization="half",
    )
    fixed: Changes = {
        "data": str(options.out.absolute() / "cars"),
        "seed": seed,
        "model": model,
        "compute": ComputeConfig(precision=options.precision),
        "track": TrackConfig(wandb="off"),
        "cluster": in_process(config.cluster),
        "ingest": replace(config.ingest, size_px=options.size_px),
    }
    return replace_at(replace(config, **fixed), changes)


def build_features(config: FinetuneConfig, out: Path) -> PrefixFeatures:
    """Compute the features that a training of a head is shown, unless they are in the cache."""
    network, depth = prefix_key(config)
    manifest = read_manifest(config.data)
    (shape,) = open_frozen(network, len(manifest.classes)).shapes([depth])
    num_views = config.ingest.num_views(config.epochs)
    num_images = num_views * manifest.split("train").num_images + manifest.split("val").num_images
    prefix = PrefixPlan(
        network=network_of(config),
        name="file",
        depth=depth,
        stage=find(config.model.backbone).stages[depth - 1][0],
        num_trials=1,
        num_views=num_views,
        shape=shape,
        num_bytes=num_images * count_bytes(shape),
        flops=0.0,
    )
    sweep = TuningConfig(base=config, out=str(out), cache=str(out / "cache"))
    built = PrefixStore(sweep, manifest, connect(quiet=True)).build(SharingPlan(prefixes=(prefix,)))
    return built.prefixes[network, depth]


def measure(config: FinetuneConfig, out: Path) -> float:
    """Train, unless that is done; return top-1 on the test split."""
    file = Path(config.out, "top1.txt")
    if not file.exists():
        prefix = build_features(config, out) if is_head_only(config.model) else None
        train_here(config, prefix=prefix)
        file.write_text(str(evaluate(config.out, split="test").is_correct_N.mean()))
    return float(file.read_text())


def describe(top1s: list[float], best: float, gains: list[float]) -> str:
    """Write a variant's row: means, their intervals, and the difference to the recipe by seed."""
    row = f"{np.mean(top1s):.3f} {_interval(top1s)}  val {best:.3f}  "
    row += f"({', '.join(f'{top1:.3f}' for top1 in top1s)})"
    return row + f"  {np.mean(gains):+.3f} {_interval(gains)}" if any(gains) else row


def _interval(values: list[float]) -> str:
    if len(values) < len(SEEDS):
        return "      "
    return f"± {T_95 * np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=VARIANTS)
    parser.add_argument("--minutes", type=float, default=1000.0, help="start no training after")
    parser.add_argument("--variants", nargs="+", help="besides the recipe; all by default")
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "recipes")
    options = parser.parse_args()
    ends_s = time.monotonic() + 60 * options.minutes
    connect(None, quiet=True)
    out = options.out.absolute()
    network = options.backbone.replace("/", "-")
    settings = f"{options.recipe}-{network}-{options.size_px}-{options.precision}"
    if not (out / "cars" / "manifest.json").exists():
        prepare(
            PrepareConfig(source="folder", root=str(SHARED / "cars" / "train"),
                          test_root=str(SHARED / "cars" / "test"), out=str(out / "cars"))
        )  # fmt: skip
    split_module.FEW_IMAGES = 10**6  # in this process, which has the network and its memory
    recipe: list[float] = []
    variants = VARIANTS[options.recipe]
    for name in ("recipe", *options.variants) if options.variants else variants:
        changes = variants[name]
        top1s, vals = [], []
        for seed in SEEDS:
            folder = f"{settings}-{'-'.join(name.replace(':', '').split())}-{seed}"
            config = training_of(options.recipe, changes, seed, options)
            config = replace(config, out=str(out / "trials" / folder))  # beside OUT/prefixes
            if time.monotonic() < ends_s or Path(config.out, "top1.txt").exists():
                top1s.append(measure(config, out))
                vals.append(read_result(config.out)["val/best_top1"])
        recipe = recipe or top1s
        if top1s:
            gains = [top1 - of_recipe for top1, of_recipe in zip(top1s, recipe, strict=False)]
            print(f"{name:<31} {describe(top1s, float(np.mean(vals)), gains)}", flush=True)


if __name__ == "__main__":
    main()
