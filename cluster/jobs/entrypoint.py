"""The command of a job: one of Thaw's, with no path that exists only on this machine."""

import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from cluster.io.errors import UserError
from cluster.io.markers import NAMES, OR_NAMES, URI, markers
from cluster.manifests import CheckK8sConfig

ROOMS = ("cluster", "datasets", "trainers", "tuning")
_PYTHON = re.compile(r"python(3(\.\d+)?)?")


def check_command(words: Sequence[str]) -> Any:
    """Parse the command as its room would, and return that room's config.

    Raises:
        UserError: where it is no room's command, or has a path that means nothing in a job.
        SystemExit: from the room's own parser, which prints the reason.
    """
    if len(words) < 3 or not _PYTHON.fullmatch(words[0]) or words[1] != "-m":
        raise UserError(
            f"command is {' '.join(words)!r}: submit one of Thaw's, such as "
            "`python -m cluster submit -- python -m tuning --data s3://bucket/cars "
            "--out s3://bucket/sweep`"
        )
    room = words[2]
    if room not in ROOMS:
        raise UserError(f"command is `python -m {room}`: choose from {', '.join(ROOMS)}")
    for word in words[3:]:
        value = word.partition("=")[2] if word.startswith("--") else word
        if value.startswith("~/"):
            raise UserError(
                f"command has {word!r}: ~ is another folder in a job; give an absolute path on "
                "shared storage, or a URI such as s3://bucket/folder"
            )
    config = parse_room(room, words[3:])
    if isinstance(config, CheckK8sConfig):
        raise UserError(
            "command is `python -m cluster check-k8s`: a job has no k8s/, as only Thaw's four "
            "packages are sent; run it here, without submit"
        )
    refuse_relative_paths(config)
    return config


def parse_room(room: str, arguments: Sequence[str]) -> Any:
    """Parse the arguments of any room, as `python -m ROOM` would.

    The module is imported by name: a room above this one needs no import edge.
    """
    if not arguments:
        raise UserError(f"command is `python -m {room}`: say what it should do")
    module = import_module(f"{room}.__main__")
    words = [word for word in arguments if word != "--quiet"]  # which `cluster.entry` takes
    return getattr(module, "parse_for_job", module.parse)(words)


def refuse_relative_paths(config: Any, prefix: str = "") -> None:
    """Look at every path of a config, defaults included.

    Raises:
        UserError: where one is relative.
    """
    for name, own in markers(type(config)).items() if is_dataclass(config) else ():
        value = getattr(config, name)
        if is_dataclass(value):
            refuse_relative_paths(value, f"{prefix}{name}.")
        elif prefix and name == "out":
            continue  # of the training that a sweep's trials start from: each has its own
        elif URI in own and value and not (OR_NAMES in own and value == NAMES):
            refuse_relative(f"{prefix}{name}", value, f"--{name.replace('_', '-')}")


def refuse_relative(field: str, value: str | tuple[str, ...], option: str) -> None:
    """Raises UserError for a relative path."""
    if _is_relative(value):
        raise UserError(
            f"{field} is {value!r}: a job runs in a folder that is thrown away; give {option} an "
            "absolute path on shared storage, or a URI such as s3://bucket/folder"
        )


def _is_relative(uri: str | tuple[str, ...]) -> bool:
    if isinstance(uri, tuple):
        return any(map(_is_relative, uri))
    return "://" not in uri and not Path(uri).is_absolute()
