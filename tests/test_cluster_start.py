"""A command starts Ray for itself while it imports what it needs."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
LENET = (
    "--backbone lenet5 --init he --freeze-depth 0 --size-px 32 --epochs 1 --global-batch-size 16 "
    "--wandb off"
)
LEAVE_S = 120
"""Ray's processes end by themselves, some time after their driver on a busy machine."""


def run(own_ray: dict[str, str], arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainers", *arguments.split()],
        cwd=ROOT, env={**os.environ, **own_ray}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip


def wait_for_end(own_ray: dict[str, str]) -> list[bytes]:
    """Return what Ray has started below a folder and still runs LEAVE_S after its command."""
    deadline_s = time.monotonic() + LEAVE_S
    while (found := processes_of(own_ray)) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    return found


def processes_of(own_ray: dict[str, str]) -> list[bytes]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            found.append(file.read_bytes())
    return [line for line in found if own_ray["RAY_TMPDIR"].encode() in line]


def test_a_lone_worker_is_the_process_of_the_command(
    own_ray: dict[str, str], easy_data: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = run(own_ray, f"transfer --data {easy_data} --out {out} {LENET}")

    assert done.returncode == 0, done.stderr
    assert json.loads((out / "config.json").read_text())["cluster"]["num_workers"] == 0
    assert not (out / "ray_train").exists()
    assert "dashboard" not in done.stdout
    assert done.stderr == ""
    assert wait_for_end(own_ray) == []


def test_an_error_before_ray_has_started_leaves_no_process(
    own_ray: dict[str, str], tmp_path: Path
) -> None:
    done = run(own_ray, f"transfer --data {tmp_path}/nothing --out {tmp_path}/run {LENET}")

    assert done.returncode == 2
    assert done.stderr.startswith(f"error: data is '{tmp_path}/nothing': no prepared data set")
    assert done.stderr.count("\n") == 1
    assert wait_for_end(own_ray) == []
