"""The benchmark of a GPU: all its parts on a CPU, with what a bare machine has and no more."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import distributions, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.bench.gpu import page
from tests.bench.gpu.__main__ import LIMIT_S, PARTS, Part, call_in_process, run_parts, to_command
from tests.bench.gpu.wheels import LIST, read_wanted, strip_wheel
from tests.bench.report import to_row

ROOT = Path(__file__).resolve().parent.parent
BASE = (
    "torch", "torchvision", "numpy", "pandas", "pyarrow", "opencv-python-headless", "pillow",
    "scipy", "scikit-learn", "safetensors", "huggingface-hub", "fsspec", "rich", "matplotlib",
    "jinja2", "pytest", "pytest-timeout", "requests", "click", "filelock", "msgpack", "packaging",
    "protobuf", "pyyaml", "psutil", "tqdm", "xxhash", "narwhals", "attrs", "anyio", "httpx",
)  # fmt: skip
"""What a machine for training has; with what these need."""
HIDE = """
import os
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    spec = find(name, path, target)
    if spec is None or name not in {absent!r}:
        return spec
    places = [spec.origin or "", *(spec.submodule_search_locations or ())]
    # Ray has some of them within itself.
    hidden = any(place.startswith(os.path.join({site!r}, name)) for place in places)
    return None if hidden else spec

PathFinder.find_spec = find_spec
"""
"""A sitecustomize.py that hides modules of the site-packages of this Python."""
ROWS = {
    "train_ddp_vs_plain", "train_batch_2_vs_cuda_graph", "stream_2_cores_vs_dataloader",
    "memory_2_cores_vs_dataloader", "decode_vs_nvjpeg", "features_vs_plain",
    "sweep_head_only_vs_plain",
    *(f"train_{name}_vs_plain" for name in ("bf16", "bf16_nchw", "fp16", "fp32", "fp32_nchw",
                                            "bf16_compile")),
}  # fmt: skip


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def find_absent() -> set[str]:
    """Modules installed here that neither BASE with its needs nor wheels.txt has."""
    there = {normalize(wanted.name) for wanted in read_wanted(LIST.read_text())}
    installed = {normalize(found.metadata["Name"]) for found in distributions()}
    left = list(BASE)
    while left:
        name = normalize(left.pop())
        if name in there or name not in installed:
            continue
        there.add(name)
        needed = map(Requirement, requires(name) or [])
        left += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return {
        module
        for module, owners in packages_distributions().items()
        if not there & {normalize(owner) for owner in owners}
    }


@pytest.mark.ray
@pytest.mark.extended
def test_all_parts_run_on_a_cpu_with_the_packages_of_a_bare_machine(own_ray, tmp_path):
    absent = find_absent()
    assert {"aiohttp_cors", "opencensus", "colorful", "sqlalchemy"} <= absent, "the dashboard's"
    hide = HIDE.format(absent=absent, site=sysconfig.get_path("purelib"))
    (tmp_path / "sitecustomize.py").write_text(hide)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu", "--tiny", "--out", str(out)],
        env={**os.environ, **own_ray, "PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert "all parts measured" in done.stdout
    rows = json.loads((out / "bench.json").read_text())
    assert {row["name"].removeprefix("gpu/") for row in rows} == ROWS
    for row in rows:
        assert row["ours"] > 0 and row["peer"] > 0 and row["limit_fraction"] > 0, row
        assert row["machine"].startswith("no GPU"), row
    text = (out / "performance.md").read_text()
    for shown in ("`stream`, 2 cores", "DDP over NCCL", "2 head-only trials", "`--compile`"):
        assert shown in text


def test_a_part_that_fails_or_hangs_costs_the_others_nothing(tmp_path, capsys):
    hangs = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert call_in_process(hangs, 0.5) == "stopped after 0 s"
    assert call_in_process([sys.executable, "-c", "raise SystemExit(3)"], 60) == (
        "ended with status 3"
    )
    needy = Part(name="needy", function="x:y", modules=("no_such_module",), limit_s=1)
    late = Part(name="late", function="x:y", modules=(), limit_s=1)
    assert run_parts([needy, late], tmp_path, tmp_path, limit_s=0, tiny=False) == [
        "needy: this machine lacks no_such_module (see tests/bench/gpu/wheels.txt)",
        "late: 0 s are left of 0",
    ]


@pytest.mark.extended
def test_a_part_in_a_process_of_its_own_keeps_its_rows(tmp_path):
    (part,) = (part for part in PARTS if part.name == "ddp")
    assert call_in_process([*to_command(part, tmp_path, tmp_path), "--tiny"], 400) is None
    (row,) = json.loads((tmp_path / "bench.json").read_text())
    assert row["name"] == "gpu/train_ddp_vs_plain" and row["ours"] > 0


def test_limits_of_the_parts_leave_time_within_ten_minutes():
    assert sum(part.limit_s for part in PARTS[:-2]) < LIMIT_S, "the last two take what is left"


def test_wheels_are_pinned_as_in_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {r.name: str(r.specifier) for r in map(Requirement, project["dependencies"])}
    for wanted in read_wanted(LIST.read_text()):
        if wanted.requirement != wanted.name:
            name, _, version = wanted.requirement.partition("==")
            assert pins.get(name, f"=={version}") == f"=={version}"


def test_a_stripped_wheel_lacks_the_folders_in_files_and_record(tmp_path):
    wheel = tmp_path / "pack-1-py3-none-any.whl"
    names = ("pack/code.py", "pack/jars/a.jar", "pack/jars2/b", "pack-1.data/data/c", "pack/one.js",
             "pack-1.dist-info/RECORD")  # fmt: skip
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names[:-1]:
            archive.writestr(name, "x")
        archive.writestr(names[-1], "".join(f"{name},sha256=0,1\n" for name in names))
    strip_wheel(wheel, ("pack/jars", "data", "pack/one.js"))
    with zipfile.ZipFile(wheel) as archive:
        kept = ["pack/code.py", "pack/jars2/b", "pack-1.dist-info/RECORD"]
        assert archive.namelist() == kept
        record = archive.read(kept[-1]).decode().splitlines()
    assert [line.split(",")[0] for line in record] == kept


def test_rows_are_rendered_between_the_marks_of_the_page(tmp_path):
    row = to_row(
        "gpu/train_fp16_vs_plain", ours=940, peer=1000, limit=9400, target=0.95, num_runs=6
    ) | {"machine": "a card", "date": "2026-11-28", "first_step_s": 1.0, "peak_gib": 2.0}
    copy = tmp_path / "performance.md"
    copy.write_text(page.PAGE.read_text())
    page.write_page([row, {"name": "ingest/other"}], copy)
    text = copy.read_text()
    assert "on a card, 2026-11-28.\n" in text
    assert "| `--precision fp16` | 940 | 0.94 (misses 0.95) | 0.10 | 1.0 s | 2.0 GiB |\n" in text
    before, _, after = text.partition(page.START)[0], *text.partition(page.END)[1:]
    assert page.PAGE.read_text().startswith(before) and page.PAGE.read_text().endswith(after)
    page.write_page([row], copy)
    assert copy.read_text() == text, "a second time changes nothing"
