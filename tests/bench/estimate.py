"""How far the estimate of a sweep is from its time: python -m tests.bench.estimate.

Three sweeps of different kinds over 20 classes of ../shared/cars, with an empty cache each: heads
on shared features, networks that train on images, and a random search with pruning over both. Timed
is `tune_sweep` whole, with the test of the winner, in a Ray that runs.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from cluster.runtime import connect
from datasets.config import IngestConfig
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from tests.bench.report import ROOT, keep
from trainers.config import FinetuneConfig, ModelConfig, TrackConfig
from tuning import run, sweep_plan
from tuning.budget.config import BudgetConfig
from tuning.config import SpaceConfig, TuningConfig

SHARED = ROOT.parent / "shared"
TARGET = 0.25
"""Most that an estimate may differ from the time, as a share of the time."""
PLENTY = BudgetConfig(time="10h")
"""A budget has the sweep estimated, and this one leaves nothing out."""


def sweeps_of(data: str, folder: str) -> dict[str, TuningConfig]:
    base = FinetuneConfig(
        data=data,
        epochs=10,
        ingest=IngestConfig(policy="light"),
        model=ModelConfig(
            backbone="mobilenet_v2",
            init="file",
            weights=str(SHARED / "weights" / "mobilenet_v2_imagenet.pth"),
            normalization="half",
        ),
        track=TrackConfig(wandb="off"),
    )

    def sweep(name: str, epochs: int, space: dict[str, Any], **options: Any) -> TuningConfig:
        return TuningConfig(
            base=replace(base, epochs=epochs),
            space=SpaceConfig(inits=("file",), **space),
            out=f"{folder}/{name}",
            cache=f"{folder}/cache-{name}",
            budget=PLENTY,
            **options,
        )

    rates = tuple(1e-3 * 1.3**step for step in range(-4, 5))
    return {
        "heads": sweep(
            "heads", 10, {"freeze_depths": ("all",), "learning_rates": rates}, search="grid"
        ),
        "images": sweep(
            "images",
            2,
            {"freeze_depths": (0, 2), "learning_rates": (1e-3, 3e-4), "clipnorms": (None,)},
            search="grid",
        ),
        "random": sweep(
            "random",
            4,
            {"freeze_depths": ("all", 6, 4, 0), "learning_rates": rates},
            search="random",
            trials=10,
        ),
    }


def measure(config: TuningConfig) -> tuple[float, float]:
    """Return the seconds that were estimated, and those that the sweep took."""
    found: list[float] = []
    measure_forecast = sweep_plan.measure_forecast

    def keep_estimate(*given: Any) -> Any:
        forecast = measure_forecast(*given)
        found.append(forecast.estimate(given[0]).seconds)
        return forecast

    started_s = time.perf_counter()
    with patch.object(sweep_plan, "measure_forecast", keep_estimate):
        run.tune_sweep(config)
    return found[0], time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("heads", "images", "random"))
    options = parser.parse_args()
    connect(quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        cars = SHARED / "cars"
        data = f"{folder}/cars"
        prepare(
            PrepareConfig(
                source="folder", root=str(cars / "train"), test_root=str(cars / "test"), out=data
            )
        )
        rows = []
        for name, config in sweeps_of(data, folder).items():
            if options.only in (None, name):
                estimated_s, took_s = measure(config)
                error = abs(estimated_s - took_s) / took_s
                print(
                    f"{name}: estimated {estimated_s:.0f} s, took {took_s:.0f} s: off by "
                    f"{error:.0%} (at most {TARGET:.0%})",
                    flush=True,
                )
                rows.append(
                    {
                        "name": f"sweep/estimate_error_{name}",
                        "ours": estimated_s,
                        "peer": took_s,
                        "unit": "s",
                        "ratio": error,
                        "target": TARGET,
                        "limit_fraction": TARGET / max(error, TARGET),
                        "runs": 1,
                    }
                )
        keep(rows)


if __name__ == "__main__":
    main()
