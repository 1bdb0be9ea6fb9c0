"""Private names of wandb and wandb-workspaces, and the layout of W&B's local files.

FOLDER/wandb/run-DATE_TIME-ID           one session of a run that was online
FOLDER/wandb/offline-run-DATE_TIME-ID   one session of a run that was offline
  run-ID.wandb, run-ID.wandb.synced     its records; wandb's mark that the server has all of them
"""

import logging
import subprocess
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import wandb
from pydantic import ValidationError
from wandb import util
from wandb.errors import UsageError
from wandb.sdk import wandb_setup
from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
from wandb.sdk.lib.paths import LogicalPath
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from cluster.io.errors import UserError
from cluster.io.uris import name_of

logger = logging.getLogger(__name__)

TESTED_VERSIONS = {"wandb": "0.31", "wandb-workspaces": "0.4"}
STARTED_ON = "started_on.json"
"""Our note in a session's folder of a bucket (`trainers.tracking.sessions`)."""
WRITTEN_S = 0.5
"""After a run has finished, its file is written whole in this time."""
FINISH_ERRORS = (TimeoutError, HandleAbandonedError)
"""Raised by `Run.finish`: the server took too long; wandb's own process is gone."""
SERVICE_ERRORS = (ConnectionError, HandleAbandonedError, MailboxClosedError)
"""Raised by any call of a run whose service process, wandb-core, has ended."""
API_ERRORS = (wandb.Error, WandbApiFailedError)
"""Raised where the server refuses a workspace, a report, a sweep or a link."""
PRIVATE_SETTINGS: dict[str, Any] = {"x_transaction_log_flush_interval": 1}
"""A killed process may lose rows of this many seconds; wandb's default is 15."""


@cache
def list_packages_once() -> None:
    """Let wandb, which lists the packages of this environment for each run, list them once: it
    reads the metadata of each in 0.1 s, and a sweep's driver has a run for each trial."""
    list_packages = util.working_set
    util.working_set = cache(lambda: tuple(list_packages()))


@cache
def check_versions() -> None:
    """Warn, once, where a package is not of the version that this module was tested with."""
    for package, tested in TESTED_VERSIONS.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if not found.startswith(f"{tested}."):
            logger.warning(
                "%s is %s, and Thaw was tested with %s: run tests/test_trainers_mirror.py, "
                "test_trainers_killed.py, test_trainers_track.py, test_trainers_wandb_server.py "
                "and test_tuning_wandb_views.py, then set TESTED_VERSIONS in %s",
                package,
                found,
                tested,
                __name__,
            )


def use_artifact(run: wandb.Run, artifact: wandb.Artifact) -> wandb.Artifact:
    """Do what `wandb.Run.use_artifact` does online, without waiting for the server; offline that
    method refuses, though the run's file can hold it."""
    return run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)


def add_reference(artifact: wandb.Artifact, uri: str) -> None:
    """Refer to a file by its URI. `Artifact.add_reference` opens the client library of a bucket,
    though it reads nothing of a reference without a checksum; and it knows no hf://."""
    if "://" not in uri:
        artifact.add_reference(f"file://{uri}", checksum=False)
        return
    path = LogicalPath(name_of(uri))
    artifact.manifest.add_entry(ArtifactManifestEntry(path=path, ref=uri, digest=uri))


def find_upload_error(artifact: wandb.Artifact) -> str | None:
    """Return why the server refused an artifact of a finished online run; None where it has it."""
    handle = artifact._save_handle
    if handle is None:
        return None
    try:
        response = handle.wait_or(timeout=0).response.log_artifact_response
    except FINISH_ERRORS as error:
        return str(error) or "no answer"
    return response.error_message or None


def abandon_service() -> None:
    """Let this process exit without waiting for wandb's own one, which retries artifacts for ever.
    All that was logged is in the run's files."""
    connection = wandb_setup.singleton()._connection
    if connection is not None and connection._cleanup is not None:
        connection._cleanup()


@contextmanager
def explaining_settings() -> Iterator[None]:
    """Turn what wandb's client refuses in its settings into the user's sentence.

    Raises:
        UserError: for what `wandb_env.check_settings` does not look at.
    """
    try:
        yield
    except (UsageError, ValidationError) as error:
        reason = textwrap.shorten(str(error), 240)
        raise UserError(
            f"W&B refuses its settings ({reason}); check the variables WANDB_* and wandb/settings"
        ) from error


_RESTART = threading.Lock()


def replace_service() -> None:
    """Let the next run start another service process, where the one of this process has ended."""
    with _RESTART:  # each open run notices it
        connection = wandb_setup.singleton()._connection
        if connection is None or connection._proc is None:
            return
        with suppress(subprocess.TimeoutExpired):  # it lives: another thread has replaced it
            connection._proc._process.wait(timeout=1)
            with suppress(*SERVICE_ERRORS):  # it can't be asked to end
                wandb.teardown()


def list_sessions(folder: Path, run_id: str | None) -> list[Path]:
    """Return the sessions of a run, oldest first."""
    found = folder.glob(f"wandb/*run-*-{run_id}*")
    return sorted(found, key=lambda path: path.name.removeprefix("offline-"))


def is_offline(session: Path) -> bool:
    return session.name.startswith("offline-")


def has_records(session: Path) -> bool:
    """Whether a session's file is there."""
    return any(session.glob("*.wandb"))


def is_synced(session: Path) -> bool:
    """Whether the server has all of a session."""
    return bool(list_marks(session))


def wait_until_written(session: Path) -> None:
    """Wait until the file of a finished run stops growing: `finish` does not wait for its end."""
    before, size = -1, 0
    while before != size:
        before, size = size, sum(file.stat().st_size for file in session.glob("*.wandb"))
        time.sleep(WRITTEN_S)


def list_marks(session: Path) -> list[Path]:
    return [*session.glob("*.wandb.synced")]


def session_of(run: wandb.Run) -> Path:
    """Return the session of an open or finished run."""
    return Path(run.settings.sync_dir)


def mark_synced(run: wandb.Run) -> None:
    """Mark a finished online run as `wandb sync` would."""
    Path(f"{run.settings.sync_file}.synced").touch()


def set_view_id(view: Any, saved: dict[str, str]) -> None:
    """Make a workspace of wandb-workspaces replace the one that was saved before.

    Loading the old one to change it would keep panels that are no longer built.
    """
    check_versions()
    view._internal_id, view._internal_name = saved.get("id", ""), saved.get("name", "")


def get_view_id(view: Any) -> dict[str, str]:
    return {"id": view._internal_id, "name": view._internal_name}
