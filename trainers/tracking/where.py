"""Where a run is tracked: options, W&B's variables and settings; imports no wandb."""

import os

from cluster import wandb_env
from cluster.wandb_env import Setting
from trainers.config import TrackConfig


def project_of(track: TrackConfig) -> str:
    """Return the project: of the option, else as the user has set up W&B, else ours."""
    if track.project is not None:
        return track.project
    found = wandb_env.find_setting("project")
    return found.value if found else wandb_env.PROJECT


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
