"""Jobs that were submitted: status, logs, stop."""

import sys
import textwrap
import time
from datetime import UTC, datetime
from functools import partial

from ray.job_submission import JobDetails, JobStatus

from cluster.io.terminal import report
from cluster.jobs.config import LogsConfig, StatusConfig, StopConfig
from cluster.jobs.job_server import JobServer, has_ended
from cluster.jobs.stream import Follower, warn

STOP_WAIT_S = 30
"""Seconds that a job gets to save its state before it is killed; Ray's default is 3."""
ASK_EVERY_S = 0.5
MAX_COMMAND = 80


def run_status(config: StatusConfig) -> None:
    """Print how a job is, or a line for each."""
    server = JobServer(config.address)
    if config.job is None:
        print_jobs(server)
        return
    job = server.get(config.job)
    print(f"job      {config.job}")
    print(f"status   {describe(job)}, {_describe_time(job)}")
    print(f"command  {job.entrypoint}")
    for name, value in (job.metadata or {}).items():
        print(f"{name:<8} {value}")
    if JobStatus(job.status) is JobStatus.FAILED and job.driver_exit_code is None and job.message:
        print(f"message  {' '.join(job.message.split())}")


def run_logs(config: LogsConfig) -> None:
    """Print the log of a job, or list the jobs; with `follow`, exit as the job does."""
    server = JobServer(config.address)
    if config.job is None:
        print_jobs(server)
        return
    if not config.follow:
        server.get(config.job)
        write(server.read_log(config.job))
        return
    server.retry(partial(server.get, config.job), config.reconnect_s, warn)
    follow_to_end(server, config.job, config.reconnect_s)


def run_stop(config: StopConfig) -> None:
    """Stop a job and wait until it has ended, or list the jobs."""
    server = JobServer(config.address)
    if config.job is None:
        print_jobs(server)
        return
    job = server.get(config.job)
    if not has_ended(job):
        server.stop(config.job)
        deadline_s = time.monotonic() + STOP_WAIT_S + 10
        while not has_ended(job) and time.monotonic() < deadline_s:
            time.sleep(ASK_EVERY_S)
            job = server.get(config.job)
    print(f"Job {config.job} {describe(job)}")


def follow_to_end(server: JobServer, job: str, reconnect_s: float) -> None:
    """Write a job's log until it ends; exit with its code, with 1 where it was stopped or has none.

    Ctrl-C leaves the job alone.
    """
    try:
        details = Follower(server, job, write, reconnect_s=reconnect_s).follow()
    except KeyboardInterrupt:
        print(
            f"\nDetached: job {job} goes on. `python -m cluster logs {job} --follow"
            f"{server.option}` follows it again, `python -m cluster stop {job}{server.option}` "
            "ends it",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    if details.message and details.driver_exit_code is None:
        print(" ".join(details.message.split()), file=sys.stderr)
    report(f"Job {job} {describe(details)}")
    if JobStatus(details.status) is not JobStatus.SUCCEEDED:
        raise SystemExit(_to_exit_code(details.driver_exit_code or 1))


def _to_exit_code(code: int) -> int:
    """Return what a shell says: Python names the signal that ended a process, as -9."""
    return 128 - code if code < 0 else code


def describe(job: JobDetails) -> str:
    """Write how a job is: `running`, `failed (exit code 2)`."""
    code = f" (exit code {job.driver_exit_code})" if job.driver_exit_code else ""
    return f"{JobStatus(job.status).value.lower()}{code}"


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def print_jobs(server: JobServer) -> None:
    jobs = server.list()
    if not jobs:
        print(f"{server.address} has no jobs")
        return
    width = max(len(job.submission_id or "") for job in jobs)
    for job in jobs:
        command = textwrap.shorten(job.entrypoint, MAX_COMMAND, placeholder=" ...")
        print(
            f"{job.submission_id:<{width}}  {describe(job):<22}  {_describe_time(job)}  {command}"
        )


def _describe_time(job: JobDetails) -> str:
    if job.start_time is None:
        return "not started"
    began = datetime.fromtimestamp(job.start_time / 1000, UTC)
    end_s = job.end_time / 1000 if job.end_time else time.time()
    return f"{began:%Y-%m-%d %H:%M:%S} UTC, {max(0.0, end_s - job.start_time / 1000):.0f} s"
