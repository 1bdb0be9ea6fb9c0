"""Sweeps that share their work against the same trials as plain Ray Tune + Train + Data.

`python -m tests.bench.sweep` needs ../shared and an idle machine of two cores for 20 minutes. A few
plain trials are measured, for a few epochs, and extrapolated: start + epochs x the median epoch.
"""

import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.runtime import connect
from datasets.config import IngestConfig
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from tests.bench.peers.plain_sweep import run_trials
from tests.bench.report import report, to_row
from trainers.config import FinetuneConfig, ModelConfig, OptimConfig, TrackConfig
from trainers.run.folder import read_config
from trainers.run.rows import read_rows
from tuning.config import SpaceConfig, TuningConfig
from tuning.run import tune_sweep

SHARED = Path(__file__).resolve().parents[3] / "shared"
WEIGHTS = str(SHARED / "weights" / "mobilenet_v2_imagenet.pth")
NUM_FROZEN = {"all": 19, 6: 18, 0: 0}
"""Children of torchvision's `features` that a freeze depth freezes."""
PLAIN_EPOCHS = 2
HEAD_EPOCHS, MIXED_EPOCHS = 10, 4


def our_sweep(data: str, folder: str, name: str, epochs: int, space: SpaceConfig, **search: Any):
    """Run a sweep with an empty cache; returns its answer and seconds."""
    base = FinetuneConfig(
        data=data,
        epochs=epochs,
        ingest=IngestConfig(policy="light"),
        model=ModelConfig(
            backbone="mobilenet_v2", init="file", weights=WEIGHTS, normalization="half"
        ),
        optim=OptimConfig(),
        track=TrackConfig(wandb="offline"),
    )
    config = TuningConfig(
        base=base,
        space=space,
        out=f"{folder}/{name}",
        cache=f"{folder}/cache-{name}",
        grace_epochs=epochs,
        evaluate_winner=False,
        combine=False,
        **search,
    )
    started = time.perf_counter()
    return tune_sweep(config), time.perf_counter() - started


def compare(name: str, answer: dict, ours_s: float, plain_s: float, target: float) -> dict:
    """The limit is what the trainings and the feature pass took by themselves."""
    num_trials = len(answer["trials"])
    trained = [row for row in answer["trials"] if row["copied_from"] is None]
    limit_s = sum(row["seconds"] for row in trained) + answer["sharing"]["computed_s"]
    return to_row(
        name,
        ours=num_trials / ours_s,
        peer=num_trials / plain_s,
        limit=num_trials / min(limit_s, ours_s),
        target=target,
        num_runs=1,
    )


def compare_accuracies(answer: dict, depth: Any, rate: float, plain: list[float]) -> None:
    """Print what both had after the epochs that were measured."""
    for row in answer["trials"]:
        point = row["model.freeze_depth"], row["optim.learning_rate"]
        if point == (depth, rate) and row["copied_from"] is None:
            ours = [r["val/top1"] for r in read_rows(row["run"]) if "val/top1" in r]
            shown = [f"{value:.3f}" for value in ours[: len(plain)]]
            assert read_config(row["run"]).model.freeze_depth == depth
            print(f"freeze {depth}, rate {rate}: ours {shown}, plain {[f'{v:.3f}' for v in plain]}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        connect()
        data = f"{folder}/cars"
        cars = SHARED / "cars"
        prepare(
            PrepareConfig(
                source="folder", root=str(cars / "train"), test_root=str(cars / "test"), out=data
            )
        )
        head_space = SpaceConfig(
            freeze_depths=("all",),
            learning_rates=tuple(1e-3 * 1.2**step for step in range(-5, 7)),
            inits=("file",),
        )
        head, head_s = our_sweep(data, folder, "head", HEAD_EPOCHS, head_space, search="grid")
        mixed_space = replace(
            head_space,
            freeze_depths=("all", 6, 0),
            learning_rates=(1e-3, 3e-4),
            clipnorms=(None, 10.0),
        )
        mixed, mixed_s = our_sweep(data, folder, "mixed", MIXED_EPOCHS, mixed_space, search="grid")
        points = [
            {"num_frozen": NUM_FROZEN[depth], "learning_rate": 1e-3} for depth in ("all", 6, 0)
        ]
        plain = dict(
            zip(
                ("all", 6, 0),
                run_trials(points, data=data, weights=WEIGHTS, epochs=PLAIN_EPOCHS, folder=folder),
                strict=True,
            )
        )
        for depth, measured in plain.items():
            compare_accuracies(mixed, depth, 1e-3, measured["val"])
        compare_accuracies(head, "all", 1e-3, plain["all"]["val"])

        def extrapolate(depth: Any, epochs: int) -> float:
            return plain[depth]["start_s"] + epochs * plain[depth]["epoch_s"]

        depths = Counter(row["model.freeze_depth"] for row in mixed["trials"])
        plain_mixed_s = sum(n * extrapolate(depth, MIXED_EPOCHS) for depth, n in depths.items())
        plain_head_s = len(head["trials"]) * extrapolate("all", HEAD_EPOCHS)
        arithmetic_s = sum(row["seconds"] for row in head["trials"])
        print(
            f"head only: {len(head['trials'])} trials in {head_s:.0f} s, of which features "
            f"{head['sharing']['computed_s']:.0f} s and training {arithmetic_s:.0f} s (two at a "
            f"time); plain {plain_head_s:.0f} s\nmixed: {len(mixed['trials'])} trials in "
            f"{mixed_s:.0f} s; plain {plain_mixed_s:.0f} s"
        )
        report(
            [
                compare("sweep/head_only_vs_plain", head, head_s, plain_head_s, 150.0),
                compare("sweep/mixed_vs_plain", mixed, mixed_s, plain_mixed_s, 10.0),
            ]
        )


if __name__ == "__main__":
    main()
