"""Submit a command to a cluster: check it, send it once, follow it to its end."""

import json
import shlex
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails

from cluster.config import SubmitConfig
from cluster.entry import ROOT
from cluster.io.errors import UserError
from cluster.io.terminal import report
from cluster.jobs.config import Submission
from cluster.jobs.entrypoint import check_command
from cluster.jobs.job_server import JobServer, OutOfReach, Refused, has_ended
from cluster.jobs.jobs import STOP_WAIT_S, follow_to_end, write
from cluster.jobs.package import list_files, pack
from cluster.provenance import COMMIT_VAR, PACKAGES, find_commit, find_unsuitable
from cluster.secrets import refuse_secrets_in_files, refuse_secrets_in_words

VERSIONS_TIMEOUT_S = 120.0
"""Of the small job that asks the head for its versions: its first process may have to come up."""
ASK_EVERY_S = 0.3
FIND_VERSIONS = (
    "import json, platform; from importlib.metadata import version; "
    "print(json.dumps({'python': platform.python_version()} | "
    f"{{name: version(name) for name in {PACKAGES!r}}}))"
)


def run_submission(submission: Submission) -> None:
    """Check the command and the folder, submit them, and follow the job.

    Raises:
        UserError: for what would fail or leak on the cluster; nothing was submitted then.
        SystemExit: with 1 where the job failed.
    """
    config, command = submission.config, submission.command
    refuse_secrets_in_words(command, "command")
    refuse_secrets_in_words(config.env, "env")
    check_command(command)
    refuse_secrets_in_files(list_files(), ROOT)
    with tempfile.TemporaryDirectory(prefix="thaw-submit-") as folder:
        package = pack(Path(folder, "thaw.zip"), max_mib=config.max_mib)
        report(f"Checked: no secrets, no relative paths; {package}")
        server = JobServer(config.address)
        job = config.submission_id or _new_name()
        request = build_request(config, job, command, package.path)
        known = server.retry(partial(server.find, job), config.reconnect_s, report)
        if known is not None:
            _refuse_other_command(known, request)
            report(f"Job {job} is known already: it is not started a second time")
        else:
            if config.check_versions:
                found = check_versions(server, job, config.reconnect_s)
                request["metadata"] |= {name: found[name] for name in _TOLD}
            try:
                hand_in(server, request, config.reconnect_s)
            except KeyboardInterrupt:
                raise SystemExit(
                    f"Interrupted: `python -m cluster status {job}{server.option}` tells whether "
                    "the job was submitted"
                ) from None
    _print_next_steps(server, job)
    if config.wait:
        follow_to_end(server, job, config.reconnect_s)


def build_request(
    config: SubmitConfig, job: str, command: Sequence[str], package: Path
) -> dict[str, Any]:
    """Build the request to the job server."""
    commit = find_commit(ROOT)
    env = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}  # read by the job's supervisor
    if commit is not None:
        env[COMMIT_VAR] = commit
    env |= dict(pair.split("=", 1) for pair in config.env)
    return {
        "submission_id": job,
        "entrypoint": shlex.join(command),
        "runtime_env": {"working_dir": str(package), "env_vars": env},
        "metadata": {"commit": commit or "unknown"},
    }


_TOLD = ("python", "ray", "torch")


def check_versions(server: JobServer, job: str, reconnect_s: float) -> dict[str, str]:
    """Ask the head for its versions, by a small job that prints them, and return them.

    What this machine has decides nothing: the job server only gets a command and our files. It only
    knows Ray's version. The small job stays in the list: one that is deleted comes back without its
    command, when Ray writes down how it ended. Each try has its own, as an earlier one may have
    failed for a reason that is gone.

    Args:
        job: that these versions are asked for.

    Raises:
        UserError: where Thaw needs others, or the head does not print them.
    """
    _refuse_unsuitable(server, {"ray": server.ray_version})
    name = f"{job}-versions-{uuid.uuid4().hex[:4]}"
    entrypoint = shlex.join(["python", "-c", FIND_VERSIONS])
    hand_in(server, {"entrypoint": entrypoint, "submission_id": name}, reconnect_s)
    deadline_s = time.monotonic() + VERSIONS_TIMEOUT_S
    ask, read = partial(server.get, name), partial(server.read_log, name)
    while not has_ended(asked := server.retry(ask, reconnect_s, report)):
        if time.monotonic() > deadline_s:
            with suppress(UserError):  # it may be out of reach, too
                server.stop(name)
            raise UserError(
                f"check_versions: the head ran no command in {VERSIONS_TIMEOUT_S:g} s; see `python "
                f"-m cluster status {name}{server.option}`, or give --no-check-versions"
            )
        time.sleep(ASK_EVERY_S)
    log = server.retry(read, reconnect_s, report)
    if asked.driver_exit_code != 0:
        last = (log or asked.message or "nothing was printed").strip().splitlines()[-1]
        raise UserError(
            f"check_versions: the head's `python` does not print its versions ({last}); start Ray "
            "where the packages of pyproject.toml are on PATH, or give --no-check-versions"
        )
    found = json.loads(log.splitlines()[-1])
    _refuse_unsuitable(server, found)
    return found


def _refuse_unsuitable(server: JobServer, versions: Mapping[str, str]) -> None:
    if unsuitable := find_unsuitable(versions):
        raise UserError(
            f"check_versions: {server.address} has {', '.join(unsuitable)}; install the versions "
            "of pyproject.toml there, or give --no-check-versions"
        )


def hand_in(server: JobServer, request: dict[str, Any], reconnect_s: float) -> None:
    """Submit a job; where the answer is lost, look whether it arrived before trying again.

    Raises:
        OutOfReach: where the server doesn't answer for `reconnect_s`.
        UserError: where it refuses the job.
    """
    job = request["submission_id"]

    def submit() -> None:
        try:
            server.submit(**request)
        except (OutOfReach, Refused):
            if server.find(job) is None:  # else this or an earlier try arrived
                raise

    server.retry(submit, reconnect_s, report)


def _refuse_other_command(known: JobDetails, request: Mapping[str, Any]) -> None:
    if known.entrypoint != request["entrypoint"]:
        raise UserError(
            f"submission_id is {request['submission_id']!r}: the cluster has a job of this name, "
            f"which runs `{known.entrypoint}`; use another --submission-id"
        )


def _new_name() -> str:
    return f"thaw-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


def _print_next_steps(server: JobServer, job: str) -> None:
    write(f"Job:      {job}\n")
    report(f"Status:   python -m cluster status {job}{server.option}")
    report(f"Follow:   python -m cluster logs {job} --follow{server.option}")
    report(f"Stop:     python -m cluster stop {job}{server.option}")
