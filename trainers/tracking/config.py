"""Options of `track`; tyro's marks are all that it imports."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Read the W&B runs of a training or a sweep back from their files, and say what is wrong.

      python -m trainers track check runs/tuned
      python -m trainers track check runs/sweep --json

    Each run must have all rows of metrics.jsonl once, its config, names, axes, end, tables,
    pictures and artifacts; no file may hold a key of this environment. Exit code 1 where anything
    is wrong.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """URI of a run folder, or of a whole sweep's."""
    json: bool = False
    """Print JSON, for machines."""


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """Upload what W&B does not have of a training or a sweep; without a key, print the commands.

      python -m trainers track sync runs/tuned
      WANDB_BASE_URL=https://wandb.example.com python -m trainers track sync s3://bucket/sweep

    Exit code 1 where something is left.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """URI of a run folder, or of a whole sweep's."""
    dry_run: bool = False
    """Print the commands only."""


_Verb = (
    Annotated[CheckConfig, tyro.conf.subcommand("check")]
    | Annotated[SyncConfig, tyro.conf.subcommand("sync")]
)


@dataclass(frozen=True, kw_only=True)
class TrackVerb:
    """Look after the W&B runs of a training or a sweep."""

    verb: Annotated[_Verb, tyro.conf.arg(name="")]
