"""Fixtures of all rooms: one real Ray cluster of several raylets, small data sets, ../shared."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from ray.cluster_utils import Cluster

from tests.support.data import WriteData, write_shards
from tests.support.nodes import HEAD

if TYPE_CHECKING:
    from tests.support.job_server import TokenCluster

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

OF_TWO_CORES = {
    # Threads of torch that wait must not spin on cores that other processes need: a step of a small
    # network on two threads would take thirty times as long.
    "GOMP_SPINCOUNT": "0",
    # Not Ray's 15: pyright runs beside the tests at 19.
    "RAY_worker_niceness": "0",
    # Of Ray Serve's proxies, one a node: the three nodes are one machine.
    "SERVE_SOCKET_REUSE_PORT_ENABLED": "1",
}
"""Environment of the tests, and of all that they start, where it is not set."""


def pytest_configure() -> None:
    """Give each of xdist's processes a folder of Ray's: the state API of a process finds its
    cluster by a file there."""
    settings.load_profile("ci")  # no deadline, and the same examples each time
    os.environ.update({**OF_TWO_CORES, **os.environ})
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray")
    os.environ["NETRC"] = os.devnull  # whoever runs the tests may be logged in to W&B
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background: commands inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ.pop("RAY_TMPDIR"), ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests on the session's cluster one process of xdist's, which has that cluster, and
    those that start Ray in processes of theirs another, one after the other."""
    for item in items:
        if "ray_nodes" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("cluster"))
        elif item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("own_cluster"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """../shared with the photographs and weights; its absence skips, which `.ci/run` forbids."""
    if not SHARED.is_dir():
        assert not os.environ.get("THAW_REQUIRE_SHARED"), f"{SHARED} must be there"
        pytest.skip(f"{SHARED} is not there")
    return SHARED


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Cluster]:
    """Start three raylets of 2 logical CPUs, and connect to them."""
    import ray

    from cluster import runtime
    from datasets.ray_internals import end_threads

    nodes = Cluster(
        initialize_head=True,
        head_node_args={
            **HEAD,
            "include_dashboard": True,
            "dashboard_port": None,  # any, where another Ray of this machine has 8265
            "object_store_memory": 2**30,
            # Ray frees objects once a second: fast streams would seem to fill the store meanwhile.
            "_system_config": {"free_objects_period_milliseconds": 100},
        },
    )
    for _ in range(2):
        nodes.add_node(num_cpus=2, object_store_memory=2**29)
    runtime.connect(nodes.address, quiet=True)
    yield nodes
    end_threads()
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="session")
def ray_cluster(ray_nodes: Cluster) -> str:
    """Address of the running cluster of `ray_nodes`."""
    return ray_nodes.address


@pytest.fixture(scope="module")
def own_ray() -> Iterator[dict[str, str]]:
    """Variables for a process that starts a Ray of its own, in another folder than this one's."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield {"RAY_TMPDIR": folder}


@pytest.fixture(scope="session")
def token_cluster() -> "Iterator[TokenCluster]":
    """A cluster of other processes, with a job server that asks for a token."""
    from tests.support.job_server import start_token_cluster

    with (
        tempfile.TemporaryDirectory(prefix="tc", ignore_cleanup_errors=True) as folder,
        start_token_cluster(Path(folder)) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch compute on one core: small tensors are fastest there, and where others are busy,
    ten times so."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt; the handler of before is set again, as libraries leave
    theirs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def write_data(tmp_path_factory: pytest.TempPathFactory) -> WriteData:
    """Return a function that writes a data set as `write_shards` does, and returns its URI."""

    def write(**sizes: int) -> str:
        uri = str(tmp_path_factory.mktemp("data"))
        write_shards(uri, **sizes)
        return uri

    return write


@pytest.fixture
def toy_backbone(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a backbone of one stage, whose networks `with_head` makes."""
    from trainers.networks.backbones import BACKBONES

    toy = replace(BACKBONES["resnet50"], stages=(("stem", ("stem",)),), head="fc")
    monkeypatch.setitem(BACKBONES, "toy", toy)
    return "toy"


@pytest.fixture(scope="session")
def easy_data(write_data: WriteData) -> str:
    """48 training, 17 validation and 13 test images of 3 classes; 17 and 13 are prime."""
    return write_data()
