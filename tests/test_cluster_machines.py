"""Machines as batch systems, containers and laptops give them: a job works, or says what is wrong.

Each case is real: a mount, host name or limit in a namespace of its own, which takes root.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from datasets.manifest_file import read_manifest
from tests.conftest import ROOT
from tests.support.data import draw_image
from trainers.run.folder import read_result

pytestmark = [pytest.mark.ray, pytest.mark.extended]  # each takes half a minute

WORKS = {
    "a container's /dev/shm of 64 MB": "mount -t tmpfs -o size=64m tmpfs /dev/shm",
    "no home that can be written": "export HOME=/proc/home",
    "a read-only root": (
        'mount --bind "$OUT" "$OUT"; mount -t tmpfs tmpfs /tmp; mount -o remount,ro,bind /'
    ),
    "proxies that are not there": (
        "export http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 "
        "HTTP_PROXY=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9 ALL_PROXY=http://127.0.0.1:9"
    ),
    "a host name that does not resolve": "hostname no-such-host.invalid",
    "one CPU": "taskset -cp 0 $$ > /dev/null",
    "no network but loopback": "ip link set lo up",
    "a long TMPDIR": "export TMPDIR=/tmp/slurm_jobdir/1355700/tmp.t0016/scratch-of-this-job-alone",
    "a full /tmp": "mount -t tmpfs -o size=16k tmpfs /tmp; cat /dev/zero > /tmp/full 2> /dev/null",
    "few files open": "ulimit -Sn 256",
    "a full /dev/shm": (
        "mount -t tmpfs -o size=1m tmpfs /dev/shm; cat /dev/zero > /dev/shm/full 2> /dev/null"
    ),
}
REFUSED = {
    "too few files": ("ulimit -n 512", "ulimit -n is 512: "),
    "no loopback": ("ip link set lo down", "127.0.0.1 can't be reached"),
    "a memory monitor that kills": (
        "export RAY_memory_usage_threshold=0.01 RAY_memory_monitor_refresh_ms=250",
        "memory of a node ran out",
    ),
    "no folder for Ray": (
        "mount -t tmpfs -o ro tmpfs /tmp; mount -t tmpfs -o ro tmpfs /var/tmp; "
        "mount -t tmpfs -o ro tmpfs /dev/shm",
        "TMPDIR is '/tmp': it can't be written",
    ),
}
DOCTOR = {
    "a container's /dev/shm of 64 MB": "/dev/shm has 0.1 GiB",
    "a full /dev/shm": "/dev/shm has 0.0 GiB",
    "no home that can be written": "/proc/home/.cache/torch can't be written",
    "a read-only root": "can't be written (Read-only file system): no weights",
    "proxies that are not there": "the proxy in https_proxy does not answer",
    "a host name that does not resolve": "the host name no-such-host.invalid does not resolve",
    "one CPU": "one CPU: a training and the tasks that read its images take turns",
    "a long TMPDIR": "bytes too long for Ray's sockets, so Ray's session is in /tmp/ray",
    "a full /tmp": "TMPDIR is '/tmp': it has 0 MiB free, so Ray's session is in /var/tmp/ray",
}
"""What the doctor says of a machine on which a job works; of others nothing."""
JOB = """
"$PYTHON" -m cluster doctor > "$OUT/doctor" 2>&1
"$PYTHON" -m datasets prepare --source folder --root "$DATA" --out "$OUT/data" &&
"$PYTHON" -m trainers transfer --data "$OUT/data" --out "$OUT/run" --backbone lenet5 --init he \
    --freeze-depth 0 --size-px 32 --policy none --epochs 1 --global-batch-size 6 --wandb off
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Beside the repository's code: some cases mount another /tmp."""
    (ROOT / "runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="machine", dir=ROOT / "runs") as name:
        for number in range(24):
            file = Path(name, "photos", "ab"[number % 2], f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), draw_image(number % 2, number))
        Path(name, "out").mkdir()
        yield Path(name)


def run_there(machine: str, folder: Path) -> subprocess.CompletedProcess[str]:
    loopback = ["--net"] if "ip link" in machine else []
    environment = {name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"}
    places = {"PYTHON": sys.executable, "DATA": f"{folder}/photos", "OUT": f"{folder}/out"}
    return subprocess.run(
        ["unshare", "--mount", "--uts", *loopback, "sh", "-c", machine + "\n" + JOB],
        env={**environment, **places}, cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.mark.parametrize("machine", WORKS)
def test_a_job_works(machine: str, folder: Path) -> None:
    ran = run_there(WORKS[machine], folder)

    assert ran.returncode == 0, ran.stdout[-1500:] + ran.stderr[-1500:]
    assert "Traceback" not in ran.stdout + ran.stderr
    counts = [split.num_images for split in read_manifest(f"{folder}/out/data").splits.values()]
    assert sum(counts) == 24
    assert Path(read_result(f"{folder}/out/run")["checkpoint"]).is_dir()
    doctor = Path(folder, "out/doctor").read_text()
    assert "0 failed" in doctor and DOCTOR.get(machine, "ok    machine") in doctor, doctor


@pytest.mark.parametrize("machine", REFUSED)
def test_a_job_says_what_is_wrong(machine: str, folder: Path) -> None:
    command, sentence = REFUSED[machine]
    ran = run_there(command, folder)

    assert ran.returncode == 2, ran.stdout[-1500:] + ran.stderr[-1500:]
    assert f"error: {sentence}" in ran.stderr and "Traceback" not in ran.stdout + ran.stderr
    found = [line for line in Path(folder, "out/doctor").read_text().splitlines() if "fail" in line]
    assert any(words in found[0] for words in (sentence, "Ray kills tasks from 1%")), found
    if "memory" in machine:
        assert "memory is used, and Ray kills and repeats tasks from 1%" in ran.stdout
