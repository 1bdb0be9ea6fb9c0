"""Look after the W&B runs of a folder: `track check` reads them back, `track sync` uploads them."""

import json
import netrc
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import Progress

from trainers.tracking.checks import Problem, check_run, find_secrets
from trainers.tracking.config import CheckConfig, SyncConfig, TrackVerb
from trainers.tracking.local_runs import WANDB, Folder, find_folders, is_synced, local_copy

_READERS = 4
_CLOUD = "https://api.wandb.ai"


def run_track(config: TrackVerb) -> None:
    """Check or sync.

    Raises:
        SystemExit: with code 1 where anything is wrong or left.
    """
    verb = config.verb
    with tempfile.TemporaryDirectory() as scratch:
        path = local_copy(verb.run, scratch)
        folders = find_folders(path, verb.run)
        if isinstance(verb, CheckConfig):
            problems = check_folders(folders)
            problems[f"files of {verb.run}"] = list(find_secrets(path))
            print_problems(problems, as_json=verb.json)
            is_good = not any(problems.values())
        else:
            is_good = sync_folders(folders, verb)
    if not is_good:
        raise SystemExit(1)


def check_folders(folders: Sequence[Folder]) -> dict[str, list[Problem]]:
    """Return what is wrong with each run, by the name of its folder."""
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(
            zip([folder.name for folder in folders], pool.map(check_run, folders), strict=True)
        )


def print_problems(problems: dict[str, list[Problem]], *, as_json: bool) -> None:
    """Print a line for each run that is as it should be, or one for each of its problems."""
    if as_json:
        told = {name: [problem._asdict() for problem in found] for name, found in problems.items()}
        print(json.dumps({"ok": not any(problems.values()), "problems": told}, indent=1))
        return
    for name, found in problems.items():
        if not found:
            print(f"ok       {name}")
        for problem in found:
            print(f"problem  {name}: {problem.what}; {problem.remedy}")


def sync_folders(folders: Sequence[Folder], config: SyncConfig) -> bool:
    """Upload what W&B lacks, run by run, or print how; return whether it has all."""
    lacking = [folder for folder in folders if folder.missing]
    if not lacking:
        print(f"W&B has all {len(folders)} runs of {config.run}")
        return True
    if config.dry_run or not has_key():
        if not config.dry_run:
            print("No key of W&B: set WANDB_API_KEY, or log in with `wandb login`. Then:")
        for command in describe_commands(lacking, config.run):
            print(command)
        return config.dry_run
    num_synced = 0
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Uploading to W&B", total=len(lacking))
        for folder in lacking:
            reason = sync(folder)
            num_synced += reason is None
            print(
                f"synced   {folder.name}" if reason is None else f"FAILED   {folder.name}: {reason}"
            )
            progress.advance(task)
    print(f"Uploaded {num_synced} of {len(lacking)} runs to {base_url()}")
    return num_synced == len(lacking)


def sync(folder: Folder) -> str | None:
    """Upload a run with W&B's own command.

    Returns:
        What W&B said where it did not take all; None where it did.
    """
    missing = folder.missing
    with tempfile.TemporaryDirectory() as scratch:  # wandb leaves a log where it is started
        told = subprocess.run(
            [WANDB, *sync_arguments(folder)], cwd=scratch, capture_output=True, text=True
        )
    # Its exit code is 0 also where the server refused the key.
    if all(is_synced(sitting) for sitting in missing):
        return None
    lines = [line for line in told.stderr.splitlines() if "ERROR" in line] or ["no reason given"]
    return f"{lines[-1].removeprefix('wandb: ')}; check WANDB_BASE_URL ({base_url()}) and the key"


def sync_arguments(folder: Folder) -> list[str]:
    """Return what `wandb` is called with: all that is missing, into the run of this folder."""
    paths = [str(sitting.resolve()) for sitting in folder.missing]
    return ["sync", "--include-online", "--id", str(folder.id), *paths]


def describe_commands(folders: Sequence[Folder], uri: str) -> list[str]:
    """Write the commands that upload runs; those in a bucket must be copied down first."""
    if "://" in uri:
        return [f"python -m trainers track sync {shlex.quote(uri)}"]
    return [shlex.join(["wandb", *sync_arguments(folder)]) for folder in folders]


def base_url() -> str:
    """The server, as `wandb` finds it in the environment."""
    return os.environ.get("WANDB_BASE_URL", _CLOUD).rstrip("/")


def has_key() -> bool:
    """Whether `wandb` would find a key: in the environment, or where `wandb login` has left it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = os.path.expanduser(os.environ.get("NETRC", "~/.netrc"))
    try:
        return netrc.netrc(file).authenticators(urlsplit(base_url()).hostname or "") is not None
    except FileNotFoundError:
        return False
