"""A finished sweep as a sweep of W&B, whose own page then compares the trials.

W&B adds runs to a sweep only as it is created, and only runs that its server has.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import wandb

from cluster.wandb_env import find_base_url
from trainers.tracking.local_runs import read_id
from tuning.axes.axis import Axis
from tuning.record.record import SweepRecord
from tuning.wandb.panels import BEST

METHODS = {"random": "random", "grid": "grid", "optuna": "bayes"}
VARIABLES = ("WANDB_ENTITY", "WANDB_PROJECT")
"""Set by `wandb.sweep`, for agents that start later in the process."""


def list_runs(record: SweepRecord) -> list[str]:
    """Return the ids of the trials' runs in W&B."""
    return [run for trial in record.trials if (run := read_id(trial.run)) is not None]


def create_sweep(entity: str, project: str, record: SweepRecord) -> str:
    """Create the sweep with the runs of its trials; return its id."""
    config, runs = describe_sweep(record), list_runs(record)
    with (
        _same_environment(),
        contextlib.redirect_stdout(io.StringIO()),  # it prints its id
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Read the `app_url`", DeprecationWarning)  # its own use
        return wandb.sweep(config, entity=entity, project=project, prior_runs=runs)


def url_of(entity: str, project: str, sweep_id: str) -> str:
    path = "/".join(quote(part) for part in (entity, project, "sweeps", sweep_id))
    return f"{wandb.Settings(base_url=find_base_url()).app_url}/{path}"


def describe_sweep(record: SweepRecord) -> dict[str, Any]:
    """Return W&B's config of a sweep: its axes below the sections of a run's config."""
    parameters: dict[str, Any] = {}
    for axis in record.config.space.all_axes:
        section, _, name = axis.field.rpartition(".")
        below = parameters
        for part in section.split(".") if section else ():
            below = below.setdefault(part, {"parameters": {}})["parameters"]
        below[name] = _merge(below.get(name), _describe_axis(axis))
    return {
        "name": record.config.group,
        "method": METHODS[record.config.search],
        "metric": {"name": BEST, "goal": "maximize"},
        "parameters": parameters,
    }


def _describe_axis(axis: Axis) -> dict[str, Any]:
    if axis.range is None:
        return {"values": list(axis.values)}
    low, high = axis.range
    distribution = "int_uniform" if axis.is_whole else "uniform"
    if axis.log:
        distribution = "log_uniform_values"
    return {"distribution": distribution, "min": low, "max": high}


def _merge(known: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Join the values of two axes of one field that apply under different conditions."""
    if known is None or "values" not in known or "values" not in new:
        return new
    return {"values": list(dict.fromkeys([*known["values"], *new["values"]]))}


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
