"""Follow a job's log: each character once, also when the connection breaks."""

import asyncio
import sys
import time
from collections.abc import Callable
from functools import partial

from ray.job_submission import JobDetails

from cluster.jobs.job_server import MAX_PAUSE_S, JobServer, Lost, OutOfReach, has_ended

IDLE_S = 60.0
"""Silence after which the server is asked whether there is news: a stream may be dead, and not say
so, where a proxy between has forgotten it."""


class Follower:
    """Writes the log of one job."""

    def __init__(
        self, server: JobServer, job: str, write: Callable[[str], None], *, reconnect_s: float
    ) -> None:
        self._server, self._job, self._write = server, job, write
        self._reconnect_s = reconnect_s
        self._num_written = 0

    def follow(self) -> JobDetails:
        """Write the log until the job ends, and return how it did.

        Raises:
            OutOfReach: where the server doesn't answer for `reconnect_s`.
            UserError: where the server has forgotten the job.
        """
        pause_s = 1.0
        while True:
            before = self._num_written
            try:
                asyncio.run(self._read_stream())
                reason = "it was closed"
            except Lost as lost:
                reason = str(lost)
            details = self._ask_again()
            if has_ended(details):
                self._write_end()
                return details
            pause_s = 1.0 if self._num_written > before else min(2 * pause_s, MAX_PAUSE_S)
            warn(f"The log's connection was lost ({reason}); resuming")
            time.sleep(pause_s)

    async def _read_stream(self) -> None:
        """Write what is new in a stream, which begins with all that was."""
        place = 0
        stream = self._server.tail(self._job)
        while True:
            piece = asyncio.ensure_future(anext(stream, None))
            while not (await asyncio.wait({piece}, timeout=IDLE_S))[0]:
                if self._is_stale():
                    piece.cancel()
                    raise Lost(f"nothing came for {IDLE_S:g} s, though there is news")
            text = await piece
            if text is None:
                return
            self._write_from(text, place)
            place += len(text)

    def _is_stale(self) -> bool:
        try:
            log = self._server.read_log(self._job)
            return len(log) > self._num_written or has_ended(self._server.get(self._job))
        except OutOfReach:
            return True

    def _write_end(self) -> None:
        try:
            self._write_from(self._server.read_log(self._job), 0)
        except OutOfReach as error:
            warn(f"The end of the log may be missing: {error}")

    def _write_from(self, text: str, place: int) -> None:
        """Write of a text that stands at `place` of the log what was not yet written."""
        fresh = text[max(0, self._num_written - place) :]
        if fresh:
            self._num_written += len(fresh)
            self._write(fresh)

    def _ask_again(self) -> JobDetails:
        """Ask how the job is until the server answers."""
        ask = partial(self._server.get, self._job)
        try:
            return self._server.retry(ask, self._reconnect_s, warn)
        except OutOfReach as error:
            raise OutOfReach(
                f"{error}; no answer for {self._reconnect_s:g} s, so the log ends here, and the "
                f"job may continue: `python -m cluster logs {self._job} --follow"
                f"{self._server.option}` follows it again"
            ) from error


def warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
