"""The judgement of `make soak`; the soak itself takes minutes and is not run here."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.soak.holders import find_files, find_holders
from tests.soak.samples import (
    IDLE,
    NAMES,
    SESSION_FOLDER,
    Process,
    Sample,
    allowed,
    find_kind,
    identify,
    measure,
    sizes_of,
    with_children,
)
from tests.soak.trends import find_trend

TIMES_S = [3.0 * number for number in range(120)]
RAMP = np.arange(120.0)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=120)


@pytest.mark.parametrize(
    ("values", "grows"),
    [
        (500 + 0 * RAMP, False),
        (500 + 0.5 * RAMP + 5 * noise(0), True),  # 40 MB in the time that is judged
        (500 - 0.5 * RAMP + 5 * noise(1), False),
        (500 + 60 * np.exp(-RAMP / 8) * -1 + 5 * noise(2), False),  # warm-up
        (500 + 0.05 * RAMP + 0.1 * noise(3), False),  # sure, and 4 MB
        (100 + 30 * (RAMP % 10 == 0) + noise(4), False),  # a trial comes and goes
        (100 + 2 * (RAMP // 10) + 30 * (RAMP % 10 == 0) + noise(5), True),  # and leaves something
    ],
)
def test_only_what_grows_after_warm_up_is_found_to_grow(values: np.ndarray, grows: bool) -> None:
    assert find_trend(TIMES_S, list(values), allowed=10.0).grows is grows


def test_noise_is_rarely_found_to_grow() -> None:
    found = [find_trend(TIMES_S, list(noise(seed)), allowed=0.0).grows for seed in range(100)]

    assert sum(found) <= 4  # 1 is expected


def test_growth_is_measured_in_the_time_that_is_judged() -> None:
    trend = find_trend(TIMES_S, list(RAMP), allowed=1.0)

    assert trend.per_hour == pytest.approx(1200)
    assert trend.growth == pytest.approx(73, abs=2)
    assert trend.median == pytest.approx(80, abs=2)


HOLDER = """
import sys
print("ready", flush=True)
sys.stdin.readline()
kept, file = b"x" * 20_000_000, open(sys.argv[1], "w")
print("holds", flush=True)
sys.stdin.readline()
"""


def test_a_process_is_measured(tmp_path: Path) -> None:
    """Another one: this process has threads that open files, and memory to reuse."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "open")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        before = measure(holder.pid, driver=0)
        print(file=holder.stdin, flush=True)
        assert holder.stdout.readline() == "holds\n"
        after = measure(holder.pid, driver=0)
        print(file=holder.stdin, flush=True)

    assert after.held["MB"] - before.held["MB"] == pytest.approx(20, abs=3)
    assert after.held["handles"] == before.held["handles"] + 1 and after.held["threads"] == 1
    assert after.kinds["file"] == before.kinds.get("file", 0) + 1


def test_files_are_measured_by_name(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / f"worker-{'0a' * 20}-123.log").write_bytes(bytes(100_000))
    (tmp_path / f"worker-{'0b' * 20}-45.log").write_bytes(bytes(100_000))
    (tmp_path / "raylet.out.1").write_bytes(bytes(10_000))

    sizes = sizes_of(tmp_path)

    assert sizes.keys() == {"worker-*-*.log", "raylet.out.*"}
    assert 0.2 <= sizes["worker-*-*.log"] < 0.24


def test_every_measure_has_growth_that_is_none() -> None:
    assert [allowed(name) for name in NAMES[:3]] == [10.0, 8.0, 4.0]
    assert allowed("actors") == 1.0 and allowed("MB of objects") == 10.0


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (b"/venv/ray/core/src/ray/gcs/gcs_server\0--port=1\0", ("GCS", "gcs_server")),
        (b"/venv/ray/core/src/ray/raylet/raylet\0--x=agent.py\0", ("raylet", "raylet")),
        (b"ray::DashboardAgent\0", ("services", "ray::DashboardAgent")),
        (b"ray-dashboard-StateHead-0 (python -c x)\0", ("services", "ray-dashboard-StateHead-0")),
        (b"python\0-u\0/ray/autoscaler/_private/monitor.py\0", ("services", "monitor")),
        (b"ray::ImplicitFunc.train\0\0\0", ("workers", "ray::ImplicitFunc.train")),
        (b"ray::IDLE\0\0", ("workers", IDLE)),
        (b"python\0/ray/workers/default_worker.py\0--logs=log_monitor\0", ("workers", IDLE)),
        (b"python\0-m\0ray.util.client.server\0", ("services", "ray.util.client.server")),
    ],
)
def test_processes_have_roles_and_names(command: bytes, expected: tuple[str, str]) -> None:
    assert identify(command, is_driver=False) == expected
    assert identify(command, is_driver=True) == ("driver", "driver")


def test_children_are_found_without_their_environment() -> None:
    with subprocess.Popen(["sleep", "60"], env={}) as child:
        try:
            assert with_children([os.getpid()]) >= {os.getpid(), child.pid}
            assert with_children([child.pid]) == {child.pid}
        finally:
            child.kill()


def test_a_process_that_has_ended_is_none() -> None:
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # its parent may still ask how
        with pytest.raises(OSError):
            measure(ended.pid, driver=0)


def test_handles_have_kinds() -> None:
    assert (
        find_kind("socket:[123]") == "socket" and find_kind("anon_inode:[eventfd]") == "[eventfd]"
    )
    assert find_kind("/tmp/log (deleted)") == "file" and find_kind("pipe:[1]") == "pipe"


def hold(name: str, mb: float, handles: int) -> Process:
    held = {"MB": mb, "handles": float(handles), "threads": 1.0}
    return Process(role="workers", name=name, held=held, kinds={"socket": handles - 3, "file": 3})


def test_a_growth_names_its_processes() -> None:
    """One process grows, reading ones become more, and of a third the handles do."""
    samples = []
    for number in range(120):
        processes = {
            1: hold("ray::trial" if number % 3 else IDLE, 100.0 + number, 20),
            2: hold("ray::stats", 50.0, 20 + number),
            3: hold("ray::read", 30.0, 20),
        }
        for more in range(number // 20):
            processes[4 + more] = hold("ray::read" if number % 2 else IDLE, 30.0, 20)
        counts = {"processes": float(len(processes)), SESSION_FOLDER: 9.0 + number}
        files = {"raylet.out": 0.9 * number, "worker-*.log": 0.1 * number, "monitor.log": 9.0}
        samples.append(Sample(processes=processes, counts=counts, files=files))

    def find(name: str) -> list[str]:
        return [str(holder) for holder in find_holders(name, TIMES_S, samples)]

    reading, trial = find("MB of workers")
    assert trial == "ray::trial +74"
    assert reading.startswith("ray::read (3 to 6 processes) +")
    assert "ray::stats +74 socket" in find("handles of workers")
    assert find("threads of workers") == [f"ray::read (3 to 6 processes) {threads(samples):+.0f}"]
    assert find("processes") == find("MB of GCS") == []
    assert find_files(TIMES_S, samples) == {"raylet.out": pytest.approx(66, abs=2)}


def threads(samples: list[Sample]) -> float:
    values = [sample.measure("threads of workers") for sample in samples]
    return find_trend(TIMES_S, values, 0.0).growth
