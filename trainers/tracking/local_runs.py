"""Runs read back from W&B's local files, and the run that a folder has in W&B.

FOLDER/wandb_id       its id
FOLDER/wandb_folder   FOLDER, as it was last opened: the original of a copy
"""

import os
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from cluster.io import filesystems, storage
from cluster.io.errors import UserError, show
from cluster.io.records import damaged, read_object
from trainers.tracking.wandb_internals import STARTED_ON, has_records, is_synced, list_sessions

WEIGHTS = "checkpoints"
"""The one large part of a run folder; W&B's files are elsewhere."""
NOTE = "wandb_folder"
_TRANSFERS = 16


@dataclass(frozen=True)
class TrackedFolder:
    """A local folder that has a run in W&B."""

    name: str
    """URI that the user gave, where the folder was copied down."""
    path: Path

    @property
    def id(self) -> str | None:
        return read_id(str(self.path))

    @property
    def sessions(self) -> list[Path]:
        """Its sessions, oldest first. Of a folder in a bucket, those that were never copied there
        are where this machine has them."""
        found = list_sessions(self.path, self.id)
        if "://" not in self.name:
            return found
        here = {path.name: path for path in list_sessions(local_folder(self.name), self.id)}
        if not found:  # of an older Thaw
            return [*here.values()]
        return [here.get(path.name, path) if is_elsewhere(path) else path for path in found]

    @property
    def missing(self) -> list[Path]:
        """The sessions that W&B does not have in full, and that are here."""
        return [path for path in self.sessions if not is_synced(path) and has_records(path)]

    @property
    def why_elsewhere(self) -> str | None:
        """Why some of what W&B lacks can't be uploaded from here; None where it can."""
        sessions = self.sessions
        elsewhere = [path for path in sessions if is_elsewhere(path)]
        if not elsewhere and any(is_synced(path) or has_records(path) for path in sessions):
            return None
        where = read_start(elsewhere[-1]) if elsewhere else "where it ran"
        return f"W&B's files are not here; run this {where}, or the run's own command again"


def read_start(session: Path) -> str:
    """Write on which machine a session was started, and in which folder."""
    note = read_object(str(session / STARTED_ON), {"host": str, "folder": str})
    return f"on {show(note['host'])} in {show(note['folder'])}"


def is_elsewhere(session: Path) -> bool:
    """Whether this folder only has the note of a session."""
    is_noted = (session / STARTED_ON).exists()
    return is_noted and not is_synced(session) and not has_records(session)


def local_folder(uri: str) -> Path:
    """Return the local folder in which wandb writes the sessions of a run."""
    return Path("runs").absolute() if "://" in uri else Path(uri)


def find_id(folder: str) -> str:
    """Return the W&B id in a folder; write a new one where there is none, or in a copy, whose
    original has it. A moved folder keeps it."""
    found, note = read_id(folder), _read_note(folder)
    if note != folder:
        storage.write_bytes(storage.join(folder, NOTE), os.fsencode(folder))
    if found is None or (note and note != folder and _has_run(note, found, besides=folder)):
        found = uuid.uuid4().hex[:16]
        storage.write_bytes(storage.join(folder, "wandb_id"), found.encode())
    return found


def _has_run(folder: str, run_id: str, *, besides: str) -> bool:
    """Whether another folder than `besides`, which has just noted itself, has a run. By a link, a
    mount or the URI of a bucket it may be the same one, with the same note."""
    try:
        return read_id(folder) == run_id and _read_note(folder) != besides
    except (OSError, ValueError):  # out of reach, damaged, or a text that is no URI
        return False


def _read_note(folder: str) -> str | None:
    uri = storage.join(folder, NOTE)
    return os.fsdecode(storage.read_bytes(uri)) if storage.exists(uri) else None


def read_id(folder: str) -> str | None:
    """Return the W&B id in a folder; None where there is none."""
    uri = storage.join(folder, "wandb_id")
    if not storage.exists(uri):
        return None
    content = storage.read_bytes(uri)
    if not re.fullmatch(rb"[^/\\#?%:*\[\]\x00-\x1f\x7f-\xff]{1,128}", content):
        raise damaged(uri, f"its id is {ascii(content[:40])[2:-1]!r}")
    return content.decode()


def local_copy(uri: str, scratch: str) -> Path:
    """Return a local folder itself, or a copy of a bucket's below `scratch`, without weights."""
    if "://" not in uri:
        return Path(uri)
    filesystem, root = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
        infos = filesystem.get_file_info(selector)
    paths = [info.path for info in infos if info.type == fs.FileType.File]
    names = [path[len(root) :].strip("/") for path in paths]

    def fetch(name: str) -> None:
        if not all(map(storage.is_name, name.split("/"))):  # a key may be any text: ../ as well
            raise UserError(f"{uri} holds {name[:200]!r}, which is no name of a file; delete it")
        target = Path(scratch, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.read_bytes(storage.join(uri, name)))

    with ThreadPoolExecutor(_TRANSFERS) as pool:
        wanted = (name for name in names if WEIGHTS not in name.split("/"))
        list(pool.map(fetch, wanted))
    return Path(scratch)


def find_folders(path: Path, name: str) -> list[TrackedFolder]:
    """Find the runs of a training or sweep: its own, its trials', its heads'.

    Args:
        name: URI of the folder that the user gave.

    Raises:
        UserError: where there is none.
    """
    found = {file.parent for file in path.rglob("wandb_id")}
    if not found:
        raise UserError(
            f"run is {name!r}: nothing there is tracked in W&B (wandb_id is missing); give the "
            "--out of a training or sweep that ran with --wandb offline or online"
        )
    return [
        TrackedFolder(str(storage.join(name, *folder.relative_to(path).parts)), folder)
        for folder in sorted(found)
    ]
