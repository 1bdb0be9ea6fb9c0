"""What a job's entrypoint comes to: the commands of Thaw that run at its end, parsed by the real
command line without running.

The submitter pod hands the entrypoint to two shells, one after the other: its own, which splits it
into the words of `ray job submit -- WORDS` (common/job.go, BuildJobSubmitCommand), and that of the
job, which gets the words joined again.
"""

import io
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from string import Template
from subprocess import list2cmdline
from typing import Any

from cluster.jobs.entrypoint import parse_room
from k8s.checker.overlays import with_setup
from k8s.checker.parts import RAY_CONTAINER, Part, dig, ray_jobs
from k8s.checker.rule import Problem, rule

ROOMS = ("cluster", "datasets", "trainers", "tuning")
OPERATORS = re.compile(r"[;&|()<>\n]+")
SHELLS = ("sh", "bash")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One `python -m ROOM ...` of an entrypoint."""

    room: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(["python", "-m", self.room, *self.arguments])


def split_shell(line: str) -> list[list[str]]:
    """Split a shell's line into the words of its commands.

    Raises:
        ValueError: for a quotation without an end.
    """
    lexer = shlex.shlex(line.replace("\\\n", " "), posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    commands: list[list[str]] = [[]]
    for word in lexer:
        if OPERATORS.fullmatch(word):
            commands.append([])
        else:
            commands[-1].append(word)
    return [words for words in commands if words]


def job_line(entrypoint: str, mode: str = "K8sJobMode") -> str:
    """The line that the job's shell gets; in HTTPMode there is no shell before it.

    Raises:
        ValueError: where the submitter's shell would keep a part of the entrypoint for itself.
    """
    if mode == "HTTPMode":
        return entrypoint
    commands = split_shell(entrypoint)
    if len(commands) > 1:
        raise ValueError(
            f"the submitter's own shell would run {' '.join(commands[1])!r}: "
            "write bash -c '...' around the whole"
        )
    return list2cmdline(commands[0]) if commands else ""


def find_commands(line: str) -> Iterator[Command]:
    """The commands of Thaw in a shell's line, those of `bash -c` too.

    Raises:
        ValueError: for a command of something else.
    """
    for words in split_shell(line):
        words = strip_prefix(words)
        if words[:1] and os.path.basename(words[0]) in SHELLS:
            script = next((i for i, word in enumerate(words) if re.fullmatch(r"-\w*c", word)), None)
            if script is None:
                raise ValueError(f"{shlex.join(words)!r} is no `bash -c`")
            yield from find_commands(words[script + 1])
        elif words[:2] == ["python", "-m"] and words[2:3] and words[2] in ROOMS:
            yield Command(room=words[2], arguments=tuple(words[3:]))
        elif words[:1] not in (["set"], ["cd"], ["export"], []):
            raise ValueError(f"{shlex.join(words)!r} is no `python -m {'|'.join(ROOMS)}`")


def strip_prefix(words: list[str]) -> list[str]:
    """Leave out assignments, and `exec`."""
    rest = list(words)
    while rest and (re.match(r"\w+=", rest[0]) or rest[0] == "exec"):
        del rest[0]
    return rest


def parse(command: Command) -> Any:
    """Let the room parse a command, whose files are not here.

    Raises:
        ValueError: with what its command line says.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            return parse_room(command.room, command.arguments)
    except SystemExit:
        words = re.sub(r"[─│╭╮╰╯|]+|-{3,}", " ", said.getvalue()).split()  # a frame
        raise ValueError(f"`{command}` is refused: {' '.join(words)}") from None


@cache
def parse_entrypoint(entrypoint: str, mode: str) -> tuple[tuple[Command, Any], ...]:
    """Commands and configs of an entrypoint.

    Raises:
        ValueError: for what doesn't reach the job, is no command of Thaw, or doesn't parse.
    """
    return tuple((command, parse(command)) for command in find_commands(job_line(entrypoint, mode)))


def mode_of(job: Part) -> str:
    return job.value.get("submissionMode") or "K8sJobMode"


def variables_of(job: Part) -> dict[str, str]:
    """Variables of the shell that reads the entrypoint first: the submitter's, or in HTTPMode the
    job's own, on the head."""
    in_head = mode_of(job) == "HTTPMode"
    pod = "rayClusterSpec.headGroupSpec.template" if in_head else "submitterPodTemplate"
    container = (dig(job.value, f"{pod}.spec.containers") or [{}])[RAY_CONTAINER]
    maps = with_setup(job.overlay).named("ConfigMap")
    found: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        found |= dig(maps.get(dig(source, "configMapRef.name", ""), {}), "data", {})
    return found | {
        item["name"]: item["value"] for item in container.get("env") or () if "value" in item
    }


def entrypoint_of(job: Part) -> str:
    """The entrypoint with the variables that are known."""
    return Template(job.value.get("entrypoint") or "").safe_substitute(variables_of(job))


@rule(ray_jobs)
def entrypoint_variables_are_set(part: Part) -> Iterator[Problem]:
    for name in Template(entrypoint_of(part)).get_identifiers():
        yield "entrypoint", f"${name} is no variable of the pod whose shell reads it"


def configs_of(job: Part) -> tuple[tuple[Command, Any], ...]:
    """Commands and configs, none where `entrypoint_parses` has something to say."""
    try:
        return parse_entrypoint(entrypoint_of(job), mode_of(job))
    except ValueError:
        return ()


@rule(ray_jobs)
def entrypoint_parses(part: Part) -> Iterator[Problem]:
    mode = mode_of(part)
    if mode == "InteractiveMode":
        return
    try:
        if not parse_entrypoint(entrypoint_of(part), mode):
            yield "entrypoint", "runs nothing of Thaw"
    except ValueError as error:
        yield "entrypoint", str(error)
