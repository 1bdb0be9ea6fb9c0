"""Metrics for Prometheus, which reads them from port 8080 of every Ray node, beside Ray's own."""

from collections.abc import Mapping
from typing import Any

PREFIX = "ray_thaw_"
"""Of the names that Prometheus sees: Ray adds `ray_`."""
_gauges: dict[str, Any] = {}


def metric_name(name: str) -> str:
    """Return the name in Prometheus: `time/epoch_s` is ray_thaw_time_epoch_s."""
    return PREFIX + name.replace("/", "_").replace(" ", "_")


def publish(values: Mapping[str, float], **tags: str) -> None:
    """Set a gauge for each value. A process outside a Ray cluster has none to set."""
    import ray

    if not ray.is_initialized():
        return
    from ray.util.metrics import Gauge

    # Ray takes no others; an exception here would end the training.
    tags = {key: tag.encode("ascii", "backslashreplace").decode() for key, tag in tags.items()}
    for name, value in values.items():
        if name not in _gauges:
            own_name = metric_name(name).removeprefix("ray_")
            _gauges[name] = Gauge(own_name, description=name, tag_keys=tuple(tags))
        _gauges[name].set(float(value), tags)
