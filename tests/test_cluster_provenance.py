"""Where a run comes from."""

import platform
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cluster.provenance import (
    COMMIT_VAR,
    REQUIRED,
    REQUIRED_PYTHON,
    find_command,
    find_commit,
    find_provenance,
    find_unsuitable,
    find_versions,
)
from tests.conftest import ROOT


def git(root: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True)


def test_a_changed_file_makes_a_commit_dirty(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "first")
    commit = find_commit(tmp_path)
    (tmp_path / "new.txt").write_text("not tracked")
    assert commit is not None and len(commit) == 40 and find_commit(tmp_path) == commit

    (tmp_path / "code.py").write_text("2")
    assert find_commit(tmp_path) == f"{commit}-dirty"


def test_without_a_repository_the_environment_tells_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(COMMIT_VAR, raising=False)
    assert find_commit(tmp_path) is None
    monkeypatch.setenv(COMMIT_VAR, "abc")
    assert find_commit(tmp_path) == "abc"


def test_the_command_is_what_the_user_typed() -> None:
    argv = ["/somewhere/tuning/__main__.py", "--out", "my runs"]
    assert find_command(argv) == "python -m tuning --out 'my runs'"
    assert find_command(["script.py"]) == "python script.py"


def test_the_command_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("HF_TOKEN", "0123456789")
    argv = ["x/trainers/__main__.py", "--data", "s3://AKIA:wJal/rXU@bucket/cars"]
    told = find_command([*argv, "--group", "k0123456789abcdef", "--address=ray://a:b@host:1/x"])
    assert told == (
        "python -m trainers --data 's3://***@bucket/cars' --group 'k***' "
        "'--address=ray://***@host:1/x'"
    )
    assert find_command([*argv[:1], "--data", "s3://bucket/a:b@2"]).endswith("s3://bucket/a:b@2")


def test_a_word_that_is_a_password_elsewhere_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYSQL_PASSWORD", "password")
    argv = ["x/trainers/__main__.py", "--out", "runs/password-cars", "--group=password"]
    assert find_command(argv).endswith("--out runs/password-cars '--group=***'")


def test_what_is_required_is_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {item.name: item.specifier for item in map(Requirement, project["dependencies"])}
    assert {name: SpecifierSet(wanted) for name, wanted in REQUIRED.items()} == {
        name: asked[name] for name in REQUIRED
    }
    assert project["requires-python"] == REQUIRED_PYTHON
    assert find_unsuitable({"python": platform.python_version(), **find_versions()}) == []


@pytest.mark.parametrize(
    ("found", "is_suitable"),
    [
        ({"python": "3.11.2", "torch": "2.14.1+cu130", "wandb": "0.31.4"}, True),
        ({"python": "3.13.0+"}, True),
        ({"python": "3.10.9"}, False),
        ({"opencv-python-headless": "6.0.0"}, False),
        ({"torch": "2.14.1rc1"}, False),
    ],
)
def test_versions_within_the_bounds_are_suitable(found: dict, is_suitable: bool) -> None:
    assert (find_unsuitable(found) == []) == is_suitable


def test_versions_are_those_installed() -> None:
    versions = find_provenance().versions
    assert (versions["ray"], versions["timm"]) == ("2.60.0", "1.0.31")
