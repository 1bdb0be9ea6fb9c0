"""The demo: a whole sweep on synthetic cars, in minutes on two cores."""

from dataclasses import replace
from typing import Any

from cluster.config import ClusterConfig
from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.terminal import report
from cluster.runtime import connect
from datasets.config import IngestConfig
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from datasets.synthetic.config import SyntheticConfig
from trainers.commands import run_training
from trainers.config import (
    FinetuneConfig,
    Init,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrackConfig,
)
from trainers.networks.weights.pretrained import pretrained_available
from trainers.run.folder import read_result
from tuning.config import DemoConfig, SpaceConfig, TuningConfig
from tuning.review.config import ReviewConfig
from tuning.review.review import run_review
from tuning.run import tune_sweep

# ResNet50 at 64 px on two cores, images/s: 210 forward, 55 trained whole in one process, 35 by DDP.
SIZE_PX = 64
BATCH_SIZE = 32
TARGET = SyntheticConfig(num_classes=10, train_per_class=40, test_per_class=20, render_px=96)
"""Ten car models, which are the classes."""
TARGET_EPOCHS = 4
RANDOM_INITS: tuple[Init, ...] = ("he", "zeros")
SPACE = SpaceConfig(
    freeze_depths=("all", 4, 3, 0),
    learning_rates=(3e-3, 1e-3, 3e-4),
    clipnorms=(None, 1.0),
    inits=("imagenet", *RANDOM_INITS),
)
NUM_TRIALS = 24
SWEEP_SEED = 228
"""Draws each pair of initialization and depth twice or more often."""
SOURCE = SyntheticConfig(
    num_classes=60, train_per_class=36, test_per_class=2, render_px=96, label_by="body", seed=1
)
"""Replaces ImageNet offline: the body types of sixty other cars."""
SOURCE_EPOCHS = 3
SOURCE_LEARNING_RATE = 1e-3
DEMO_GROUP = "demo"


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Prepare, pretrain where ImageNet weights are not available, sweep, and write the review page;
    return the answer.

    Raises:
        UserError: where the given weights are missing.
    """
    connect(config.address)
    out = storage.absolute(config.out, "out")
    base = FinetuneConfig(
        data=_prepare(TARGET, storage.join(out, "cars")),
        epochs=TARGET_EPOCHS,
        global_batch_size=BATCH_SIZE,
        ingest=IngestConfig(size_px=SIZE_PX, policy="light"),
        model=ModelConfig(backbone="resnet50", weights=config.weights),
        track=TrackConfig(wandb=config.wandb, group=DEMO_GROUP),
        cluster=ClusterConfig(address=config.address),
    )
    space = SPACE
    if (problem := pretrained_available(base.model)) is not None:
        if config.weights is not None:
            raise UserError(problem)
        print(f"{problem}: pretraining on the body types of other cars instead")
        weights = _pretrain(
            replace(base, data=_prepare(SOURCE, storage.join(out, "other_cars"))), out
        )
        base = replace(base, model=replace(base.model, init="file", weights=weights))
        space = replace(space, inits=("file", *RANDOM_INITS))
    sweep = TuningConfig(
        base=base,
        space=space,
        out=storage.join(out, "sweep"),
        trials=NUM_TRIALS,
        seed=SWEEP_SEED,
    )
    answer = tune_sweep(sweep)
    run_review(ReviewConfig(out=sweep.out))
    return answer


def _prepare(cars: SyntheticConfig, uri: str) -> str:
    """Render a data set, unless it exists; return its URI."""
    if not storage.exists(storage.join(uri, "manifest.json")):
        report(f"Rendering {cars.num_classes} car models into {uri}")
    prepare(
        PrepareConfig(source="synthetic", out=uri, short_side_px=cars.render_px, synthetic=cars)
    )
    return uri


def _pretrain(base: FinetuneConfig, out: str) -> str:
    """Train ResNet50 on the source task, unless that is done; return its weights' URI."""
    config = replace(
        base,
        out=storage.join(out, "pretrained"),
        epochs=SOURCE_EPOCHS,
        model=replace(base.model, init="he"),
        optim=OptimConfig(
            optimizer="adamw", learning_rate=SOURCE_LEARNING_RATE, global_clipnorm=1.0
        ),
        schedule=ScheduleConfig(schedule="cosine", warmup_epochs=0.25),
        # In this process: on a few cores, DDP would copy 94 MB of gradients at every small step.
        cluster=replace(base.cluster, num_workers=0),
    )
    if storage.exists(storage.join(config.out, "result.json")):
        report(f"{config.out}: reused, the network is pretrained")
    else:
        run_training(config)
    return storage.join(read_result(config.out)["checkpoint"], "model.safetensors")
