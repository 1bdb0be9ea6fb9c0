"""The judgement of `make soak`; the soak itself takes minutes and is not run here."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.soak.samples import NAMES, allowed, find_role, measure, size_of
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
        before = measure(Path(f"/proc/{holder.pid}"))
        print(file=holder.stdin, flush=True)
        assert holder.stdout.readline() == "holds\n"
        after = measure(Path(f"/proc/{holder.pid}"))
        print(file=holder.stdin, flush=True)

    assert after["MB"] - before["MB"] == pytest.approx(20, abs=3)
    assert after["handles"] == before["handles"] + 1 and after["threads"] == 1
    assert find_role(os.getpid(), driver=os.getpid()) == "driver"
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(bytes(100_000))
    assert 100_000 <= size_of(tmp_path) < 120_000


def test_every_measure_has_growth_that_is_none() -> None:
    assert [allowed(name) for name in NAMES[:3]] == [10.0, 8.0, 4.0]
    assert allowed("actors") == 1.0 and allowed("MB of objects") == 10.0
