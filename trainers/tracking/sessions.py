"""W&B's sessions of a run whose folder is in a bucket.

wandb writes a session to this machine's disk, below ./runs. What W&B does not have when the run
ends is copied:

    URI/wandb/SESSION/started_on.json       where it was started; alone: its driver was killed
    URI/wandb/SESSION/...                   its files, as wandb wrote them
    URI/wandb/SESSION/run-ID.wandb.synced   W&B has all of it
"""

import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from pyarrow import fs

from cluster.io import filesystems, storage
from trainers.tracking.local_runs import local_folder, read_id
from trainers.tracking.wandb_internals import (
    STARTED_ON,
    has_records,
    is_synced,
    list_marks,
    list_sessions,
)


def note_session(uri: str, session: Path) -> None:
    """Note in the bucket that a session has begun here."""
    note = {"host": socket.gethostname(), "folder": os.getcwd()}
    storage.write_bytes(_kept(uri, session.name, STARTED_ON), json.dumps(note).encode())


def keep_sessions(uri: str, sessions: Iterable[Path]) -> None:
    """Copy the sessions that W&B lacks, and the marks of those that it has.

    Raises:
        UserError: where the bucket is out of reach.
    """
    for session in sessions:
        if is_synced(session):
            keep_marks(uri, [session])
        elif has_records(session):
            kept = _kept(uri, session.name)
            target, path = filesystems.resolve(kept)
            with filesystems.explaining(kept):
                fs.copy_files(str(session), path, destination_filesystem=target)


def keep_marks(uri: str, sessions: Iterable[Path]) -> None:
    """Write the marks of the sessions that W&B has."""
    for session in sessions:
        for mark in list_marks(session):
            storage.write_bytes(_kept(uri, session.name, mark.name), b"")


def keep_open_sessions(uri: str) -> None:
    """Copy the sessions of a run that has not finished: those that are only noted."""
    run_id = read_id(uri)
    for session in list_sessions(local_folder(uri), run_id) if run_id else ():
        if storage.list_names(_kept(uri, session.name)) == [STARTED_ON]:
            keep_sessions(uri, [session])


def delete_others(uri: str, sessions: Iterable[Path], *, notes_only: bool) -> None:
    """Delete other sessions of a run: each session has all that W&B lacked as it began.

    Args:
        notes_only: delete those only of which nothing was copied.
    """
    names = {session.name for session in sessions}
    for name in storage.list_names(storage.join(uri, "wandb")):
        folder = _kept(uri, name)
        if name not in names and (not notes_only or storage.list_names(folder) == [STARTED_ON]):
            storage.delete_folder(folder)


def _kept(uri: str, *parts: str) -> str:
    return storage.join(uri, "wandb", *parts)
