"""A driver that is killed, and what W&B has of its run: real processes, real offline runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.wandb.files import inspect
from trainers.run.rows import read_rows

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MAX_LOST_S = 2.0
CANARIES = {
    "WANDB_API_KEY": "c0ffee" * 6 + "beef",
    "AWS_SECRET_ACCESS_KEY": "canary-of-a-bucket",
    "HF_TOKEN": "hf_canary_of_a_hub",
}


@pytest.mark.parametrize(
    "killed_by", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.extended)]
)
def test_a_killed_driver_loses_two_seconds_of_rows_at_most(
    own_ray: dict[str, str], easy_data: str, tmp_path: Path, killed_by: signal.Signals
) -> None:
    run = tmp_path / "run"
    options = f"--data {easy_data} --out {run} --backbone lenet5 --init he --freeze-depth 0 \
        --size-px 32 --policy none --epochs 500 --log-every-steps 1 --num-workers 0 \
        --wandb offline"
    driver = subprocess.Popen(
        [sys.executable, "-m", "trainers", "transfer", *options.split()],
        cwd=ROOT,
        env={**os.environ, **own_ray, **CANARIES},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen: list[tuple[float, int]] = []  # when so many rows were there
    watch_s = 2 * MAX_LOST_S if killed_by == signal.SIGKILL else 0.5
    while not seen or time.monotonic() - seen[0][0] < watch_s:
        assert driver.poll() is None, driver.stdout and driver.stdout.read()
        if rows := read_rows(str(run)):
            seen.append((time.monotonic(), len(rows)))
        time.sleep(0.1)
    killed_s = time.monotonic()
    driver.send_signal(killed_by)
    printed, _ = driver.communicate(timeout=240)

    rows = [row["global_step"] for row in read_rows(str(run))]
    (folder,) = (run / "wandb").glob("offline-run-*")
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    kept = [item["global_step"] for item in items if "train/loss" in item]
    assert kept == rows[: len(kept)]
    if killed_by == signal.SIGTERM:
        state = json.loads(inspect(folder, "--summary"))
        assert driver.returncode == 128 + signal.SIGTERM
        assert state["summary"]["state"] == "killed" and len(kept) == len(rows)
    else:
        assert len(kept) >= max(count for at_s, count in seen if at_s <= killed_s - MAX_LOST_S)

    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 5
    for name, canary in CANARIES.items():
        assert canary not in printed, name
        assert not [path for path in files if canary.encode() in path.read_bytes()], name
