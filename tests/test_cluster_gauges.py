"""Metrics that Prometheus reads from the nodes of a cluster."""

import time
import urllib.request

import pytest

from cluster.gauges import metric_name, publish


def test_outside_a_cluster_nothing_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.util.metrics.Gauge", None)  # would raise

    publish({"val/top1": 0.5}, run="runs/a")


def test_a_run_may_have_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own gauge encodes tags in ASCII."""
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("cluster.gauges._gauges", {})

    publish({"val/top1": 0.5}, run="runs/Kräne 写真")


@pytest.mark.ray
@pytest.mark.extended  # Ray exports every ten seconds
def test_a_published_value_is_read_from_a_node(ray_cluster: str) -> None:
    import ray

    publish({"val/top1": 0.25}, run="runs/a")
    publish({"val/top1": 0.5}, run="runs/a")
    deadline_s = time.monotonic() + 60
    line = ""
    while not line and time.monotonic() < deadline_s:
        time.sleep(1)
        for node in ray.nodes():
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(url, timeout=5) as response:
                lines = response.read().decode().splitlines()
            found = [text for text in lines if text.startswith(metric_name("val/top1") + "{")]
            line = found[0] if found else line

    assert 'run="runs/a"' in line and line.endswith(" 0.5")
