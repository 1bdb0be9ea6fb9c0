"""Structure of the repository: imports, sizes of folders, docstrings, commands in the docs."""

import ast
import re
import shlex
from pathlib import Path

import pytest

import datasets
from cluster.runtime import find_foreign_datasets
from tests.conftest import ROOT

ROOMS = ("cluster", "datasets", "trainers", "tuning")
MAX_FILES_PER_FOLDER = 20
MAY_IMPORT = {
    "ray.data": ("datasets/",),
    "ray.train": (
        "trainers/loop.py",
        "trainers/launch.py",
        "trainers/failures.py",
        "cluster/scaling.py",
    ),
    "ray.tune": ("tuning/",),
    "wandb": ("trainers/tracking/", "tuning/wandb/"),
}
FOLDERS = sorted(
    {file.parent.relative_to(ROOT) for room in ROOMS for file in (ROOT / room).rglob("*.py")}
)


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


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
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


def commands() -> list[str]:
    """Every `python -m ROOM ...` in README's code blocks, continuation lines joined; those that are
    handed on to another command are commands of their own."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    text = "".join(blocks).replace("\\\n", " ")
    parts = [part for line in text.splitlines() for part in line.split(" -- ")]
    return [part for part in parts if "python -m " in part]


@pytest.mark.parametrize("command", commands())
def test_every_command_in_readme_parses(command: str) -> None:
    """With the real command lines, which exit with 2 at a word they do not know."""
    import cluster.__main__ as cluster_main
    import datasets.__main__ as datasets_main
    import trainers.__main__ as trainers_main
    import tuning.__main__ as tuning_main

    words = shlex.split(command, comments=True)
    room, arguments = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    parse = {
        "cluster": cluster_main.parse,
        "datasets": datasets_main.parse,
        "trainers": trainers_main.parse,
        "tuning": tuning_main.parse,
    }[room]
    assert parse(arguments) is not None
