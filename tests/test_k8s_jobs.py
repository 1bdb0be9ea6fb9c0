"""The jobs of overlay cpu-smoke through a real job server: what KubeRay would run, but for pods."""

import json
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from k8s.checker.overlays import Object, build
from k8s.checker.parts import dig
from k8s.checker.rules.entrypoints import parse_entrypoint
from tests.k8s.job_server import ask, find_processes, serve_jobs

MOUNT = "/mnt/thaw"
ORDER = ("thaw-doctor", "thaw-prepare", "thaw-train", "thaw-sweep")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.extended  # 150 s
def test_jobs_of_cpu_smoke_run_one_after_the_other(tmp_path: Path) -> None:
    jobs = build("overlays/cpu-smoke").named("RayJob")
    assert set(jobs) == set(ORDER)
    groups = [dig(job, "spec.rayClusterSpec.workerGroupSpecs") for job in jobs.values()]
    printed = {}

    with serve_jobs(num_workers=max(group["replicas"] for (group,) in groups)) as server:
        for token in ("", "wrong"):
            with pytest.raises(HTTPError, match=r"40[13]"):
                ask(server, "/api/jobs/", token=token)
        for name in ORDER:
            entrypoint = jobs[name]["spec"]["entrypoint"].replace(MOUNT, str(tmp_path))
            started = time.monotonic()
            printed[name] = server.submit(entrypoint, name, timeout_s=400)
            print(f"{name}: {time.monotonic() - started:.0f} s\n{printed[name]}")
        states = {
            job["submission_id"]: job["status"] for job in parse_jobs(ask(server, "/api/jobs/"))
        }

    assert states == dict.fromkeys(ORDER, "SUCCEEDED")
    _, prepare, train, sweep = (config_of(jobs[name], str(tmp_path)) for name in ORDER)
    assert ", 0 failed" in printed["thaw-doctor"]
    assert f"{prepare.synthetic.num_classes} classes;" in printed["thaw-prepare"]
    assert "Best val/top1" in printed["thaw-train"]
    assert read_json(train.out, "result.json")["epochs"] == train.num_epochs
    assert len(read_json(sweep.out, "leaderboard.json")["trials"]) == sweep.trials
    assert find_processes(Path(server.variables["HOME"])) == []


def config_of(job: Object, mount: str) -> Any:
    """What the command line makes of a job's entrypoint."""
    ((_, config),) = parse_entrypoint(job["spec"]["entrypoint"].replace(MOUNT, mount), "K8sJobMode")
    return config


def read_json(folder: str, name: str) -> Any:
    return json.loads(Path(folder, name).read_text())


def parse_jobs(answer: str) -> list[dict[str, str]]:
    """Jobs of this server that were submitted; others are drivers."""
    return [job for job in json.loads(answer) if job["type"] == "SUBMISSION"]
