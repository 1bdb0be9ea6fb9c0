"""A sweep of Ray Tune alone, whose trials only read a few numbers by Ray Data: what grows here too
is Ray's.

usage: python -m tests.soak.plain --out DIR --address HOST:PORT
"""

import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
import tyro
from ray import tune

NUM_TRIALS = 5000
BLOCKS = 8


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """Where."""

    out: Path
    """Folder of Tune's."""
    address: str
    """Of a cluster that runs."""


def run_trial(params: dict[str, Any]) -> None:
    """Read as many data sets as a trial of ours: one to train on, one to validate."""
    for _ in range(2):
        data = ray.data.range(8 * BLOCKS, override_num_blocks=BLOCKS)
        num_rows = sum(len(batch["id"]) for batch in data.iter_batches(batch_size=8))
        assert num_rows == 8 * BLOCKS
    tune.report({"number": params["number"]})


def main(config: PlainConfig) -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(config.address, log_to_driver=False)
    signal.signal(signal.SIGTERM, lambda signum, frame: os._exit(128 + signum))
    tune.Tuner(
        tune.with_resources(run_trial, {"CPU": 1}),
        param_space={"number": tune.grid_search([*range(NUM_TRIALS)])},
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(name="tune", storage_path=str(config.out), verbose=0),
    ).fit()


if __name__ == "__main__":
    main(tyro.cli(PlainConfig, description=__doc__))
