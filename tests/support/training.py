"""Train a config as a script does: prepared, then fitted."""

from typing import Any

from trainers import launch
from trainers.config import FinetuneConfig
from trainers.prepare import prepare_run


def train_here(config: FinetuneConfig, *, report: Any = lambda row: None, **options: Any) -> Any:
    """Train in this process and return result.json; `options` are those of `prepare_run`."""
    return launch.fit_in_process(prepare_run(config, here=True, **options), report=report)


def train_in_workers(config: FinetuneConfig) -> Any:
    """Train in DDP workers and return result.json."""
    return launch.fit(prepare_run(config))
