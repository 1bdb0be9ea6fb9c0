"""A fake W&B server on loopback: wandb's own client talks to it, and tests read what arrived.

    with WandbServer() as server:
        environment = server.environment  # WANDB_BASE_URL and the one key it takes
        ...
        assert server.runs[run_id].rows[-1]["train/loss"] == 0.5

Faults: `fail_with(503, count=3)`, `fail_with(503, seconds=2)`, `hang()`, `recover()`, `stop()`; any
key but its own is refused with 401. `press_stop(run_id)` is the Stop button of a run's page.
"""

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from types import TracebackType
from typing import Any
from urllib.parse import unquote

import pytest
import wandb

from tests.support.wandb.records import ANSWERS, Artifact, Json, Records, Run

KEY = "0123456789abcdef0123456789abcdef01234567"
OPERATION = re.compile(r"(?:query|mutation)\s+(\w+)")


class WandbServer(ThreadingHTTPServer):
    """Serves from its start to `stop`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.records = Records()
        self.records.url = self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.Lock()
        self.asked: list[str] = []
        """GraphQL operations and paths, in the order they came, whatever the answer."""
        self.unknown: list[str] = []
        """GraphQL queries that no answer is known for: what a newer client asks."""
        self.stopped = threading.Event()
        self.refused: set[str] = set()
        """GraphQL operations that are answered with an error."""
        self._answering = threading.Event()
        self._answering.set()
        self._fault = (0, 0.0, 0.0)  # status, how many more requests, until when
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What makes wandb talk to this server, with the key it takes."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    @property
    def runs(self) -> dict[str, Run]:
        """Runs by their id."""
        return self.records.runs

    @property
    def artifacts(self) -> list[Artifact]:
        """Versions of artifacts, oldest first."""
        return list(self.records.artifacts.values())

    def fail_with(self, status: int, *, count: float = inf, seconds: float = inf) -> None:
        """Answer the next requests with a status: a number of them, or for a time."""
        with self.lock:
            self._fault = (status, count, time.monotonic() + seconds)

    def press_stop(self, run_id: str) -> None:
        """Press Stop on a run's page."""
        self.runs[run_id].is_stopped = True

    def hang(self) -> None:
        """Accept requests and answer none until `recover`."""
        self._answering.clear()

    def recover(self) -> None:
        """Answer again; requests that hung are dropped without an answer."""
        self.fail_with(0, count=0)
        self._answering.set()

    def stop(self) -> None:
        """Close the port and every connection, in mid-run as well."""
        self.stopped.set()
        self._answering.set()
        self.shutdown()
        self.server_close()

    def next_fault(self) -> int:
        """Return the status that the next request must get, or 0. It may wait for `recover`."""
        if not self._answering.is_set():
            self._answering.wait()
            raise ConnectionAbortedError
        with self.lock:
            status, count, until = self._fault
            if count <= 0 or time.monotonic() > until:
                return 0
            self._fault = (status, count - 1, until)
            return status

    def handle_error(self, request: object, client_address: object) -> None:
        """Let clients come and go: a killed one resets its connections."""

    def __enter__(self) -> "WandbServer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.stopped.is_set():
            self.stop()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """Serve this process: its wandb forgets the server before, and this one at the end."""
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        wandb.teardown()
        yield server
        server.recover()
        wandb.teardown()


def ask_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let wandb's client send rows, and ask whether to stop, several times a second, not every
    15 s."""
    from wandb.sdk.lib.run_stopping import RunStopChecker

    from trainers.tracking.wandb_internals import PRIVATE_SETTINGS

    ask: Any = RunStopChecker.__init__
    monkeypatch.setitem(ask.__kwdefaults__, "poll_interval", 0.2)
    monkeypatch.setitem(PRIVATE_SETTINGS, "x_file_stream_transmit_interval", 0.2)


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    server: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.stopped.is_set():
            self.close_connection = True
            return
        operation, variables = self._parse(body)
        self.server.asked.append(operation)
        status = self.server.next_fault() or (200 if self._is_known() else 401)
        self._answer(status, self._take(operation, variables, body) if status == 200 else {})

    do_GET = do_PUT = do_POST

    def _parse(self, body: bytes) -> tuple[str, Json]:
        if self.path != "/graphql":
            return self.path, {}
        asked = json.loads(body)
        found = OPERATION.search(asked["query"])
        return found[1] if found else asked["query"], asked.get("variables") or {}

    def _is_known(self) -> bool:
        """Uploads carry no key: their address is the permission, as in a bucket."""
        kind, _, word = (self.headers.get("Authorization") or "").partition(" ")
        given = base64.b64decode(word).decode().removeprefix("api:") if kind == "Basic" else word
        return self.command == "PUT" or "/otel/" in self.path or given == KEY

    def _take(self, operation: str, variables: Json, body: bytes) -> Json:
        records = self.server.records
        with self.server.lock:
            if self.path == "/graphql":
                if operation not in ANSWERS:
                    self.server.unknown.append(operation)
                    return {"errors": [{"message": f"no answer to {operation}"}]}
                if operation in self.server.refused:
                    return {"errors": [{"message": f"{operation} is refused"}]}
                try:
                    return {"data": ANSWERS[operation](records, variables)}
                except KeyError as error:  # a run or artifact that was never created
                    return {"errors": [{"message": f"{operation}: {error} is not found"}]}
            place = [unquote(part) for part in self.path.strip("/").split("/")]
            match place:
                case ["files", _, _, run, "file_stream"]:
                    _append(records.runs[run], json.loads(body))
                    return {"stopped": True} if records.runs[run].is_stopped else {}
                case ["runs", run, name]:
                    records.runs[run].files[name] = body
                case ["artifacts", artifact, name]:
                    records.artifacts[artifact].files[name] = body
                case ["manifests", artifact]:
                    records.artifacts[artifact].manifest = json.loads(body)
        return {}

    def _answer(self, status: int, content: Json) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


def _append(run: Run, sent: Json) -> None:
    """Keep streamed lines at their numbers, and how the run ended."""
    for name, part in sent.get("files", {}).items():
        lines = run.lines.setdefault(name, {})
        lines.update(enumerate(part["content"], start=part["offset"]))
    if sent.get("complete"):
        run.exit_code = sent["exitcode"]
