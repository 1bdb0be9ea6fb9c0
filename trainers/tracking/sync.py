"""Uploads offline runs, and the rest of interrupted online ones, by `wandb sync`."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from cluster.io.terminal import literal_console
from cluster.wandb_env import (
    check_settings,
    drop_empty_variables,
    find_base_url,
    find_key,
    find_login,
)
from trainers.tracking.config import SyncConfig, sync_command
from trainers.tracking.local_runs import TrackedFolder, find_folders, local_copy
from trainers.tracking.sessions import keep_marks
from trainers.tracking.wandb_internals import is_synced

WANDB = str(Path(sys.executable).with_name("wandb"))


def run_sync(config: SyncConfig) -> None:
    """Upload, and print what became of each run.

    Raises:
        SystemExit: with code 1 where a run could not be uploaded.
        UserError: where nothing there is tracked, or W&B's client would refuse its settings.
    """
    check_settings()
    with tempfile.TemporaryDirectory() as scratch:
        path = local_copy(config.run, scratch)
        if not sync_folders(find_folders(path, config.run), config):
            raise SystemExit(1)


def sync_folders(folders: Sequence[TrackedFolder], config: SyncConfig) -> bool:
    """Upload each run that W&B lacks, or print how; return whether W&B has all."""
    elsewhere = [(folder.name, why) for folder in folders if (why := folder.why_elsewhere)]
    for name, why in elsewhere:
        print(f"FAILED   {name}: {why}")
    lacking = [folder for folder in folders if folder.missing]
    if not lacking:
        if not elsewhere:
            print(f"W&B has all {len(folders)} runs of {config.run}")
        return not elsewhere
    if config.dry_run or find_key() is None:
        if not config.dry_run:
            print("No key of W&B: set WANDB_API_KEY, or log in with `wandb login`. Then:")
        for command in describe_commands(lacking, config.run):
            print(command)
        return config.dry_run and not elsewhere
    num_synced = 0
    with Progress(console=literal_console(stderr=True), transient=True) as progress:
        task = progress.add_task("Uploading to W&B", total=len(lacking))
        for folder in lacking:
            reason = sync(folder)
            num_synced += reason is None
            print(
                f"synced   {folder.name}" if reason is None else f"FAILED   {folder.name}: {reason}"
            )
            progress.advance(task)
    print(f"Uploaded {num_synced} of {len(lacking)} runs to {find_base_url()}")
    return num_synced == len(lacking) and not elsewhere


def sync(folder: TrackedFolder) -> str | None:
    """Upload a run; return W&B's reason where it did not take all of it, else None."""
    missing = folder.missing
    environment = dict(os.environ)
    drop_empty_variables(environment)
    if (key := find_login()) is not None:
        environment["WANDB_API_KEY"] = key
    with tempfile.TemporaryDirectory() as scratch:  # wandb writes a log into its working directory
        done = subprocess.run(
            [WANDB, *sync_arguments(folder)],
            cwd=scratch,
            env=environment,
            capture_output=True,
            text=True,
        )
    if "://" in folder.name:
        keep_marks(folder.name, missing)
    # Its exit code is 0 also where the server refused the key.
    if all(is_synced(session) for session in missing):
        return None
    lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no reason given"]
    return (
        f"{lines[-1].removeprefix('wandb: ')}; check WANDB_BASE_URL ({find_base_url()}) and the key"
    )


def sync_arguments(folder: TrackedFolder) -> list[str]:
    """Return the arguments of `wandb`: all missing sessions, into the run of this folder."""
    paths = [str(session.resolve()) for session in folder.missing]
    return ["sync", "--include-online", "--id", str(folder.id), *paths]


def describe_commands(folders: Sequence[TrackedFolder], uri: str) -> list[str]:
    """Return the commands that upload runs; those in a bucket must be copied down first."""
    if "://" in uri:
        return [sync_command(uri)]
    return [shlex.join(["wandb", *sync_arguments(folder)]) for folder in folders]
