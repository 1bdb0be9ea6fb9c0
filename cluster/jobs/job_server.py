"""Ray's job server, through its own client: with time limits, and the user's sentences."""

import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from cluster.io.errors import UserError
from cluster.io.retry import doubling, retry
from cluster.ray_internals import find_server_version

T = TypeVar("T")

ADDRESS_VARS = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray's client prefers these to the address it is given."""
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
REQUEST_TIMEOUT_S = 30.0
MAX_PAUSE_S = 10.0
_STATUS = re.compile(r"status code (\d{3})\b")
_BUSY = (408, 429)
"""Of a proxy: it took too long, or too many ask."""
_NO_JOB_SERVER = (
    "address is {!r}: what answers there is no job server of Ray's; use the dashboard's URL, such "
    "as http://HOST:8265"
)


class OutOfReach(UserError):
    """The job server doesn't answer: whether the request arrived is unknown."""


class Refused(UserError):
    """The job server answers that it will not do what it was asked."""


class Lost(Exception):
    """A log stream ended before the log did."""


class _Client(JobSubmissionClient):
    """Ray's client, which would wait forever for a server that is silent."""

    def _do_request(self, *arguments: Any, **options: Any) -> requests.Response:
        return super()._do_request(*arguments, **{"timeout": REQUEST_TIMEOUT_S, **options})


class JobServer:
    """The job server at an address.

    Raises:
        OutOfReach: from each method, where it doesn't answer, or fails at it.
        UserError: from each method, where it refuses, wants another token, or isn't Ray's.
    """

    def __init__(self, address: str | None) -> None:
        self.address = find_address(address)
        for module in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(module).setLevel(logging.WARNING)
        for name in ADDRESS_VARS:
            os.environ.pop(name, None)  # the address is settled
        with self._explaining():
            try:
                self._client = _Client(self.address)
            except RuntimeError as error:  # another server's 404, or a Ray of long ago
                raise UserError(_NO_JOB_SERVER.format(self.address)) from error
            self.ray_version = find_server_version(self._client)

    def submit(self, **request: Any) -> None:
        """Hand in a job; arguments are those of JobSubmissionClient.submit_job.

        Raises:
            Refused: as where its submission id is taken.
        """
        with self._explaining():
            self._client.submit_job(**request)

    def find(self, job: str) -> JobDetails | None:
        """Return what is known of a job; None where there is none of this name."""
        with self._explaining():
            try:
                return self._client.get_job_info(job)
            except RuntimeError as error:
                if _find_status(error) == 404:
                    return None
                raise

    def get(self, job: str) -> JobDetails:
        """Return what is known of a job.

        Raises:
            UserError: where there is none of this name.
        """
        details = self.find(job)
        if details is None:
            raise UserError(
                f"job is {job!r}: {self.address} has no job of this name; "
                f"`python -m cluster status{self.option}` lists its jobs (a restarted head has "
                "lost them)"
            )
        return details

    def list(self) -> list[JobDetails]:
        """List the submitted jobs, the newest first."""
        with self._explaining():
            jobs = [job for job in self._client.list_jobs() if job.type is JobType.SUBMISSION]
        return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)

    def read_log(self, job: str) -> str:
        """Return all that a job has printed so far."""
        with self._explaining():
            try:
                return self._client.get_job_logs(job)
            except RuntimeError as error:
                raise OutOfReach(
                    f"job is {job!r}: its log can't be read, as where the node of its driver is "
                    "gone; look for it in Ray's folder on that node"
                ) from error

    def stop(self, job: str) -> None:
        with self._explaining():
            self._client.stop_job(job)

    async def tail(self, job: str) -> AsyncIterator[str]:
        """Yield the log of a job from its beginning, until the job ends.

        Raises:
            Lost: where the connection ends before.
        """
        try:
            async for text in self._client.tail_job_logs(job):
                yield text
        except (aiohttp.ClientError, OSError, RuntimeError, TimeoutError) as error:
            raise Lost(str(error) or type(error).__name__) from error

    def retry(self, ask: Callable[[], T], within_s: float, write: Callable[[str], None]) -> T:
        """Ask again until the server answers.

        Raises:
            OutOfReach: where it doesn't for `within_s`.
        """
        return retry(
            ask,
            lambda error: isinstance(error, OutOfReach),
            doubling(1.0, max_s=MAX_PAUSE_S, within_s=within_s),
            note=lambda: write("The job server doesn't answer; trying again"),
        )

    @property
    def option(self) -> str:
        """The option that the next command needs to use this server."""
        return "" if self.address == DEFAULT_ADDRESS else f" --address {self.address}"

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise UserError(_explain_refusal(self.address, str(error))) from error
        except requests.exceptions.JSONDecodeError as error:
            raise UserError(_NO_JOB_SERVER.format(self.address)) from error
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise OutOfReach(
                f"address is {self.address!r}: no job server answers there; check --address, the "
                "network (`kubectl port-forward`), and that the head was started with its "
                "dashboard (ray[default])"
            ) from error
        except RuntimeError as error:
            status = _find_status(error)
            if status is None:
                raise
            raise _explain_status(self.address, status, str(error)) from error


def find_address(address: str | None) -> str:
    """Return the URL of the job server.

    Raises:
        UserError: where the address is none.
    """
    address = address or os.environ.get(ADDRESS_VARS[0]) or DEFAULT_ADDRESS
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"address is {address!r}: the job server has a URL, such as http://HOST:8265"
        )
    return address.rstrip("/")


def has_ended(details: JobDetails) -> bool:
    return JobStatus(details.status).is_terminal()


def _find_status(error: RuntimeError) -> int | None:
    """Return the HTTP status in an error of Ray's client, of which it has no class; None for
    another error.

    The head passes on what a node's agent answers, with status 500 whatever that is: the last one
    in its words is the reason.
    """
    found = _STATUS.findall(str(error))
    return int(found[-1]) if found else None


def _explain_status(address: str, status: int, words: str) -> OutOfReach | Refused:
    reason = " ".join(words.rpartition(f"status code {status}: ")[2].split())[-300:]
    if status < 500 and status not in _BUSY:
        return Refused(
            f"address is {address!r}: the job server refuses it with {status} ({reason})"
        )
    return OutOfReach(
        f"address is {address!r}: the job server, or a proxy before it, answers {status} "
        f"({reason}); try again when it is up, or look into dashboard.log on the head"
    )


def _explain_refusal(address: str, reason: str) -> str:
    if reason.startswith("Authentication required"):
        return (
            f"address is {address!r}: it asks for a token (401), and none was sent; set "
            "RAY_AUTH_MODE=token and give the cluster's token in RAY_AUTH_TOKEN or "
            "~/.ray/auth_token"
        )
    return (
        f"address is {address!r}: it refuses the token (403); give this cluster's in "
        "RAY_AUTH_TOKEN or ~/.ray/auth_token"
    )
