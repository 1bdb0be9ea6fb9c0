"""Replaces KubeRay's operator: a Ray cluster of one job on this machine, its job server with
token authentication, and a submitter that runs the line which the operator writes."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from cluster.entry import ROOT
from tests.support.nodes import free_ports

START_S = 120
STORE_BYTES = 256 * 2**20
BIN = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True)
class JobServer:
    """A running cluster, as a submitter pod sees it."""

    url: str
    variables: Mapping[str, str]
    """Environment of its pods, the token among it."""

    def submit(self, entrypoint: str, name: str, timeout_s: float) -> str:
        """Run an entrypoint as common/job.go, BuildJobSubmitCommand, has it run: at the end of a
        shell's line, unquoted. The operator asks for no waiting and follows the logs after it; here
        the line waits.

        Returns:
            What the submitter printed, the job's own lines among it.

        Raises:
            ValueError: with that, where the job fails.
        """
        line = f"ray job submit --address {self.url} --submission-id {name} -- {entrypoint} ;"
        done = subprocess.run(
            ["/bin/bash", "-c", line],
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        if done.returncode:
            raise ValueError(f"job {name} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout


@contextmanager
def serve_jobs(num_workers: int) -> Iterator[JobServer]:
    """Start a head that takes no work and workers of one CPU, as `ray start` in pods does."""
    with ExitStack() as stack:
        # A socket's path may have 107 characters: not in pytest's own folder.
        folder = Path(tempfile.mkdtemp(prefix="thaw-jobs-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(end_processes, folder)
        gcs, dashboard, client = (find_port() for _ in range(3))
        variables = pod_variables(folder)
        head = [f"--head --port={gcs} --dashboard-host=127.0.0.1 --dashboard-port={dashboard}"]
        head += [f"--ray-client-server-port={client} --temp-dir={folder}/ray --num-cpus=0"]
        stack.enter_context(run_node(" ".join(head), variables, folder / "head.log"))
        server = JobServer(url=f"http://127.0.0.1:{dashboard}", variables=variables)
        wait_for(server)
        for number in range(num_workers):
            worker = f"--address=127.0.0.1:{gcs} --num-cpus=1"
            log = folder / f"worker-{number}.log"
            stack.enter_context(run_node(worker, variables, log))
            # One after the other: two that start at once may take one name for their sockets.
            wait_for_nodes(server, number + 2)
        yield server


def pod_variables(folder: Path) -> dict[str, str]:
    """The environment of a pod: a home of its own, the rooms on PYTHONPATH, a token."""
    return {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }


@contextmanager
def run_node(options: str, variables: Mapping[str, str], log: Path) -> Iterator[None]:
    """Run a node of Ray; asked to end, `ray start --block` ends what it has started."""
    command = [BIN / "ray", "start", "--block", *options.split()]
    command += [f"--object-store-memory={STORE_BYTES}"]
    command += [f"--dashboard-agent-listen-port={find_port()}"]
    with log.open("w") as output:
        node = subprocess.Popen(command, env=variables, stdout=output, stderr=output)
    try:
        yield
    finally:
        node.terminate()
        with suppress(subprocess.TimeoutExpired):
            node.wait(30)
        node.kill()
        node.wait()


def find_processes(home: Path) -> list[int]:
    """Processes whose home this is: all that a node has started inherit it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another's
            if f"HOME={home}".encode() in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found


def end_processes(home: Path) -> None:
    """End what has outlived its node."""
    for pid in find_processes(home):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def find_port() -> int:
    return free_ports(1)[0]


def ask(server: JobServer, path: str, *, token: str | None = None) -> str:
    """Ask the dashboard's server; with the right token, unless another is given."""
    token = server.variables["RAY_AUTH_TOKEN"] if token is None else token
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urlopen(Request(f"{server.url}{path}", headers=headers), timeout=10) as answer:
        return answer.read().decode()


def wait_for(server: JobServer) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            ask(server, "/api/version")
            return
        except (URLError, ConnectionError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def wait_for_nodes(server: JobServer, count: int) -> None:
    """Wait as the operator does before it submits: until all pods are up."""
    deadline = time.monotonic() + START_S
    while (alive := ask(server, "/nodes?view=summary").count('"ALIVE"')) < count:
        assert time.monotonic() < deadline, f"{alive} of {count} nodes came up"
        time.sleep(0.5)
