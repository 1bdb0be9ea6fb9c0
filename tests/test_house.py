"""Structure of the repository: imports, sizes of folders, docstrings of sub-packages."""

import ast
from functools import cache
from pathlib import Path

import pytest

import datasets
from cluster.foreign_datasets import find_foreign_datasets
from tests.conftest import ROOT

ROOMS = ("cluster", "datasets", "trainers", "tuning")
MAX_FILES_PER_FOLDER = 20
MAY_IMPORT = {
    "ray.data": ("datasets/",),
    "ray.train": ("trainers/loop/", "trainers/launch.py", "trainers/failures.py"),
    "ray.tune": ("tuning/",),
    "ray.serve": ("trainers/serving/",),
    "wandb": ("trainers/tracking/", "tuning/wandb/"),
}
FOLDERS = sorted(
    {file.parent.relative_to(ROOT) for room in ROOMS for file in (ROOT / room).rglob("*.py")}
)
TEST_FOLDERS = [
    folder.relative_to(ROOT)
    for folder in sorted((ROOT / "tests").rglob("*"))
    if folder.is_dir() and folder.name != "__pycache__"
]


@cache
def imports(file: Path) -> set[str]:
    """Full names of what a module imports: `from ray import tune` is `ray.tune`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_ray_libraries_and_wandb_are_imported_only_where_they_belong(package: str) -> None:
    users = {
        str(file.relative_to(ROOT))
        for room in ROOMS
        for file in (ROOT / room).rglob("*.py")
        if any(f"{name}.".startswith(f"{package}.") for name in imports(file))
    }

    assert users
    assert {user for user in users if not user.startswith(MAY_IMPORT[package])} == set()


def test_durations_do_not_depend_on_a_clock_that_jumps() -> None:
    """time.time is for what other machines read; durations use time.monotonic or perf_counter."""
    users = {
        str(file.relative_to(ROOT))
        for room in ROOMS
        for file in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns")
    }

    assert users == {
        "cluster/doctor/machine.py",  # compares both clocks
        "cluster/doctor/probes.py",  # compares the clocks of nodes
        "cluster/io/lease.py",  # a heartbeat, judged by whether it changes
        "cluster/jobs/jobs.py",  # the job server's start of a job
        "trainers/loop/loop.py",  # when to save, as another machine has said
        "tuning/budget/deadline.py",  # the time from which those save
    }


@pytest.mark.parametrize("folder", [*FOLDERS, *TEST_FOLDERS], ids=str)
def test_a_folder_has_at_most_20_python_files(folder: Path) -> None:
    assert len(list((ROOT / folder).glob("*.py"))) <= MAX_FILES_PER_FOLDER


@pytest.mark.parametrize("folder", [f for f in FOLDERS if len(f.parts) > 1], ids=str)
def test_a_sub_package_has_a_docstring_of_three_lines(folder: Path) -> None:
    """What it is, what it may import, where to enter."""
    docstring = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text())) or ""

    assert len([line for line in docstring.splitlines() if line]) >= 3


def test_datasets_is_ours_in_the_driver() -> None:
    assert Path(datasets.__file__).is_relative_to(ROOT)
    assert find_foreign_datasets() is None


@pytest.mark.ray
def test_datasets_is_ours_in_a_ray_worker(ray_cluster: str) -> None:
    import ray

    assert ray.get(ray.remote(find_foreign_datasets).remote()) is None
