"""Options of `track sync`; tyro's annotations are all that it imports."""

import shlex
from dataclasses import dataclass
from typing import Annotated

import tyro

from cluster.io.errors import require
from cluster.io.markers import URI


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """Upload the W&B runs of a training or a sweep. Without a key, print the commands.

      python -m trainers track sync runs/tuned
      WANDB_BASE_URL=https://wandb.example.com python -m trainers track sync s3://bucket/sweep

    Only runs and rows that W&B does not have are sent. The exit code is 1 if an upload failed.
    """

    action: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="sync")]
    """Always `sync`."""
    run: Annotated[str, URI, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """URI of a run folder or a sweep folder."""
    dry_run: bool = False
    """Only print the commands."""

    def __post_init__(self) -> None:
        require(self.action == "sync", "action", self.action, "use `sync`, the only action")


def sync_command(folder: str) -> str:
    """Return the command that uploads the runs of a folder that W&B does not have."""
    return f"python -m trainers track sync {shlex.quote(folder)}"
