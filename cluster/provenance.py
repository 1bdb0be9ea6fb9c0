"""Provenance of a run: its command, the commit of this code, the versions of packages."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from cluster.entry import ROOT
from cluster.secrets import known_secrets, may_be_a_word

COMMIT_VAR = "THAW_COMMIT"
"""The commit, where the code has no .git beside it: in a container image or a job."""
REQUIRED = {
    "ray": "==2.60.0",
    "torch": "==2.14.1",
    "torchvision": "==0.29.1",
    "timm": "==1.0.31",
    "albumentations": "==2.0.8",
    "opencv-python-headless": ">=5.0,<6",
    "wandb": ">=0.31,<0.32",
}
"""What a result depends on, as in pyproject.toml, which no image and no job has."""
REQUIRED_PYTHON = ">=3.11,<3.14"
PACKAGES = tuple(REQUIRED)
GIT_TIMEOUT_S = 10
REDACTED = "***"
USERINFO = re.compile(r"(://)[^/@\s]*:[^@\s]*@")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the results of this process come from."""

    command: str
    commit: str | None
    """Hash of the commit, `-dirty` where files differ from it; None where it is unknown."""
    versions: dict[str, str]
    started_at: str
    """UTC, ISO 8601."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_provenance() -> Provenance:
    """Look at this process; call it in the driver, whose command line is the user's."""
    return Provenance(
        command=find_command(sys.argv),
        commit=find_commit(ROOT),
        versions=find_versions(),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def find_command(argv: list[str]) -> str:
    """Write the command line that started a process: `python -m tuning --data runs/cars`.

    Passwords in URIs and the secrets of this environment are left out: files and W&B keep it.
    """
    program = Path(argv[0])
    is_room = program.name == "__main__.py"
    words = ["-m", program.parent.name] if is_room else [str(program)]
    return shlex.join(["python", *words, *map(redact, argv[1:])])


def redact(word: str) -> str:
    """Take the secrets out of a word of a command line."""
    for secret in known_secrets():
        if not may_be_a_word(secret):
            word = word.replace(secret, REDACTED)
        elif word.rpartition("=")[2] == secret:
            word = word.removesuffix(secret) + REDACTED
    return USERINFO.sub(rf"\1{REDACTED}@", word)


def find_commit(root: Path) -> str | None:
    """Return the commit of the repository whose top is `root`; None where it is none."""
    if not (root / ".git").exists():
        return os.environ.get(COMMIT_VAR)
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):  # git is missing, or the repository has none yet
        return os.environ.get(COMMIT_VAR)
    return f"{commit}-dirty" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=GIT_TIMEOUT_S,
    ).stdout.strip()


def find_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of the packages that are installed here."""
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def find_unsuitable(theirs: Mapping[str, str]) -> list[str]:
    """Name each version of another machine that is none of those that Thaw runs with."""
    return [
        f"{name} {found} (Thaw needs {wanted})"
        for name, wanted in {"python": REQUIRED_PYTHON, **REQUIRED}.items()
        if (found := theirs.get(name)) is not None
        and not SpecifierSet(wanted).contains(found.rstrip("+"), prereleases=True)
    ]


def find_differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """Name each version that is another, as people mean it: Python 3.11.14 and 3.11.7 agree, and
    so do torch 2.14.1+cpu and 2.14.1."""
    return [
        f"{name} {theirs.get(name)} (here {version})"
        for name, version in ours.items()
        if _simplify(name, theirs.get(name)) != _simplify(name, version)
    ]


def _simplify(name: str, version: str | None) -> str | None:
    if version is None:
        return None
    if name == "python":
        return ".".join(version.split(".")[:2])
    return version.partition("+")[0]  # what follows says how it was built
