"""Runs read back from W&B's local files. FOLDER/wandb_id marks a folder that has a run in W&B."""

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from cluster.io import filesystems, storage
from cluster.io.errors import UserError
from cluster.io.records import damaged
from trainers.tracking.wandb_internals import is_synced, list_sessions

WEIGHTS = "checkpoints"
"""The one large part of a run folder; W&B's files are elsewhere."""
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
        return list_sessions(self.path, self.id)

    @property
    def missing(self) -> list[Path]:
        """The sessions that W&B does not have in full."""
        return [path for path in self.sessions if not is_synced(path)]


def find_id(folder: str) -> str:
    """Return the W&B id in a folder; write a new one where there is none."""
    uri = storage.join(folder, "wandb_id")
    if not storage.exists(uri):
        storage.write_bytes(uri, uuid.uuid4().hex[:16].encode())
    found = read_id(folder)
    assert found is not None, "it is written above"
    return found


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
