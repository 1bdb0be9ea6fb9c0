"""The package of a job: the files that were checked are those that are packed and sent."""

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.entry import ROOT
from cluster.io.errors import UserError

SHIPPED = ("cluster", "datasets", "trainers", "tuning")
"""As .rayignore says to Ray."""
LEFT_OUT = ("__pycache__", "runs")
"""Not sent, at any depth; nor is what begins with a dot, such as the files of editors."""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files make the same package, which is sent once


@dataclass(frozen=True, kw_only=True)
class Package:
    """A zip file of Thaw's rooms."""

    path: Path
    num_files: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.num_files} files, {self.num_bytes / 2**20:.1f} MiB packed"


def list_files(root: Path = ROOT) -> list[Path]:
    """List the files of `root` that are sent: those of the rooms.

    Raises:
        UserError: for a link to nothing, a socket or a pipe.
    """
    found: list[Path] = []
    for room in SHIPPED:
        for folder, names, files in os.walk(root / room):
            names[:] = sorted(filter(_is_sent, names))
            found += [Path(folder, file) for file in sorted(filter(_is_sent, files))]
    for file in found:
        if not file.is_file():
            raise UserError(
                f"folder is {str(root)!r}: {file.relative_to(root)} is no file, or a link to "
                "nothing; delete it, or move it out of the folder"
            )
    return found


def _is_sent(name: str) -> bool:
    return name not in LEFT_OUT and not name.startswith(".")


def pack(path: Path, *, root: Path = ROOT, max_mib: float) -> Package:
    """Write the files of `root` to the zip file `path`.

    Raises:
        UserError: where there is nothing to send, or it is larger than `max_mib`.
    """
    files = list_files(root)
    if not files:
        raise UserError(f"folder is {str(root)!r}: none of {', '.join(SHIPPED)} is there")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for file in files:
            _add(package, file, root)
            if path.stat().st_size > max_mib * 2**20:
                raise UserError(
                    f"max_mib is {max_mib:g}: the folder {str(root)!r} is larger, packed; "
                    f"its largest files are {_name_largest(files, root)}: move data and weights "
                    "to shared storage or a bucket, or raise --max-mib"
                )
    return Package(path=path, num_files=len(files), num_bytes=path.stat().st_size)


def _add(package: zipfile.ZipFile, file: Path, root: Path) -> None:
    info = zipfile.ZipInfo(file.relative_to(root).as_posix(), _EPOCH)
    info.external_attr = 0o644 << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    with file.open("rb") as content, package.open(info, "w") as packed:
        while piece := content.read(2**20):
            packed.write(piece)


def _name_largest(files: Sequence[Path], root: Path) -> str:
    largest = sorted(files, key=lambda file: file.stat().st_size, reverse=True)[:3]
    return ", ".join(
        f"{file.relative_to(root)} ({file.stat().st_size / 2**20:.1f} MiB)" for file in largest
    )
