"""Alerts and dashboard of component monitoring: promtool parses and tests them, and each metric is
one that Thaw, Ray, KubeRay or the kubelet has."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from cluster.gauges import metric_name
from k8s.checker.overlays import build
from trainers.metrics import PUBLISHED
from tuning.record.results import STATES

FOREIGN = {
    "kuberay_job_deployment_status",
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
}
ALERTS = build("components/monitoring").named("PrometheusRule")["thaw"]["spec"]
DASHBOARD = json.loads(
    build("components/monitoring").named("ConfigMap")["thaw-dashboard"]["data"]["thaw.json"]
)
JOB = 'kuberay_job_deployment_status{namespace="thaw", name="thaw-train", deployment_status='
GPUS = 'ray_node_gpus_utilization{ray_io_cluster="thaw-train-x", instance='
RUN = '{run="/mnt/thaw/runs/train"}'
CASES: dict[str, tuple[list[tuple[str, str]], str]] = {
    "ThawJobFailed": ([(JOB + '"Failed"}', "1x60")], "1m"),
    "ThawJobRetries": ([(JOB + '"Retrying"}', "1x60")], "1m"),
    "ThawJobWaits": ([(JOB + '"Initializing"}', "1x60")], "25m"),
    "ThawGpusIdle": ([(GPUS + '"a"}', "30x60"), (GPUS + '"b"}', "5x60")], "20m"),
    "ThawWaitsForData": (
        [(f"ray_thaw_ingest_wait_s{RUN}", "50x60"), (f"ray_thaw_time_epoch_s{RUN}", "100x60")],
        "20m",
    ),
    "ThawImagesUnreadable": ([(f"ray_thaw_ingest_lost_images{RUN}", "3x60")], "1m"),
    "ThawTrialsFail": ([('ray_thaw_trials_failed{sweep="a"}', "4x60")], "1m"),
    "ThawNodeMemory": (
        [
            ('ray_node_mem_used{ray_io_cluster="thaw-a"}', "95x60"),
            ('ray_node_mem_total{ray_io_cluster="thaw-a"}', "100x60"),
        ],
        "10m",
    ),
    "ThawVolumeFull": (
        [
            ('kubelet_volume_stats_available_bytes{persistentvolumeclaim="thaw"}', "10x60"),
            ('kubelet_volume_stats_capacity_bytes{persistentvolumeclaim="thaw"}', "100x60"),
        ],
        "10m",
    ),
}
"""Alert -> series that raise it, and when it has been raised."""


@pytest.fixture(scope="module")
def promtool() -> str:
    """Debian's promtool (package prometheus); its absence skips, which `.ci/run` forbids."""
    found = shutil.which("promtool")
    if found is None:
        assert not os.environ.get("THAW_REQUIRE_SHARED"), "apt-get install prometheus"
        pytest.skip("promtool is not there")
    return found


def run_promtool(promtool: str, *arguments: str) -> None:
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> list[str]:
    alerts = [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]
    return alerts + [item["expr"] for panel in DASHBOARD["panels"] for item in panel["targets"]]


def test_promtool_parses_every_expression(promtool: str, tmp_path: Path) -> None:
    """Those of the dashboard as recording rules."""
    rules = [{"record": f"r{i}", "expr": text} for i, text in enumerate(expressions())]
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "r", "rules": rules}]})
    )
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(ALERTS))

    run_promtool(promtool, "check", "rules", str(tmp_path / "rules.yaml"))
    run_promtool(promtool, "check", "rules", "--lint=all", str(tmp_path / "alerts.yaml"))


def test_every_alert_is_raised_by_its_series_alone(promtool: str, tmp_path: Path) -> None:
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(ALERTS))
    names = [rule["alert"] for group in ALERTS["groups"] for rule in group["rules"]]
    assert names == list(CASES)
    tests: list[dict[str, Any]] = []
    for name, (series, at) in CASES.items():
        raised = {"eval_time": at, "alertname": name, "exp_alerts": []}
        quiet = [{"alertname": other, "eval_time": at, "exp_alerts": []} for other in names]
        inputs = [{"series": text, "values": values} for text, values in series]
        tests.append({"interval": "1m", "input_series": inputs, "alert_rule_test": [raised]})
        others = [item for item in quiet if item["alertname"] != name]
        tests.append({"interval": "1m", "input_series": inputs, "alert_rule_test": others})
    text = yaml.safe_dump({"rule_files": ["alerts.yaml"], "tests": tests[1::2]})
    (tmp_path / "quiet.yaml").write_text(text)
    run_promtool(promtool, "test", "rules", str(tmp_path / "quiet.yaml"))

    for test in tests[::2]:  # that nothing is raised is wrong
        text = yaml.safe_dump({"rule_files": ["alerts.yaml"], "tests": [test]})
        (tmp_path / "raised.yaml").write_text(text)
        with pytest.raises(AssertionError, match=r"exp:\[\s*\]"):
            run_promtool(promtool, "test", "rules", str(tmp_path / "raised.yaml"))


def test_every_metric_exists() -> None:
    ours = {metric_name(name) for name in PUBLISHED}
    ours |= {metric_name(f"trials/{state}") for state in (*STATES, "left")}
    panels = Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards"
    of_ray = set(re.findall(r"ray_[a-z0-9_]+", "".join(p.read_text() for p in panels.glob("*.py"))))

    for text in expressions():
        for name in re.findall(r"\b(?:ray|kuberay|kubelet)_[a-z0-9_]+\b(?![=|(])", text):
            if name != "ray_io_cluster" and "__name__" not in text:
                assert name in ours | of_ray | FOREIGN, name
