"""Options of `submit`, `status`, `logs` and `stop`; tyro's marks are all that it imports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from cluster.config import SubmitConfig
from cluster.dispatch import parse_options
from cluster.io.errors import require_positive

Job = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="JOB")]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A command, and how it is submitted."""

    config: SubmitConfig
    command: tuple[str, ...]


def parse_submission(verb: str, options: Sequence[str], help: str) -> Submission:
    """Parse the options of `submit`; what follows `--` is the command."""
    end = options.index("--") if "--" in options else len(options)
    config = parse_options(SubmitConfig, options[:end], prog=f"python -m cluster {verb}", help=help)
    return Submission(config=config, command=tuple(options[end + 1 :]))


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Show the state of a job. Without JOB, list the jobs of the cluster."""

    job: Job = None
    """Name of the job, as `submit` printed it."""
    address: str | None = None
    """URL of the job server. Default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."""


@dataclass(frozen=True, kw_only=True)
class StopConfig(StatusConfig):
    """Stop a job, with time to save its state. Without JOB, list the jobs of the cluster."""


@dataclass(frozen=True, kw_only=True)
class LogsConfig(StatusConfig):
    """Print the log of a job. Without JOB, list the jobs of the cluster."""

    follow: bool = False
    """Follow the log until the job ends, and exit with its code."""
    reconnect_s: float = SubmitConfig.reconnect_s
    """Seconds to retry while the job server does not answer, before the log is given up."""

    def __post_init__(self) -> None:
        require_positive("reconnect_s", self.reconnect_s)
