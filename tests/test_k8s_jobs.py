"""The jobs of overlay cpu-smoke through a real job server: what KubeRay would run, but for pods."""

import json
import time
from pathlib import Path
from urllib.error import HTTPError

import pytest

from tests.k8s.job_server import ask, serve_jobs
from tests.k8s.overlays import build
from tests.k8s.parts import dig

MOUNT = "/mnt/thaw"
ORDER = ("thaw-prepare", "thaw-train", "thaw-sweep")


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
        states = {job["submission_id"]: job["status"] for job in told(ask(server, "/api/jobs/"))}

    assert states == dict.fromkeys(ORDER, "SUCCEEDED")
    smoke = tmp_path / "smoke"
    assert "4 classes;" in printed["thaw-prepare"]
    assert "Best val/top1" in printed["thaw-train"]
    assert json.loads((smoke / "train" / "result.json").read_text())["epochs"] == 2
    assert json.loads((smoke / "sweep" / "leaderboard.json").read_text())


def told(answer: str) -> list[dict[str, str]]:
    """Jobs of this server that were submitted; others are drivers."""
    return [job for job in json.loads(answer) if job["type"] == "SUBMISSION"]
