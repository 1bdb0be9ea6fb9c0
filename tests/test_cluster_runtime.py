"""Connecting to Ray, and the guard against the other package called `datasets`."""

import importlib.machinery
import importlib.util
import signal
import socket
import sys
import time

import pytest
import ray

from cluster import entry, runtime
from cluster.foreign_datasets import find_foreign_datasets, refuse_foreign_datasets
from cluster.runtime import Resources, connect, find_resources


def test_one_line_says_what_was_found() -> None:
    resources = Resources(
        num_nodes=3, num_cpus=6.0, num_gpus=1, memory_gib=20.2, object_store_gib=6.1
    )
    assert str(resources) == "3 nodes, 6 CPUs, 1 GPU, 20 GiB memory, 6 GiB object store"


def test_dead_address_ends_soon_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    start_s = time.monotonic()
    with pytest.raises(ValueError, match=f"address is '{address}': no Ray cluster answers"):
        connect(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=address):
        connect()
    assert time.monotonic() - start_s < 2 * runtime.REACH_TIMEOUT_S


def test_a_cluster_that_does_not_start_in_time_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(ValueError, match="Ray did not start here within 30 s"):
        runtime._init(runtime.LOCAL)
    monkeypatch.setattr(ray, "init", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runtime._init(runtime.LOCAL)


@pytest.mark.parametrize("address", ["http://head:8265", "ray://head:10001", "head", "head:"])
def test_address_of_another_kind(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match="HOST:PORT"):
        connect(address)


def test_datasets_is_ours() -> None:
    assert find_foreign_datasets() is None


def test_foreign_datasets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = importlib.machinery.ModuleSpec(
        "datasets", None, origin="/usr/lib/site-packages/datasets/__init__.py"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: foreign)
    with pytest.raises(ValueError, match="datasets is /usr/lib/site-packages"):
        refuse_foreign_datasets(in_workers=False)


@pytest.mark.ray
def test_connected_process_stays_connected(
    ray_cluster: object, capsys: pytest.CaptureFixture[str]
) -> None:
    resources = connect("nowhere:1")
    assert resources == find_resources()
    assert resources.num_nodes >= 1
    assert resources.num_cpus == ray.cluster_resources()["CPU"]
    assert capsys.readouterr().out == ""


@pytest.mark.ray
def test_a_worker_imports_our_datasets(ray_cluster: object) -> None:
    refuse_foreign_datasets(in_workers=True)


def test_a_driver_asked_to_leave_ends_with_143_also_out_of_ray_get(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray makes code 1 of every SystemExit that is raised within `ray.get`."""
    monkeypatch.setattr(sys, "argv", ["room"])
    monkeypatch.setattr(entry, "leaving", [])
    monkeypatch.setattr(runtime, "leaving", entry.leaving)

    def main(arguments: list[str]) -> None:
        try:
            runtime._leave(signal.SIGTERM, None)
        except SystemExit:
            raise SystemExit(1) from None

    with pytest.raises(SystemExit) as stopped:
        entry.run_room(main)
    assert stopped.value.code == 143
