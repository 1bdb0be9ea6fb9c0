"""python -m cluster doctor | submit | status | logs | stop

The entry file alone knows the other rooms: it lends the doctor what they can do, and has them parse
the command that is to be submitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tyro

from cluster.config import DoctorConfig, SubmitConfig
from cluster.doctor.doctor import run_doctor
from cluster.entry import print_verbs, run_room
from cluster.io.errors import UserError
from cluster.io.fields import check_fields
from cluster.jobs.jobs import JobConfig, LogsConfig, run_logs, run_status, run_stop
from cluster.jobs.submit import run_submit
from cluster.tools import Tools

DOCTOR_HELP = """Look over a cluster before anything runs on it.

  python -m cluster doctor                                    # this machine
  python -m cluster doctor --address HEAD:6379 --data /nfs/cars --out /nfs/sweep
  python -m cluster submit -- python -m cluster doctor --out s3://bucket/sweep   # from outside
  python -m cluster doctor --json                             # for machines

Every line is ok, warn or fail, with what to do about it. The exit code is 1 where something fails.
"""

SUBMIT_HELP = """Run a command of Thaw's as a job of a cluster, and follow its log.

  python -m cluster submit -- python -m tuning --data s3://bucket/cars --out s3://bucket/sweep
  python -m cluster submit --address http://HEAD:8265 --no-wait -- python -m trainers ...
  python -m cluster submit --submission-id sweep-7 -- python -m tuning ...   # safe to repeat

The rooms of this folder are sent along. Before that the command is parsed, and paths, secrets, size
and versions are checked. Ctrl-C detaches and leaves the job running. The exit code is the job's: 0,
or 1 where it failed. Where the cluster asks for a token, set RAY_AUTH_MODE=token and have it in
RAY_AUTH_TOKEN or ~/.ray/auth_token.
"""


VERBS: dict[str, tuple[str, type[Any], str]] = {
    "doctor": (
        "look over a cluster, or this machine, before anything runs on it",
        DoctorConfig,
        DOCTOR_HELP,
    ),
    "submit": (
        "check a command and this folder, run them as a job of a cluster, follow its log",
        SubmitConfig,
        SUBMIT_HELP,
    ),
    "status": ("how a job is; without its name, all jobs", JobConfig, ""),
    "logs": ("what a job has printed; --follow to its end", LogsConfig, ""),
    "stop": ("end a job, with time to save its state", JobConfig, ""),
}
"""Verb -> its summary, its config, and its help where that says more."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A command, and how it is to be submitted."""

    config: SubmitConfig
    command: tuple[str, ...]


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print_verbs("cluster", {verb: summary for verb, (summary, *_) in VERBS.items()})
        return
    match parse(arguments):
        case DoctorConfig() as config:
            _run_doctor(config)
        case Submission() as submission:
            run_submit(submission.config, submission.command, parse_room)
        case config:
            {"status": run_status, "logs": run_logs, "stop": run_stop}[arguments[0]](config)


def parse(arguments: Sequence[str]) -> Any:
    """Parse a verb and its options.

    Raises:
        UserError: for an unknown verb, or values that don't fit.
    """
    verb, *options = arguments
    if verb not in VERBS:
        raise UserError(f"verb is {verb!r}: choose from {', '.join(VERBS)}")
    # What follows is another room's.
    end = options.index("--") if verb == "submit" and "--" in options else len(options)
    summary, kind, text = VERBS[verb]
    prog = f"python -m cluster {verb}"
    config: Any = tyro.cli(kind, args=options[:end], prog=prog, description=text or summary)
    check_fields(config)
    if isinstance(config, SubmitConfig):
        return Submission(config=config, command=tuple(options[end + 1 :]))
    return config


def _run_doctor(config: DoctorConfig) -> None:
    from cluster.doctor.all_reduce import time_all_reduce
    from cluster.io import storage
    from datasets.shards import read_manifest

    tools = Tools(
        absolute=storage.absolute,
        write_bytes=storage.write_bytes,
        read_bytes=storage.read_bytes,
        delete_file=storage.delete_file,
        exists=storage.exists,
        read_manifest=read_manifest,
        time_all_reduce=time_all_reduce,
    )
    run_doctor(config, tools)


def parse_room(room: str, arguments: Sequence[str]) -> Any:
    """Parse the arguments of any room, as `python -m ROOM` would.

    Raises:
        UserError: where the room would refuse them.
        SystemExit: where they can't be parsed.
    """
    words = list(arguments)
    if not words:
        raise UserError(f"command is `python -m {room}`: say what it should do")
    match room:  # a room is imported where it is asked: torch takes seconds
        case "cluster":
            return parse(words)
        case "datasets":
            import datasets.__main__ as datasets_main

            return datasets_main.parse(words)
        case "trainers":
            import trainers.__main__ as trainers_main

            return trainers_main.parse(words)
        case _:
            import tuning.__main__ as tuning_main

            if any(word.split("=")[0] == "--from-advice" for word in words):
                # The advice lies where the job runs, and may be out of reach here.
                options = words if words[0].startswith("-") else words[1:]
                return tyro.cli(tuning_main.Command, args=options, prog="python -m tuning")
            return tuning_main.parse(words)


if __name__ == "__main__":
    run_room(main)
