"""Jobs on a real job server with token authentication, through connections that break."""

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from cluster.jobs.jobs import STOP_WAIT_S
from tests.conftest import ROOT
from tests.support.job_server import TOKEN, Proxy, TokenCluster

pytestmark = pytest.mark.ray


def chatter(end: Path) -> str:
    """A script that prints lines until a file is there."""
    return (
        "import itertools, os, time\n"
        "for n in itertools.count():\n"
        '    print("line", n, "ä" * 50)\n'
        f'    if os.path.exists("{end}"): break\n'
        "    time.sleep(0.04)\n"
    )


@pytest.fixture
def proxy(token_cluster: TokenCluster) -> Iterator[Proxy]:
    proxy = Proxy(token_cluster.url)
    yield proxy
    proxy.close()


def wait_for(line: str, stream: IO[str] | None) -> str:
    """Read what a process prints until a line begins so, and return all of it."""
    assert stream is not None
    read = ""
    for printed in stream:
        read += printed
        if printed.startswith(line):
            return read
    raise AssertionError(f"no line {line!r} in {read}")


def test_a_submitted_command_is_run_once_and_followed(
    token_cluster: TokenCluster, proxy: Proxy, easy_data: str
) -> None:
    command = ["--", "python", "-m", "datasets", "info", "--data", easy_data]
    proxy.lose_answer(b"POST /api/jobs/")  # of the job that asks for versions
    code, printed, error = token_cluster.run(
        "submit", "--submission-id", "info", *command, url=proxy.url
    )

    assert code == 0, printed + error
    assert proxy.has_lost, "and the job was found, without a second try"
    assert "fingerprint  48-17-13-3" in printed and printed.endswith("Job info succeeded\n")
    assert f"logs info --follow --address {proxy.url}" in printed
    assert TOKEN not in printed + error
    job = token_cluster.ask("jobs/info")
    assert job["entrypoint"] == f"python -m datasets info --data {easy_data}"
    assert job["metadata"]["ray"] == token_cluster.ask("version")["ray_version"]
    assert job["runtime_env"]["env_vars"]["THAW_COMMIT"] == job["metadata"]["commit"]
    assert job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_WAIT_S)

    code, again, _ = token_cluster.run("submit", "--submission-id", "info", *command)
    assert code == 0 and "not started a second time" in again
    assert again.count("fingerprint") == 1
    names = [job["submission_id"] for job in token_cluster.ask("jobs/") if job["submission_id"]]
    asking, info = sorted((name for name in names if name.startswith("info")), reverse=True)
    assert info == "info" and re.fullmatch("info-versions-[0-9a-f]{4}", asking)

    command[-1] = f"{easy_data}/other"
    code, _, error = token_cluster.run("submit", "--submission-id", "info", *command)
    assert code == 2 and "submission_id is 'info': the cluster has a job of this name" in error


def test_ray_job_submit_does_the_same(token_cluster: TokenCluster, easy_data: str) -> None:
    command = f"ray job submit --address {token_cluster.url} --working-dir . -- python -m datasets"
    done = subprocess.run(
        [*command.split(), "info", "--data", easy_data],
        cwd=ROOT,
        env=token_cluster.environment,
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "fingerprint  48-17-13-3" in done.stdout


def test_a_lost_connection_loses_and_repeats_no_line(
    token_cluster: TokenCluster, proxy: Proxy, tmp_path: Path
) -> None:
    token_cluster.submit("chatter", chatter(tmp_path / "end"))
    follower = token_cluster.follow("chatter", proxy.url)
    printed = error = ""
    for _ in range(2):
        num_lines = token_cluster.ask("jobs/chatter/logs")["logs"].count("\n")
        printed += wait_for(f"line {num_lines} ", follower.stdout)  # of a connection of now
        assert proxy.cut() >= 1
        error += wait_for("The log's connection was lost", follower.stderr)
    (tmp_path / "end").touch()
    assert follower.stdout is not None and follower.stderr is not None
    printed, error = printed + follower.stdout.read(), error + follower.stderr.read()
    follower.stdout.close()
    follower.stderr.close()

    assert follower.wait(timeout=240) == 0, error
    assert error.count("resuming") == 2
    lines = [line for line in printed.splitlines() if line.startswith("line")]
    assert lines == [f"line {number} {'ä' * 50}" for number in range(len(lines))]
    _, whole, _ = token_cluster.run("logs", "chatter")
    assert printed == whole + "Job chatter succeeded\n"


def test_ctrl_c_leaves_the_job_and_stop_lets_it_save(token_cluster: TokenCluster) -> None:
    token_cluster.submit(
        "long",
        "import signal, sys, time\n"
        'def save(*_): time.sleep(5); print("saved"); sys.exit(143)\n'
        "signal.signal(signal.SIGTERM, save)\n"
        'print("up")\n'
        "time.sleep(600)",
        {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
    )
    follower = token_cluster.follow("long")
    wait_for("up", follower.stdout)
    follower.send_signal(signal.SIGINT)
    _, error = follower.communicate(timeout=240)

    assert follower.returncode == 130
    assert "Detached: job long goes on" in error and "Traceback" not in error
    assert token_cluster.status("long") == "RUNNING"
    assert token_cluster.run("stop", "long")[:2] == (0, "Job long stopped\n")
    assert token_cluster.run("logs", "long")[1].endswith("saved\n")
    code, listed, _ = token_cluster.run("stop")
    assert code == 0 and re.search(r"^long +stopped ", listed, re.MULTILINE)
    assert token_cluster.run("logs", "long", "--follow")[0] == 1


def test_a_failed_job_fails(token_cluster: TokenCluster) -> None:
    token_cluster.submit("failing", 'import sys; print("so it is"); sys.exit(3)')
    code, printed, _ = token_cluster.run("logs", "failing", "--follow")

    assert code == 3
    *lines, end = printed.splitlines()
    assert "so it is" in lines, "Ray's own lines may come before it, or after it"
    assert end == "Job failing failed (exit code 3)"
    code, printed, _ = token_cluster.run("status", "failing")
    assert code == 0 and "status   failed (exit code 3)" in printed


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RAY_AUTH_TOKEN": "wrong"}, "it refuses the token (403)"),
        ({"RAY_AUTH_MODE": "disabled"}, "it asks for a token (401), and none was sent"),
    ],
)
def test_a_wrong_token_is_one_sentence(
    token_cluster: TokenCluster, variables: dict[str, str], sentence: str
) -> None:
    code, printed, error = token_cluster.run("status", **variables)

    assert (code, printed) == (2, "")
    assert sentence in error and error.count("\n") == 1


def test_a_server_that_is_none_and_a_job_that_is_none(token_cluster: TokenCluster) -> None:
    with_nobody = Proxy(token_cluster.url)
    with_nobody.close()
    code, _, error = token_cluster.run("status", url=with_nobody.url)
    assert code == 2 and "no job server answers there" in error and error.count("\n") == 1

    code, _, error = token_cluster.run("logs", "nobody")
    assert code == 2 and "job is 'nobody'" in error and error.count("\n") == 1
