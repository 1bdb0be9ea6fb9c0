"""What a Ray cluster on this machine needs of it: a writable folder whose path is short for its
session, a token, open files, and the loopback interface.

Ray puts Unix sockets into it, whose paths may have 107 bytes (103 on macOS). Batch systems set a
TMPDIR of their own for each job, which is often longer.
"""

import os
import resource
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cluster.io.errors import UserError
from cluster.io.terminal import report

MAX_SOCKET_BYTES = 107 if sys.platform == "linux" else 103
BELOW = "/ray/session_2026-11-28_12-51-24_002503_1234567/sockets/plasma_store"
"""The longest path that Ray makes below the folder; the last number is the process'."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
NUM_FILES = 65_536
"""Open files of a process that Ray's processes are given, where the hard limit allows it."""
FEW_FILES = 1024
MIN_FREE_MIB = 64
"""For the logs and sockets of a session."""


class MachineError(UserError):
    """No cluster can be started on this machine."""


def choose_session_folder(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return a folder for Ray in place of the one it would take; None where that one is good.

    Raises:
        MachineError: where RAY_TMPDIR is no good, or no short writable folder is there.
    """
    if environment.get("TMPDIR") == "" and not environment.get("RAY_TMPDIR"):
        return "/tmp/ray"  # Ray would take the working folder
    problem = find_session_problem(environment)
    if problem is None:
        return None
    if environment.get("RAY_TMPDIR"):
        raise MachineError(f"{problem}; set it to a short folder that you may write, such as /tmp")
    for other in SHORT_FOLDERS:
        if _find_problem(other) is None:
            report(
                f"{problem}, so Ray's session is in {other}; RAY_TMPDIR sets another folder for it"
            )
            return os.path.join(other, "ray")
    raise MachineError(
        f"{problem}, and neither can {', '.join(SHORT_FOLDERS)} be used; set TMPDIR or RAY_TMPDIR "
        "to a short folder that you may write"
    )


def find_session_problem(environment: Mapping[str, str]) -> str | None:
    """Describe why Ray's session can't be in the folder that the environment names."""
    name = "RAY_TMPDIR" if environment.get("RAY_TMPDIR") else "TMPDIR"
    folder = environment.get(name) or "/tmp"
    problem = _find_problem(folder)
    return None if problem is None else f"{name} is {folder!r}: {problem}"


def _find_problem(folder: str) -> str | None:
    num_bytes = len(os.fsencode(folder.rstrip("/") + BELOW))
    if num_bytes > MAX_SOCKET_BYTES:
        return f"{num_bytes - MAX_SOCKET_BYTES} bytes too long for Ray's sockets"
    try:
        _try_writing(folder)
        free_mib = shutil.disk_usage(folder).free / 2**20
    except OSError as error:
        return f"it can't be written ({error.strerror})"
    return f"it has {free_mib:.0f} MiB free" if free_mib < MIN_FREE_MIB else None


def _try_writing(folder: str | Path) -> None:
    """Make a folder and a file in it that is deleted; raises OSError where that fails."""
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def provide_token() -> None:
    """Give a cluster on this machine a token of its own where Ray can't keep one in ~/.ray."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        folder = Path.home() / ".ray"
        if not (folder / "auth_token").exists():
            _try_writing(folder)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def require_loopback() -> None:
    """Check that processes of this machine reach each other: else Ray would wait for minutes.

    Raises:
        MachineError: where they don't.
    """
    with socket.socket() as server, socket.socket() as client:
        try:
            server.bind(("127.0.0.1", 0))
            server.listen()
            client.connect(server.getsockname())
        except OSError as error:
            raise MachineError(
                f"127.0.0.1 can't be reached ({error.strerror}), and Ray's processes need it; "
                "bring up the loopback interface (`ip link set lo up`)"
            ) from None


def raise_file_limit() -> None:
    """Let the processes of a cluster on this machine open as many files as the machine allows.

    Raises:
        MachineError: where Ray would fail for want of files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = NUM_FILES if hard == resource.RLIM_INFINITY else min(NUM_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if hard != resource.RLIM_INFINITY and hard < FEW_FILES:
        raise MachineError(
            f"ulimit -n is {hard}: Ray's processes need {FEW_FILES} open files or more; raise the "
            "hard limit (`ulimit -Hn`, or nofile in limits.conf or of the container)"
        )
