"""Where a run comes from."""

import subprocess
from pathlib import Path

import pytest

from cluster.provenance import COMMIT_VAR, find_command, find_commit, find_provenance


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


def test_versions_are_those_installed() -> None:
    assert find_provenance().versions["ray"] == "2.60.0"
