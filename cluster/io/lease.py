"""One writer a folder, on any storage: a file with a heartbeat that ends with its process.

FOLDER/.lease.json    who writes there: host, process, command, since when, last seen
"""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path

from cluster.io import filesystems, storage
from cluster.io.errors import StorageError, UserError
from cluster.io.records import read_record

NAME = ".lease.json"
_PLAIN = re.compile(r"-m|[a-z][\w.]*")
BEAT_S = 5.0
STALE_S = 30.0
"""A lease that was not renewed for so long is taken over, once it has been watched for a while."""
SETTLE_S = 1.0
"""Of two processes that write a lease to an object store at once, the last one has it."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """What the file says."""

    token: str
    host: str
    process: int
    machine: str
    """Boot and process namespace: where `process` and `process_started` can be looked up."""
    process_started: str
    command: str
    started: float
    """Seconds since 1970, by the clock of the host."""
    seen: float

    def describe(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        ago_s = time.time() - self.seen
        seen = f"last seen {max(0.0, ago_s):.0f} s ago"
        if self.machine != _find_machine() and not _is_recent(ago_s):
            seen = "its heartbeat is there, its clock differs from this one's"
        return (
            f"process {self.process} on {self.host} writes there since {since} ({seen}): "
            f"`{self.command}`"
        )


@contextmanager
def hold_lease(
    folder: str, *, field: str = "out", follow: str = "wait for its end"
) -> Iterator[None]:
    """Be the only writer of a folder while the body runs.

    Where another process takes the lease over, as this one was suspended, this one is terminated.

    Args:
        follow: how to see what the other process does, for the refusal.

    Raises:
        UserError: where another process writes there.
    """
    uri = storage.join(folder, NAME)
    try:
        lease = _describe_process()
        other = _acquire(uri, lease)
    except (StorageError, UserError) as error:
        raise type(error)(f"{field} is {folder!r}, which can't be written: {error}") from error
    if other is not None:
        raise UserError(
            f"{field} is {folder!r}: {other.describe()}; {follow}, or give another --{field}"
        )
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(uri, lease, over), name="lease", daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
        with suppress(StorageError, UserError):  # out of reach: it will be stale
            if _read(uri, lease.token) is None:
                storage.delete_file(uri)


def _acquire(uri: str, lease: Lease) -> Lease | None:
    """Take a lease; return that of another process that has it."""
    other = found = _read(uri, lease.token)
    if other is not None and not _lives(other, uri):
        other = None
    if other is None:
        if found is not None or not (storage.can_append(uri) and _create(uri, lease)):
            _write(uri, lease)
            time.sleep(SETTLE_S)
        other = _read(uri, lease.token)
    return other


def _create(uri: str, lease: Lease) -> bool:
    """Write a lease to a local file, unless one is there: one process only makes the link."""
    path = filesystems.resolve(uri)[1]
    beside = f"{uri}.{lease.token[:8]}"
    _write(beside, lease)
    try:
        os.link(filesystems.resolve(beside)[1], path)
    except FileExistsError:
        return _read(uri, lease.token) is not None  # a damaged one is replaced
    except OSError:  # a file system without links
        return False
    finally:
        storage.delete_file(beside)
    return True


def _read(uri: str, token: str) -> Lease | None:
    """Read another process' lease; None where there is none, or it is this one's."""
    try:
        lease = read_record(uri, Lease)
    except FileNotFoundError:
        return None
    except UserError:  # of another version, or damaged: it can't be renewed
        return None
    return None if lease.token == token else lease


def _lives(lease: Lease, uri: str) -> bool:
    """Whether the process of a lease is there: looked up on its machine, else by its heartbeat.

    Clocks differ, so one that looks stale is watched before it is taken over.
    """
    if lease.machine == _find_machine():
        return _find_start(lease.process) == lease.process_started
    if _is_recent(time.time() - lease.seen):
        return True
    until = time.monotonic() + 2.5 * BEAT_S
    while time.monotonic() < until:
        time.sleep(BEAT_S / 5)
        now = _read(uri, "")
        if now is None or now != lease:
            return now is not None
    return False


def _is_recent(ago_s: float) -> bool:
    """Whether the holder was just seen; clocks that are set by NTP differ by less than a beat."""
    return -BEAT_S < ago_s < STALE_S


def _beat(uri: str, lease: Lease, over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        try:
            other = _read(uri, lease.token)
            if other is None:
                _write(uri, replace(lease, seen=time.time()))
                continue
        except (StorageError, UserError):  # out of reach: tried again
            continue
        print(f"error: {uri} was taken over: {other.describe()}; stopping", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)
        return


def _write(uri: str, lease: Lease) -> None:
    storage.write_bytes(uri, json.dumps(asdict(lease), indent=1).encode())


def _describe_process() -> Lease:
    now = time.time()
    words = takewhile(_PLAIN.fullmatch, sys.orig_argv[1:4])  # values may be secret
    return Lease(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        process=os.getpid(),
        machine=_find_machine(),
        process_started=_find_start(os.getpid()) or "",
        command=" ".join(["python", *words]),
        started=now,
        seen=now,
    )


def _find_machine() -> str:
    """Return what is the same for processes that see each other's numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _find_start(process: int) -> str | None:
    """Return when a process started, as the kernel counts; None where there is no such process."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        if sys.platform == "linux":
            return None
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return None
        return ""
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
