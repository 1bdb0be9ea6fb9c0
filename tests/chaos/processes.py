"""Drivers in processes of their own, and what else is waited for."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from tests.chaos.checks import TIMEOUT_S, Unfit, ensure, wait_until
from tests.chaos.driver import PLAN_VAR
from tests.chaos.sabotage import Plan
from tests.conftest import ROOT
from tests.support.nodes import free_ports


class Driver:
    """A command that runs, as a user would have started it."""

    def __init__(
        self,
        command: list[str],
        plan: Plan,
        log: Path,
        env: Mapping[str, str],
        within: Sequence[str] = (),
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "tests.chaos.driver", *command],
                cwd=ROOT,
                env={**os.environ, PLAN_VAR: json.dumps(asdict(plan)), **env},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Return its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise Unfit(f"the driver still ran after {timeout_s:.0f} s: {self.tail()}") from None

    def succeed(self) -> None:
        code = self.wait()
        ensure(code == 0, f"exit code {code}: {self.tail()}")

    def sentence(self) -> str:
        """Wait for its end as a user's error; return the one sentence it ended in."""
        code = self.wait()
        ensure(code == 2, f"exit code {code} instead of 2: {self.tail()}")
        ensure("Traceback" not in self.printed, f"a traceback: {self.tail()}")
        sentences = [line for line in self.printed.splitlines() if line.startswith("error: ")]
        ensure(len(sentences) == 1, f"{len(sentences)} sentences: {self.tail()}")
        return sentences[0].removeprefix("error: ")

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that must come while it runs."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while not condition():
            ensure(self.process.poll() is None, f"it ended before {what}: {self.tail()}")
            ensure(time.monotonic() < deadline_s, f"{what} never came: {self.tail()}")
            time.sleep(0.02)

    def kill_all(self) -> int:
        """SIGKILL it and all that it started, Ray's processes included; return how many."""
        family = [self.process.pid, *descendants(self.process.pid)]
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not any(map(lives, family)), "the end of its processes", timeout_s=30)
        return len(family)

    def tail(self) -> str:
        return " / ".join(self.printed.splitlines()[-6:])[-900:]


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread beside the body; what goes wrong there is raised here, unless the
    body itself went wrong."""
    acted: Future[None] = Future()

    def run() -> None:
        try:
            acted.set_result(act())
        except Exception as error:  # it belongs to the thread that waits for it
            acted.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    yield
    acted.result(timeout=TIMEOUT_S)


def find_free_port() -> int:
    return free_ports(1)[0]


def find_by_name(pids: Iterable[int], name: str) -> list[int]:
    """Those of some processes whose command line has a name in it."""
    found = []
    for pid in pids:
        with suppress(OSError):  # it has ended since
            if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those they have."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended since
            _, parent, *_ = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = list(children.get(pid, ()))
    for child in found:
        found += children.get(child, ())
    return found


def lives(pid: int) -> bool:
    """Whether a process is there, and is no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
