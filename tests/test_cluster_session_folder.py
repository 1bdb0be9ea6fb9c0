"""Ray's session on machines of batch systems and containers."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import session_folder
from cluster.ray_internals import count_cpus
from cluster.session_folder import (
    BELOW,
    MAX_SOCKET_BYTES,
    choose_session_folder,
    provide_token,
    require_loopback,
)
from tests.conftest import ROOT

LONG = "/tmp/slurm_jobdir/1355700/tmp.t0016/scratch-of-this-job-alone"


@pytest.mark.parametrize("folder", [LONG, f"/tmp/{'x' * 60}", f"/tmp/{'ü' * 20}"])
def test_a_long_tmpdir_is_replaced(folder, capsys):
    assert choose_session_folder({"TMPDIR": folder}) == "/tmp/ray"
    assert f"TMPDIR is {folder!r}" in (out := capsys.readouterr().out) and "RAY_TMPDIR" in out


@pytest.mark.parametrize("length", [0, 1])
def test_the_longest_folder_that_fits(length, tmp_path_factory):
    room = MAX_SOCKET_BYTES - len(BELOW) - len("/tmp/")
    folder = Path(f"/tmp/{'x' * (room + length)}")
    try:
        assert choose_session_folder({"TMPDIR": str(folder)}) == (
            None if length == 0 else "/tmp/ray"
        )
    finally:
        if folder.exists():
            folder.rmdir()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    short = "/proc/x"
    assert choose_session_folder({"TMPDIR": short}) == "/tmp/ray"
    with pytest.raises(ValueError, match=r"RAY_TMPDIR is '/proc/x': it can't be written"):
        choose_session_folder({"RAY_TMPDIR": short})
    with pytest.raises(ValueError, match=r"RAY_TMPDIR is '.*': \d+ bytes too long"):
        choose_session_folder({"RAY_TMPDIR": LONG, "TMPDIR": "/tmp"})
    monkeypatch.setattr(session_folder, "SHORT_FOLDERS", ("/proc/1", short))
    with pytest.raises(ValueError, match=r"TMPDIR is '/proc/x': .* set TMPDIR or RAY_TMPDIR"):
        choose_session_folder({"TMPDIR": short})


def test_a_full_folder_is_replaced(monkeypatch):
    usage = shutil.disk_usage
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: usage(folder)._replace(free=(folder != "/tmp") << 30)
    )
    assert choose_session_folder({}) == "/var/tmp/ray"
    with pytest.raises(ValueError, match=r"RAY_TMPDIR is '/tmp': it has 0 MiB free; set it to"):
        choose_session_folder({"RAY_TMPDIR": "/tmp"})


@pytest.mark.parametrize("home", ["/proc/home", None])
def test_a_token_where_the_home_can_not_be_written(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", home or str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    provide_token()
    assert len(os.environ.pop("RAY_AUTH_TOKEN", "")) == (64 if home else 0)


@pytest.mark.parametrize("environment", [{}, {"TMPDIR": "/tmp"}, {"RAY_TMPDIR": "/tmp"}])
def test_a_short_folder_stays(environment):
    assert choose_session_folder(environment) is None
    assert choose_session_folder({"TMPDIR": ""}) == "/tmp/ray"


@pytest.mark.parametrize(
    ("quota", "lent", "expected"), [(64, {3, 9}, 2), (2, {0, 1, 2, 3}, 2), (0, {0}, 1), (8, {5}, 1)]
)
def test_a_job_of_a_batch_system_has_the_cpus_that_it_is_lent(quota, lent, expected, monkeypatch):
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda **_: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: lent)
    assert count_cpus() == expected


def test_a_machine_without_loopback():
    require_loopback()
    code = "from cluster.session_folder import require_loopback as r; r()"
    command = ["unshare", "--net", "--map-root-user", sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "127.0.0.1 can't be reached (Network is unreachable)" in ran.stderr
    assert "`ip link set lo up`" in ran.stderr


@pytest.mark.parametrize(("soft", "hard", "ends"), [(256, 4096, 4096), (256, 512, None)])
def test_few_file_handles(soft, hard, ends):
    """In another process: a hard limit can't be raised again."""
    code = (
        "import resource as r\n"
        f"r.setrlimit(r.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "from cluster.session_folder import raise_file_limit\n"
        "try:\n    raise_file_limit()\nexcept ValueError as error:\n    print(error)\n"
        "print(r.getrlimit(r.RLIMIT_NOFILE)[0])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    if ends is None:
        assert ran.stdout.startswith(f"ulimit -n is {hard}: Ray's processes need 1024")
    else:
        assert ran.stdout == f"{ends}\n"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] != hard and os.getpid()
