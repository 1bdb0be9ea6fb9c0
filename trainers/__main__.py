"""python -m trainers [RECIPE] --data URI ... | evaluate --run URI"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from cluster.entry import run_room
from cluster.runtime import connect
from datasets import storage
from trainers import launch, metrics, runs, tracking
from trainers.config import FinetuneConfig
from trainers.evaluate import evaluate
from trainers.recipes import RECIPES

HELP = f"""Fine-tune a network on a prepared data set, with DDP under Ray Train.

RECIPE is one of {", ".join(RECIPES)} (default transfer); every field below changes it:

  python -m trainers transfer --data runs/cars
  python -m trainers finetune --data runs/cars --freeze-depth 2 --learning-rate 1e-4
  python -m trainers scratch  --data runs/cars --backbone mobilenet_v2 --num-workers 2

The same command again resumes; `python -m trainers evaluate --run OUT` measures the best
checkpoint on the test split.
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a run's best checkpoint on a split, each image once; writes evaluation_SPLIT.json."""

    run: str
    """Run folder of a training."""
    split: Literal["train", "val", "test"] = "test"
    """Which images."""
    data: str | None = None
    """URI of another data set of the same classes."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""


def main(arguments: list[str]) -> None:
    config = parse(arguments)
    if isinstance(config, FinetuneConfig):
        run_training(config)
    else:
        next(run for of_verb, run in VERBS.values() if of_verb is type(config))(config)


def parse(arguments: list[str]) -> Any:
    """Parse a recipe or verb and its options into a FinetuneConfig, or the verb's config.

    Raises:
        ValueError: for an unknown recipe, or values that don't fit.
    """
    recipe = "transfer"
    if arguments and not arguments[0].startswith("-"):
        recipe, *arguments = arguments
    if recipe in VERBS:
        return tyro.cli(VERBS[recipe][0], args=arguments, prog=f"python -m trainers {recipe}")
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}: choose from {', '.join([*RECIPES, *VERBS])}")
    return tyro.cli(
        FinetuneConfig,
        default=RECIPES[recipe],
        args=arguments,
        prog=f"python -m trainers {recipe}",
        description=HELP,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def run_training(config: FinetuneConfig) -> None:
    """Check, connect, train; print progress, the result and what to do next."""
    if not config.data:
        raise ValueError("data is '': give --data URI of a prepared data set")
    manifest = launch.check(config)
    resources = connect(config.cluster.address)
    _, ingest = launch.plan_ingest(
        config, manifest, resources, launch.plan_training(config, resources)
    )
    run = storage.absolute(config.out, "out")
    print(
        f"Training {config.model.backbone} ({config.model.init}, freeze depth "
        f"{config.model.freeze_depth}) on {manifest.split('train').num_images} images of "
        f"{len(manifest.classes)} classes -> {run}"
    )
    print(f"Ingest: {ingest}")
    mirror = tracking.RunMirror(
        run,
        track=config.track,
        name=run.rsplit("/", 1)[-1],
        group=config.track.group,
        job_type="train",
        config=config.to_dict(),
    )
    sync = mirror.sync_command()
    with tracking.follow(run, mirror, lambda row: show(row, config.epochs)):
        result = launch.fit(config)
    print(f"Best val/top1 {result[metrics.VAL_BEST_TOP1]:.4f} in epoch {result['best_epoch']}")
    print(f"Weights:  {result['checkpoint']}/model.safetensors")
    print(f"Test it:  python -m trainers evaluate --run {config.out}")
    if sync:
        print(f"W&B:      {sync}")


def show(row: dict[str, Any], num_epochs: int) -> None:
    """Print a line for a row of metrics.jsonl."""
    line = (
        f"epoch {row[metrics.EPOCH]}/{num_epochs}  step {row[metrics.GLOBAL_STEP]}  "
        f"train loss {row[metrics.TRAIN_LOSS]:.4f} top-1 {row[metrics.TRAIN_TOP1]:.3f}"
    )
    if metrics.VAL_TOP1 in row:
        line += (
            f"  val loss {row[metrics.VAL_LOSS]:.4f} top-1 {row[metrics.VAL_TOP1]:.3f} "
            f"(best {row[metrics.VAL_BEST_TOP1]:.3f})  {row[metrics.IMAGES_PER_S]:.0f} images/s, "
            f"waited {row[metrics.WAIT_S]:.1f} of {row[metrics.EPOCH_S]:.1f} s"
        )
        if row[metrics.LOST_IMAGES]:
            line += f", {row[metrics.LOST_IMAGES]} images lost: {row[metrics.LOST_NAMES][0]}"
    print(line, flush=True)


def run_evaluation(config: EvaluateConfig) -> None:
    """Evaluate and print the result as JSON."""
    runs.read_config(config.run)
    connect(config.address)
    result = evaluate(config.run, split=config.split, data=config.data)
    print(json.dumps(result, indent=1))


VERBS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "evaluate": (EvaluateConfig, run_evaluation),
}
"""What can be done besides training: name -> its config, and what runs it."""


if __name__ == "__main__":
    run_room(main)
