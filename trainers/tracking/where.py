"""Where a run is tracked: options, W&B's variables and settings; imports no wandb."""

import os

from cluster import wandb_env
from cluster.wandb_env import Setting
from trainers.config import TrackConfig
from trainers.run.rows import find_mode


def project_of(track: TrackConfig) -> str:
    """Return the project: of the option, else as the user has set up W&B, else ours."""
    if track.project is not None:
        return track.project
    found = wandb_env.find_setting("project")
    return found.value if found else wandb_env.PROJECT


def require_settings(track: TrackConfig) -> None:
    """Refuse settings of W&B with which no run could start, unless nothing is tracked.

    Raises:
        UserError: naming the variable, or the setting and its file.
    """
    if find_mode(track) != "off":
        wandb_env.check_settings()


def require_tags(track: TrackConfig) -> None:
    """Refuse tags that W&B refuses: of a new command, as a run folder of an older Thaw may have
    them."""
    for tag in track.tags:
        wandb_env.require_tag("track.tags", tag)


def describe_tracking(track: TrackConfig) -> str:
    """Write where a run is tracked and why, and which variables are not used."""
    mode = wandb_env.find_mode() if track.wandb == "auto" else Setting(track.wandb, "--wandb")
    line = f"{mode.value} ({mode.source})"
    if mode.value != "off":
        server = f" at {wandb_env.find_base_url()}" if mode.value == "online" else ""
        line += f"{server}, project {project_of(track)}"
    if unused := [name for name in wandb_env.NOT_USED if os.environ.get(name)]:
        line += f"; {', '.join(unused)} not used, as the run folder decides"
    return line
