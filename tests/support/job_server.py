"""A cluster as an administrator starts it: `ray start --head` with token authentication, its job
server, further nodes, and a proxy that loses connections.

Nothing is shared with other clusters of this machine: ports, folders and HOME are its own, and what
it started is ended by process id.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.support.nodes import free_ports

TOKEN = "-".join(("correct", "horse", "battery", "staple"))  # in one piece, it would be found here
MARK = "THAW_TEST_CLUSTER"
"""Stands in the environment of every process of a cluster, with a value of its own."""
LEFT_OUT = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH", "WANDB_API_KEY")


class TokenCluster:
    """A head; `add_node` starts more.

    Args:
        folder: for its files; the path has to be short.
        host: address of the head.
        within: words before the command that starts the head.
        options: further ones of `ray start` for the head.
        variables: environment of all processes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_cpus: int = 2,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
        options: Sequence[str] = (),
        **variables: str,
    ) -> None:
        self._folder = folder
        self._mark = uuid.uuid4().hex
        gcs, dashboard, client, agent = free_ports(4)
        self.address, self.url = f"{host}:{gcs}", f"http://{host}:{dashboard}"
        (folder / "home").mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in LEFT_OUT},
            MARK: self._mark,
            "HOME": str(folder / "home"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            **variables,
        }
        self._start(
            ["--head", f"--port={gcs}", f"--dashboard-host={host}"],
            [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"],
            [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}/ray"],
            [f"--num-cpus={num_cpus}", *options],
            within=within,
        )

    def add_node(
        self,
        *,
        variables: Mapping[str, str] | None = None,
        private: Path | None = None,
        within: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> list[int]:
        """Start a raylet of 1 CPU, and return its processes.

        Args:
            variables: environment of all its processes.
            private: a folder that is another one for this node.
            within: words before the command that starts it.
            options: further ones of `ray start`.
        """
        before = set(self.pids())
        if private is not None:
            mount = f'mount -t tmpfs none {private} && exec "$@"'
            within = ["unshare", "--mount", "sh", "-c", mount, "sh"]
        (agent,) = free_ports(1)
        self._start(
            [f"--address={self.address}", "--num-cpus=1", f"--dashboard-agent-listen-port={agent}"],
            options,
            within=within,
            **variables or {},
        )
        return sorted(set(self.pids()) - before)

    def _start(self, *options: Sequence[str], within: Sequence[str] = (), **variables: str) -> None:
        command = [*within, "ray", "start", *itertools.chain(*options)]
        subprocess.run(
            [*command, "--object-store-memory=100000000", "--disable-usage-stats"],
            env=self.environment | variables,
            cwd=self._folder,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=300,
        )

    def pids(self) -> list[int]:
        """Every process of this cluster, and those started with its environment."""
        mark = f"{MARK}={self._mark}".encode()
        found = []
        for process in Path("/proc").iterdir():
            with suppress(OSError):  # it ended meanwhile
                if process.name.isdigit() and mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
        return found

    def run(self, *words: str, url: str | None = None, **variables: str) -> tuple[int, str, str]:
        """Run `python -m cluster VERB ...` against the job server, or a proxy, to its end.

        Returns:
            Exit code, stdout, stderr.
        """
        verb, *rest = words
        command = [sys.executable, "-m", "cluster", verb, "--address", url or self.url, *rest]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=240,
        )
        return done.returncode, done.stdout, done.stderr

    def follow(self, job: str, url: str | None = None) -> "subprocess.Popen[str]":
        """Start `python -m cluster logs JOB --follow`."""
        command = [sys.executable, "-m", "cluster", "logs", job, "--follow", "--address"]
        return subprocess.Popen(
            [*command, url or self.url],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def submit(self, name: str, script: str, env_vars: Mapping[str, str] | None = None) -> None:
        """Hand a Python script to the job server by its REST API."""
        self.ask(
            "jobs/",
            {
                "entrypoint": f"python -u -c '{script}'",
                "submission_id": name,
                "runtime_env": {"env_vars": dict(env_vars or {})},
            },
        )

    def status(self, job: str) -> str:
        return self.ask(f"jobs/{job}")["status"]

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask the REST API."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def close(self) -> None:
        for _ in range(2):  # a process may have been about to start another
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)


@contextmanager
def start_token_cluster(folder: Path, **options: Any) -> Iterator[TokenCluster]:
    """Start a cluster as `TokenCluster` does; end it on exit."""
    cluster = TokenCluster(folder, **options)
    try:
        yield cluster
    finally:
        cluster.close()


class Proxy:
    """Passes connections on to a port, until it is set to lose them."""

    def __init__(self, url: str) -> None:
        self._target = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._open: list[_Relay] = []
        self._to_lose: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_answer(self, request: bytes) -> None:
        """Let the next request that begins so arrive, and cut the connection at its answer."""
        self._to_lose.append(request)

    @property
    def has_lost(self) -> bool:
        """Whether every answer that was to be lost is."""
        return not self._to_lose

    def cut(self) -> int:
        """Lose every connection that is open, and return how many there were."""
        relays, self._open = self._open, []
        return sum(relay.close() for relay in relays)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client = self._server.accept()[0]
                self._open.append(
                    _Relay(client, socket.create_connection(self._target), self._to_lose)
                )


class _Relay:
    """One connection of a proxy."""

    def __init__(self, client: socket.socket, server: socket.socket, to_lose: list[bytes]) -> None:
        self._ends = client, server
        self._to_lose, self._loses_answer = to_lose, False
        self._lock, self._closed = threading.Lock(), False
        for target in (self._pass_up, self._pass_down):
            threading.Thread(target=target, daemon=True).start()

    def close(self) -> bool:
        """Close both ends; return whether they were open."""
        with self._lock:
            was_open, self._closed = not self._closed, True
        for end in self._ends if was_open else ():
            with suppress(OSError):  # the other side was first
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        return was_open

    def _pass_up(self) -> None:
        client, server = self._ends
        with suppress(OSError):
            while piece := client.recv(2**16):
                for request in [start for start in self._to_lose if piece.startswith(start)]:
                    self._to_lose.remove(request)
                    self._loses_answer = True
                server.sendall(piece)
        self.close()

    def _pass_down(self) -> None:
        client, server = self._ends
        with suppress(OSError):
            while (piece := server.recv(2**16)) and not self._loses_answer:
                client.sendall(piece)
        self.close()
