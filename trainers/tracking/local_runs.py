"""The runs of a folder in W&B, read back from the files that W&B keeps of them.

FOLDER/wandb_id                a folder with this file has a run in W&B
FOLDER/wandb/offline-run-*-ID  its sitting offline, which holds all of it
FOLDER/wandb/run-*-ID          a sitting online
  *.wandb, *.wandb.synced      what was told, and W&B's mark that it has it
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import fs

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.records import damaged, read_object

WANDB = str(Path(sys.executable).with_name("wandb"))
READER_TIMEOUT_S = 120
WEIGHTS = "checkpoints"
"""The one part of a run folder that W&B is not told byte by byte; it may be large."""
_TRANSFERS = 16
Json = dict[str, Any]


@dataclass(frozen=True)
class Folder:
    """A folder that has a run in W&B, on the local disk."""

    name: str
    """As the user knows it: a URI, where it was copied down."""
    path: Path

    @property
    def id(self) -> str | None:
        return read_id(str(self.path))

    @property
    def sittings(self) -> list[Path]:
        """What W&B keeps of the run, oldest first; names begin with their start."""
        found = self.path.glob(f"wandb/*run-*-{self.id}*")
        return sorted(found, key=lambda path: path.name.removeprefix("offline-"))

    @property
    def offline_sittings(self) -> list[Path]:
        return [path for path in self.sittings if is_offline(path)]

    @property
    def missing(self) -> list[Path]:
        """The sittings that W&B does not have, or not wholly."""
        return [path for path in self.sittings if not is_synced(path)]

    def read_json(self, name: str) -> Json | None:
        """Read a file of the folder; None where there is none."""
        file = self.path / name
        return read_object(str(file)) if file.exists() else None


@dataclass
class Record:
    """What W&B's files say of a run."""

    run: Json = field(default_factory=dict)
    """Its project, run_group, job_type, display_name and tags."""
    config: Json = field(default_factory=dict)
    """Without W&B's own notes."""
    num_configs: int = 0
    """How often it was set."""
    axes: set[str] = field(default_factory=set)
    history: list[Json] = field(default_factory=list)
    """Rows; the parts of a table or picture are named KEY.PART."""
    summary: Json = field(default_factory=dict)
    artifacts: list[Json] = field(default_factory=list)
    exit_code: int | None = None
    """None where the run was not ended."""

    def add(self, record: Json) -> None:
        """Take one record of W&B's reader."""
        kind, content = record["type"], record.get(record["type"], {})
        if kind == "run":
            self.run, self.exit_code = content, None
            self._set(content.get("config", {}))
        elif kind == "config":
            self._set(content)
        elif kind == "metric":
            self.axes.add(content.get("name") or content.get("glob_name"))
        elif kind == "history":
            self.history.append(content["item"])
        elif kind == "summary":
            self.summary |= content.get("update", {})
        elif kind == "artifact":
            self.artifacts.append(content)
        elif kind == "exit":
            self.exit_code = content.get("exit_code", 0)

    def _set(self, config: Json) -> None:
        values = config.get("update", {})
        own = {key: value for key, value in values.items() if not key.startswith("_wandb")}
        self.config |= own
        self.num_configs += bool(own)


def read_id(folder: str) -> str | None:
    """Return the W&B id kept in a folder; None where there is none."""
    uri = storage.join(folder, "wandb_id")
    if not storage.exists(uri):
        return None
    content = storage.read_bytes(uri)
    if not re.fullmatch(rb"[^/\\#?%:*\[\]\x00-\x1f\x7f-\xff]{1,128}", content):
        raise damaged(uri, f"its id is {ascii(content[:40])[2:-1]!r}")
    return content.decode()


def is_offline(sitting: Path) -> bool:
    return sitting.name.startswith("offline-")


def is_synced(sitting: Path) -> bool:
    """Whether W&B has marked that it has all of a sitting."""
    return any(sitting.glob("*.wandb.synced"))


def local_copy(uri: str, scratch: str) -> Path:
    """Return a folder itself, or a copy of one in a bucket, below `scratch`, without weights."""
    if "://" not in uri:
        return Path(uri)
    filesystem, root = storage.resolve(uri)
    with storage.explaining(uri):
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


def find_folders(path: Path, name: str) -> list[Folder]:
    """Find the run of a folder, or those of a sweep: its own, its trials', its heads'.

    Args:
        name: of the folder, as the user knows it.

    Raises:
        UserError: where there is none.
    """
    found = {file.parent for file in path.rglob("wandb_id")}
    if not found:
        raise UserError(
            f"run is {name!r}: nothing there is tracked in W&B (wandb_id is missing); give the "
            "--out of a training or sweep that ran with --wandb offline or online"
        )
    trials = [trial for trial in path.glob("trials/*") if trial.is_dir()]  # each must have a run
    return [
        Folder(str(storage.join(name, *folder.relative_to(path).parts)), folder)
        for folder in sorted(found | set(trials))
    ]


def read_record(folder: Folder) -> Record:
    """Read what W&B's own reader finds in all sittings of a run.

    Raises:
        UserError: for a file that it can't read.
    """
    record = Record()
    for sitting in folder.sittings:
        for line in _read_lines(sitting):
            record.add(json.loads(line))
    return record


def _read_lines(sitting: Path) -> Iterator[str]:
    command = [WANDB, "leet", "inspect", "--json", str(sitting.resolve())]
    with tempfile.TemporaryDirectory() as scratch:  # wandb leaves a log where it is started
        told = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, timeout=READER_TIMEOUT_S
        )
    if told.returncode:
        reason = told.stderr.strip().splitlines()[-1:] or ["no reason was given"]
        raise UserError(f"W&B's reader can't read {sitting.name}: {reason[0]}")
    yield from told.stdout.splitlines()
