"""The house itself: whose `datasets` it is, who may import which part of Ray, what README shows."""

import ast
import re
import shlex
from pathlib import Path

import pytest

import datasets
from cluster.runtime import find_foreign_datasets
from tests.conftest import ROOT

ROOMS = ("cluster", "datasets", "trainers", "tuning")
MAY_IMPORT = {
    "ray.data": ("datasets/",),
    "ray.train": ("trainers/loop.py", "trainers/launch.py", "trainers/failures.py"),
    "ray.tune": ("tuning/",),
}


def imports(file: Path) -> set[str]:
    """Full names of what a module imports: `from ray import tune` is `ray.tune`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_each_part_of_ray_is_imported_only_where_it_belongs(part: str) -> None:
    users = {
        str(file.relative_to(ROOT))
        for room in ROOMS
        for file in (ROOT / room).rglob("*.py")
        if any(f"{name}.".startswith(f"{part}.") for name in imports(file))
    }

    assert users
    assert {user for user in users if not user.startswith(MAY_IMPORT[part])} == set()


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
