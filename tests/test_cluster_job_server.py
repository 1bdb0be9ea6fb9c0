"""What a job server answers, and what becomes of it: with a server that answers as a test wants."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import patch

import pytest

from cluster.config import SubmitConfig
from cluster.io.errors import UserError
from cluster.jobs.config import LogsConfig, StatusConfig, StopConfig, Submission
from cluster.jobs.job_server import JobServer, OutOfReach, Refused
from cluster.jobs.jobs import run_logs, run_status, run_stop
from cluster.jobs.stream import Follower
from cluster.jobs.submit import hand_in, run_submission

RAY = "2.60.0"
HEAD = {
    "python": "3.12.9", "ray": RAY, "torch": "2.14.1+cpu", "torchvision": "0.29.1+cpu",
    "timm": "1.0.31", "albumentations": "2.0.8", "opencv-python-headless": "5.1.0.2",
    "wandb": "0.31.7",
}  # fmt: skip
"""Other versions than here, all of them within what pyproject.toml asks for."""
DOWN = (503, "<html>503 Service Temporarily Unavailable nginx</html>")
TAKEN = "Traceback: RuntimeError: Request failed with status code 400: ValueError: already exists"


class Stub:
    """A job server that has `jobs`; `answers` come first, one for each request."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.answers: list[tuple[int, str]] = []
        self.head = HEAD
        self.end: dict[str, Any] = {"status": "SUCCEEDED", "driver_exit_code": 0}
        """Of each job that is submitted."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(stub.get)

            def do_POST(self) -> None:
                self.reply(stub.post)

            def reply(self, answer: Callable[[str, bytes], tuple[int, Any]]) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                is_counted = stub.answers and not self.path.endswith("version")
                code, body = stub.answers.pop(0) if is_counted else answer(self.path, content)
                sent = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            do_PUT = do_POST

            def log_message(self, format: str, *values: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def get(self, path: str, content: bytes) -> tuple[int, Any]:
        if path == "/api/version":
            facts = {"ray_commit": "x", "session_name": "s"}
            return 200, {"version": "4", "ray_version": self.head["ray"], **facts}
        if path == "/api/jobs/":
            return 200, [*self.jobs.values()]
        if path.startswith("/api/packages"):
            return 200, {}
        name, _, part = path.removeprefix("/api/jobs/").partition("/")
        if name not in self.jobs:
            return 404, f"Job {name} does not exist"
        return 200, {"logs": json.dumps(self.head) + "\n"} if part == "logs" else self.jobs[name]

    def post(self, path: str, content: bytes) -> tuple[int, Any]:
        request = json.loads(content)
        name = request["submission_id"]
        if name in self.jobs:
            return 500, TAKEN
        facts = {"type": "SUBMISSION", "submission_id": name, "entrypoint": request["entrypoint"]}
        self.jobs[name] = {**facts, "metadata": request.get("metadata"), **self.end}
        return 200, {"job_id": name, "submission_id": name}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr(time, "sleep", lambda pause_s: None)
    stub = Stub()
    with patch.dict(os.environ):  # JobServer takes addresses out of it
        yield stub
    stub.server.shutdown()
    stub.server.server_close()


def submit_job(stub: Stub, **options: Any) -> None:
    command = ("python", "-m", "datasets", "info", "--data", "/nfs/cars")
    config = SubmitConfig(address=stub.url, wait=False, reconnect_s=60.0, **options)
    run_submission(Submission(config=config, command=command))


def has(stub: Stub, name: str, **facts: Any) -> None:
    facts = {"type": "SUBMISSION", "entrypoint": "python -m datasets", "status": "RUNNING"} | facts
    stub.jobs[name] = {"submission_id": name, **facts}


def test_a_head_with_what_pyproject_asks_for_is_taken(stub: Stub) -> None:
    """Other versions than this machine's, whose Python and packages run nothing of the job."""
    submit_job(stub, submission_id="info")
    assert stub.jobs["info"]["metadata"].items() >= {
        ("python", "3.12.9"), ("ray", RAY), ("torch", "2.14.1+cpu"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "found", "sentence"),
    [
        ("python", "3.14.0", "has python 3.14.0 (Thaw needs >=3.11,<3.14)"),
        ("torch", "2.13.0", "has torch 2.13.0 (Thaw needs ==2.14.1)"),
        ("timm", "1.0.30", "has timm 1.0.30 (Thaw needs ==1.0.31)"),
        ("wandb", "0.32.0", "has wandb 0.32.0 (Thaw needs >=0.31,<0.32)"),
        ("ray", "2.59.0", "has ray 2.59.0 (Thaw needs ==2.60.0)"),
    ],
)
def test_a_head_without_it_is_refused(stub: Stub, name: str, found: str, sentence: str) -> None:
    stub.head = HEAD | {name: found}
    with pytest.raises(UserError, match="check_versions: ") as refused:
        submit_job(stub, submission_id="info")
    assert sentence in str(refused.value) and "--no-check-versions" in str(refused.value)
    assert "info" not in stub.jobs
    submit_job(stub, submission_id="info", check_versions=False)
    assert stub.jobs["info"]["metadata"].keys() == {"commit"}


@pytest.mark.parametrize("cause", ["stopped", "other versions"])
def test_a_check_that_failed_is_made_again(stub: Stub, cause: str) -> None:
    """With the same --submission-id, once its reason is gone."""
    good = stub.end
    if cause == "stopped":
        stub.end = {"status": "STOPPED", "message": "Job was intentionally stopped."}
    else:
        stub.head = HEAD | {"torch": "2.13.0"}
    with pytest.raises(UserError, match="check_versions"):
        submit_job(stub, submission_id="sweep-7")
    stub.end, stub.head = good, HEAD
    submit_job(stub, submission_id="sweep-7")
    assert sum(name.startswith("sweep-7-versions-") for name in stub.jobs) == 2
    assert "sweep-7" in stub.jobs


@pytest.mark.parametrize(
    ("run", "config", "code"),
    [
        (run_status, StatusConfig, 503),
        (run_status, StatusConfig, 429),
        (run_logs, LogsConfig, 502),
        (run_stop, StopConfig, 500),
    ],
)
def test_a_server_that_fails_is_one_sentence(stub: Stub, run: Any, config: Any, code: int) -> None:
    has(stub, "job")
    stub.answers = [(code, DOWN[1])] * 2
    for job in (None, "job"):
        with pytest.raises(OutOfReach, match=rf"answers {code} \(<html>503 Service .*try again"):
            run(config(address=stub.url, job=job))


def test_what_a_server_refuses_is_one_sentence(stub: Stub) -> None:
    server = JobServer(stub.url)
    stub.answers = [(400, "ValueError: no such environment")]
    with pytest.raises(Refused, match=r"refuses it with 400 \(ValueError: no such environment"):
        server.submit(entrypoint="x", submission_id="x")


def test_a_log_is_followed_over_a_server_that_is_down(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    has(stub, "job", status="SUCCEEDED", driver_exit_code=0)
    stub.answers = [DOWN] * 5
    run_logs(LogsConfig(address=stub.url, job="job", follow=True))
    printed = capsys.readouterr()
    assert printed.out.startswith('{"python"') and printed.out.endswith("Job job succeeded\n")
    assert "trying again" in printed.err


def test_a_log_of_a_server_that_stays_down_ends_in_one_sentence(stub: Stub) -> None:
    server = JobServer(stub.url)
    has(stub, "job")
    stub.answers = [DOWN] * 10_000
    with pytest.raises(OutOfReach, match=r"answers 503 .*; no answer for 0\.1 s, so the log ends"):
        Follower(server, "job", print, reconnect_s=0.1).follow()


def test_a_command_is_submitted_over_a_server_that_is_down(stub: Stub) -> None:
    stub.answers = [DOWN] * 3
    submit_job(stub, submission_id="info")
    assert [*stub.jobs][-1] == "info" and len(stub.jobs) == 2


def test_a_name_that_is_taken_is_found_at_once(stub: Stub) -> None:
    """The head passes on an agent's 400 with status 500."""
    has(stub, "job")
    asked, get = [], stub.get
    stub.get = lambda path, content: asked.append(path) or get(path, content)
    request = {"submission_id": "job", "entrypoint": "x"}
    hand_in(JobServer(stub.url), request, 60.0)
    assert asked == ["/api/version"] * 2 + ["/api/jobs/job"]


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"status": "FAILED", "driver_exit_code": 2}, 2),
        ({"status": "FAILED", "driver_exit_code": 143}, 143),
        ({"status": "FAILED", "driver_exit_code": -9}, 137),
        ({"status": "FAILED", "message": "its node died"}, 1),
        ({"status": "STOPPED"}, 1),
    ],
)
def test_to_follow_a_job_ends_as_the_job_does(stub: Stub, facts: dict, code: int) -> None:
    has(stub, "job", **facts)
    with pytest.raises(SystemExit) as ended:
        run_logs(LogsConfig(address=stub.url, job="job", follow=True))
    assert ended.value.code == code
