"""The sweep's own run in W&B, read back from its offline files, and sent to a dying server."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.conftest import ROOT
from tests.support.sweeps import write_combined, write_sweep
from tests.support.wandb.files import inspect
from tests.support.wandb.server import WandbServer
from trainers.tracking.config import sync_command
from tuning.record.record import SweepRecord
from tuning.record.verdict import judge
from tuning.wandb.sweep_run import SweepRun


def log(out: str, mode: Literal["online", "offline"]) -> str | None:
    sweep = SweepRecord.read(out)
    base = replace(sweep.base, track=replace(sweep.base.track, wandb=mode))
    config = replace(sweep.config, base=base)
    assert sweep.manifest is not None
    run = SweepRun(config, sweep.manifest, on_stop=lambda: None)
    return run.log(replace(sweep, config=config))


def read_table(run: Path, key: str) -> dict[str, list[Any]]:
    """Columns of a table of an offline run, by their names."""
    name = key.rsplit("/", 1)[-1]
    (file,) = (run / "files").rglob(f"{name}_*.table.json")
    table = json.loads(file.read_text())
    return dict(zip(table["columns"], map(list, zip(*table["data"], strict=True)), strict=True))


def test_a_leaderboard_of_all_depths_is_a_table(easy_data: str, tmp_path: Path) -> None:
    """A column of numbers and `all` becomes one of strings: W&B refuses a mixed one."""
    out = write_sweep(tmp_path / "sweep", trials=24, epochs=9, data=easy_data, backbone="lenet5")
    write_combined(out)

    assert log(out, "offline") == sync_command(out)
    (run,) = Path(out, "wandb").glob("offline-run-*")
    table = read_table(run, "sweep/leaderboard")
    depths = [row.point["model.freeze_depth"] for row in SweepRecord.read(out).trials]
    assert {str(depth) for depth in depths} > {"all"}
    assert table["model.freeze_depth"] == [str(depth) for depth in depths]
    clipnorms = [row.point["optim.clipnorm"] for row in SweepRecord.read(out).trials]
    assert table["optim.clipnorm"] == clipnorms, "numbers and null stay"
    assert set(read_table(run, "sweep/importance")) == {"axis", "importance"}
    assert read_table(run, "sweep/combined")["kept"] == [True, False, False]
    state = json.loads(inspect(run, "--summary"))
    assert state["summary"]["state"] == "finished" and state["summary"]["winner/point"]
    assert state["summary"]["combined/ensemble/val/top1"] == 0.9
    assert state["summary"]["sweep/answer"] == judge(SweepRecord.read(out)).text


def test_the_review_page_is_in_the_files_of_the_run(easy_data: str, tmp_path: Path) -> None:
    out = write_sweep(tmp_path / "sweep", trials=3, epochs=2, data=easy_data, backbone="lenet5")
    log(out, "offline")
    (run,) = Path(out, "wandb").glob("offline-run-*")
    logged = json.loads(inspect(run, "--summary"))["summary"]["sweep/review"]
    page = (run / "files" / logged["path"]).read_text()
    assert logged["_type"] == "html-file"
    assert page.lstrip().startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert judge(SweepRecord.read(out)).headline in page
    assert page.count("<link") == 1, "no stylesheet of W&B: its policy would refuse it"


DRIVER = """
import sys
from tests.test_tuning_wandb_sweep import log
from trainers.tracking import run as wandb_run
from trainers.tracking.thread import WandbThread
from tuning.wandb import sweep as wandb_sweep

wandb_run.PATIENCE_S = 10
WandbThread.close.__kwdefaults__["timeout_s"] = 40
draw = wandb_sweep.augmentation_image
def draw_without_server(config):
    print("stop the server", flush=True)
    sys.stdin.readline()
    return draw(config)
wandb_sweep.augmentation_image = draw_without_server
print(log(sys.argv[1], "online"))
"""


@pytest.mark.extended
def test_a_server_that_dies_ends_no_sweep(easy_data: str, tmp_path: Path) -> None:
    """Its tables would wait forever."""
    out = write_sweep(tmp_path / "sweep", trials=3, epochs=2, data=easy_data, backbone="lenet5")
    with WandbServer() as server:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, out],
            cwd=ROOT,
            env={**os.environ, **server.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert driver.stdout is not None and driver.stdout.readline() == "stop the server\n"
        server.stop()
        printed, warned = driver.communicate("\n", timeout=240)

    assert driver.returncode == 0 and printed.strip() == sync_command(out)
    assert f"W&B did not take all of {out} in time" in warned
