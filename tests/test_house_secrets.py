"""Keys and tokens of the environment: in no file, log, config, W&B file, traceback or metadata."""

import gzip
import os
import subprocess
import sys
import zlib
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest
from ray.tune.execution.class_cache import _ActorClassCache

from tests.conftest import ROOT
from tests.support.wandb.checks import find_secrets
from trainers.config import FinetuneConfig
from tuning.config import TuningConfig
from tuning.search import build_tuner

CANARIES = {
    "WANDB_API_KEY": "c0ffee00" * 5,
    "AWS_ACCESS_KEY_ID": "AKIA" + "CANARY" * 2 + "0001",  # in parts: `submit` sends no key
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYCANARYKEY1",
    "AWS_SESSION_TOKEN": "IQoJb3JpZ2luX2VjEA/canary+session==token",
    "RAY_AUTH_TOKEN": "canary-of-ray-0123456789abcdef0123456789",
    "HF_TOKEN": "hf_CanaryCanaryCanaryCanaryCanary12",
    "GITHUB_TOKEN": "ghp_CanaryCanaryCanaryCanaryCanaryCana",
    "DB_PASSWORD": "canary-correct-horse-battery",
}


def forms(secret: str) -> Iterator[bytes]:
    """A secret as it may stand in a file: as it is, quoted, and base64 at any of three offsets."""
    yield secret.encode()
    yield quote(secret, safe="").encode()
    for encode in (b64encode, urlsafe_b64encode):
        for offset in range(3):
            whole = encode(bytes(offset) + secret.encode())
            yield whole[4 if offset else 0 : -4]


def contents(file: Path) -> Iterator[bytes]:
    """What a file holds, and what that unpacks to."""
    content = file.read_bytes()
    yield content
    at = content.find(b"\x1f\x8b\x08")
    if at >= 0:
        with suppress(OSError, EOFError, zlib.error):  # it only looks like gzip
            yield gzip.decompress(content[at:])


def find_leaks(*folders: Path) -> tuple[list[str], int]:
    """Return which file holds which secret, and how many files there are."""
    wanted = {form: name for name, value in CANARIES.items() for form in forms(value)}
    leaks, num_files = [], 0
    for file in (file for folder in folders for file in folder.rglob("*")):
        if file.is_file() and not file.is_symlink():
            num_files += 1
            leaks += [
                f"{file} holds {name} as {form!r}"
                for content in contents(file)
                for form, name in wanted.items()
                if form in content
            ]
    return leaks, num_files


@pytest.mark.parametrize("form", range(8))
def test_every_form_is_found(form: int, tmp_path: Path) -> None:
    secret = list(forms(CANARIES["AWS_SECRET_ACCESS_KEY"]))[form]
    (tmp_path / "plain").write_bytes(b"before " + secret + b" after")
    (tmp_path / "packed").write_bytes(b"head" + gzip.compress(secret))
    leaks, num_files = find_leaks(tmp_path)
    assert num_files == 2
    assert {leak.split(" holds ")[0] for leak in leaks} == {
        f"{tmp_path}/plain",
        f"{tmp_path}/packed",
    }


def test_tune_copies_no_key_into_the_metadata_of_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    config = TuningConfig(base=FinetuneConfig(data="d"), out=str(tmp_path))
    build_tuner(config, lambda point: None, [], num_concurrent=1)
    actor = _ActorClassCache().get(type("Trial", (), {}))
    assert actor._default_options["runtime_env"]["env_vars"]["PL_DISABLE_FORK"] == "1"
    shown = repr(actor._default_options)
    assert [name for name, value in CANARIES.items() if value in shown or name in shown] == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.extended
def test_no_secret_is_found_after_a_day_of_work(tmp_path: Path) -> None:
    """prepare, DDP training, sweep and a crash; then every file that any of it left."""
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    with TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as ray_folder:
        paths = {"HOME": str(home), "RAY_TMPDIR": ray_folder, "WANDB_DIR": str(work)}
        run = subprocess.run(
            [sys.executable, "-m", "tests.support.programs.secrets_run", str(work)],
            cwd=ROOT,
            env=os.environ | CANARIES | paths,
            capture_output=True,
            timeout=400,
        )
        (work / "stdout.txt").write_bytes(run.stdout)
        (work / "stderr.txt").write_bytes(run.stderr)
        assert run.returncode == 0, run.stderr.decode()[-3000:]
        assert b"crashed as it should" in run.stderr and b"Traceback" in run.stderr
        leaks, num_files = find_leaks(work, home, Path(ray_folder))
    assert leaks == []
    names = {path.name for path in work.rglob("*")}
    assert {"config.json", "metrics.jsonl", "started.json", "gcs.bin", "processes.bin"} <= names
    assert any(name.endswith(".wandb") for name in names)
    assert num_files > 100
    assert list(find_secrets(work, CANARIES)) == []


def test_a_command_with_a_secret_ends_before_anything_is_written(tmp_path: Path) -> None:
    key, secret = CANARIES["AWS_ACCESS_KEY_ID"], CANARIES["AWS_SECRET_ACCESS_KEY"]
    run = subprocess.run(
        [sys.executable, "-m", "datasets", "info", "--data", f"s3://{key}:{secret}@bucket/cars"],
        cwd=ROOT,
        env=os.environ | {"HOME": str(tmp_path), "THAW_TRACEBACK": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2
    assert "data holds credentials" in run.stderr
    assert secret not in run.stdout + run.stderr and "Traceback" not in run.stderr
    leaks, _ = find_leaks(tmp_path)
    assert leaks == []
