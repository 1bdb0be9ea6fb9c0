"""The doctor on sound clusters and on one with sick nodes: each check is seen failing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster import __main__ as cluster_main
from cluster.config import DoctorConfig
from cluster.doctor.nodes import find_nodes
from cluster.doctor.results import CheckResult, to_json
from tests.conftest import ROOT
from tests.support.data import WriteData
from tests.support.job_server import TokenCluster

DOCTOR = (sys.executable, "-m", "cluster", "doctor")
Report = dict[tuple[str, str], list[CheckResult]]
Doctor = Callable[..., Report]


@pytest.fixture
def doctor(ray_cluster: str, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Return a function that examines the connected cluster: (check, level) -> findings."""

    def examine(*options: str) -> Report:
        code = 0
        try:
            cluster_main.main(["doctor", "--json", *options])
        except SystemExit as stopped:
            code = stopped.code
        report = json.loads(capsys.readouterr().out)
        assert report["address"] == ray_cluster and report["ok"] == (code == 0)
        found: Report = {}
        for values in report["findings"]:
            finding = CheckResult(**{**values, "nodes": tuple(values["nodes"])})
            found.setdefault((finding.check, finding.level), []).append(finding)
        assert bool([key for key in found if key[1] == "fail"]) == (code == 1)
        return found

    return examine


@pytest.mark.ray
def test_a_sound_cluster_passes(doctor: Doctor, easy_data: str, tmp_path: Path) -> None:
    found = doctor("--out", str(tmp_path / "out"), "--data", easy_data)

    passed = {check for check, level in found if level == "ok"}
    assert {"nodes", "clock", "versions", "decoders", "datasets", "out", "data"} <= passed
    assert {"allocator", "all-reduce", "wandb"} <= passed
    assert not [key for key in found if key[1] == "fail"]
    assert "one place for 3 nodes" in found["out", "ok"][0].text
    assert list((tmp_path / "out").iterdir()) == []
    assert "gloo: 32 MiB between 2 nodes at" in found["all-reduce", "ok"][0].text


@pytest.mark.extended
@pytest.mark.ray
def test_a_look_that_hangs_fails_and_holds_up_no_other(
    doctor: Doctor, write_data: WriteData
) -> None:
    data = Path(write_data())
    (data / "manifest.json").unlink()
    os.mkfifo(data / "manifest.json")  # whoever opens it waits for a writer
    start_s = time.monotonic()
    found = doctor("--data", str(data), "--out", "/proc/thaw", "--timeout-s", "15")

    (hung,) = found["data", "fail"]
    assert len(hung.nodes) == 3 and hung.text == "no answer in 15 s"
    (unwritable,) = found["out", "fail"]
    assert len(unwritable.nodes) == 3 and "'/proc/thaw'" in unwritable.text
    assert unwritable.remedy == "give every node the right to write there"
    assert ("decoders", "ok") in found and ("versions", "ok") in found
    assert time.monotonic() - start_s < 60


@pytest.mark.ray
def test_no_cluster_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(SystemExit) as stopped:
        cluster_main.main(["doctor", "--address", address])

    assert stopped.value.code == 1
    line, _, summary = capsys.readouterr().out.splitlines()
    assert line.startswith(f"fail  cluster     address is '{address}': no Ray cluster answers")
    assert "check --address" in line and summary == "0 ok, 0 warnings, 1 failed"


@pytest.fixture(scope="module")
def sick_nodes(
    token_cluster: TokenCluster, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Two nodes with what goes wrong in images: one with other packages and a wrong clock, one with
    a folder of its own where the others share one."""
    site, shared = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("shared")
    (site / "hub" / "datasets").mkdir(parents=True)
    (site / "hub" / "datasets" / "__init__.py").touch()
    (site / "wandb-0.0.1.dist-info").mkdir()
    (site / "wandb-0.0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: wandb\nVersion: 0.0.1\n"
    )
    (site / "simplejpeg.py").write_text("raise ImportError('libturbojpeg.so: cannot open')")
    (site / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if any('default_worker.py' in word for word in sys.orig_argv):\n"
        f"    sys.path.insert(0, {str(site / 'hub')!r})\n"
        "    import datasets\n"
        "    sys.path.pop(0)\n"
        "    right = time.time\n"
        "    time.time = lambda: right() + 400\n"
    )
    sick = token_cluster.add_node(variables={"PYTHONPATH": str(site)})
    token_cluster.add_node(private=shared)
    return {"site": site, "shared": shared, "pids": sick}


def examine(cluster: TokenCluster, *options: str, **variables: str) -> tuple[int, dict[str, Any]]:
    """Run the doctor in a process that has the cluster's token."""
    done = subprocess.run(
        [*DOCTOR, "--json", "--address", cluster.address, *options],
        cwd=ROOT,
        env=cluster.environment | variables,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.ray
def test_sick_nodes_are_named(token_cluster: TokenCluster, sick_nodes: dict[str, Any]) -> None:
    code, report = examine(
        token_cluster, "--out", str(sick_nodes["shared"]), "--data", str(sick_nodes["site"])
    )

    failed = {}
    for finding in report["findings"]:
        if finding["level"] == "fail":
            failed.setdefault(finding["check"], finding)
    assert code == 1
    (sick,) = failed["versions"]["nodes"]
    assert failed["versions"]["text"].startswith("wandb 0.0.1 (here 0.")
    assert "simplejpeg (ImportError: libturbojpeg.so" in failed["decoders"]["text"]
    assert "no prepared data set there" in failed["data"]["text"]
    foreign = sick_nodes["site"] / "hub" / "datasets" / "__init__.py"
    assert failed["datasets"]["text"] == f"datasets is {foreign}"
    seconds = float(failed["clock"]["text"].removeprefix("the clock is ").split()[0])
    assert seconds == pytest.approx(400, abs=30)
    for check in ("decoders", "datasets", "clock"):
        assert failed[check]["nodes"] == [sick]
    blind = [found for found in report["findings"] if "doesn't see what" in found["text"]]
    assert len(blind) == 2  # the private folder, and the one beside it in the ring
    (auth,) = [finding for finding in report["findings"] if finding["check"] == "auth"]
    assert auth["level"] == "ok" and auth["text"].startswith("a token is asked for")


@pytest.mark.extended
@pytest.mark.ray
def test_a_node_that_hangs_is_one_line(
    token_cluster: TokenCluster, sick_nodes: dict[str, Any]
) -> None:
    """A raylet that is stopped counts as alive for some 15 s more."""
    for pid in sick_nodes["pids"]:
        os.kill(pid, signal.SIGSTOP)
    try:
        code, report = examine(token_cluster, "--timeout-s", "6")
    finally:
        for pid in sick_nodes["pids"]:
            os.kill(pid, signal.SIGCONT)

    hung = [finding for finding in report["findings"] if finding["text"] == "no answer in 6 s"]
    assert code == 1 and [finding["check"] for finding in hung] == ["nodes"]
    assert len(hung[0]["nodes"]) == 1
    assert [found["level"] for found in report["findings"] if found["check"] == "versions"] == [
        "ok"
    ]


@pytest.mark.extended
@pytest.mark.ray
@pytest.mark.parametrize("token", ["another", None], ids=["wrong", "none"])
def test_a_token_that_does_not_fit_is_one_line(
    token_cluster: TokenCluster, token: str | None
) -> None:
    environment = {
        k: v for k, v in token_cluster.environment.items() if not k.startswith("RAY_AUTH")
    }
    if token is not None:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    done = subprocess.run(
        [*DOCTOR, "--address", token_cluster.address],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    line, _, summary = done.stdout.splitlines()
    assert done.returncode == 1 and summary == "0 ok, 0 warnings, 1 failed"
    assert line.startswith("fail  cluster") and "RAY_AUTH_TOKEN" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.ray
def test_another_version_of_ray_is_one_line(token_cluster: TokenCluster) -> None:
    script = (
        "import ray, sys; ray.__version__ = '2.59.0'; from cluster import __main__ as room; "
        "room.main(['doctor', '--address', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, token_cluster.address],
        cwd=ROOT,
        env=token_cluster.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 1
    assert "it runs other versions than this process" in done.stdout.splitlines()[0]
    assert "2.59.0" in done.stdout and "2.60" in done.stdout


@pytest.mark.ray
def test_nodes_of_one_address_are_told_apart(ray_cluster: str) -> None:
    names = [node.name for node in find_nodes()]

    assert len(set(names)) == 3 and names == sorted(names)


def test_json_says_what_the_docstring_says() -> None:
    import cluster.doctor.doctor

    finding = CheckResult(check="out", level="fail", text="no", remedy="yes", nodes=("a",))
    report = to_json("head:6379", [finding])

    assert cluster.doctor.doctor.__doc__ is not None
    for name in [*report, *report["findings"][0]]:
        assert f"{name}  " in cluster.doctor.doctor.__doc__, name
    assert report["schema_version"] == 1 and report["ok"] is False
    assert DoctorConfig().json is False
