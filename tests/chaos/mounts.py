"""A file system of its own, to be filled and frozen; it takes root."""

import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.checks import ensure, wait_until


@contextmanager
def mounted(place: Path, size: str) -> Iterator[Callable[[str], None]]:
    """Mount a file system of that size; yields what mounts it again with other options."""
    place.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))

    def remount(options: str) -> None:
        wait_until(lambda: _mounts("-o", f"remount,{options}", str(place)), f"remount {options}")

    try:
        yield remount
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    ensure(done.returncode == 0, f"{shlex.join(['mount', *arguments])}: {done.stderr}")


def _mounts(*arguments: str) -> bool:
    """A file system with a file open for writing is busy: try again."""
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


@contextmanager
def served(place: Path, behind: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Show a folder at `place` by a file system in user space (Debian's bindfs); yields its
    server."""
    for folder in (place, behind):
        folder.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen(["bindfs", "-f", str(behind), str(place)])
    try:
        wait_until(place.is_mount, f"{place}", timeout_s=30)
        yield server
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        server.terminate()
        server.wait()
