"""`serve` beside other services, on its port and its cluster; the weights behind its answers."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from ray import serve
from ray.serve._private import http_util
from ray.serve.config import HTTPOptions
from starlette.applications import Starlette

from cluster.runtime import Resources
from tests.support.calibration import CALIBRATION
from tests.support.nodes import free_ports
from tests.support.waiting import wait_until
from trainers.config import FinetuneConfig, IngestConfig, ModelConfig
from trainers.networks.backbones import build
from trainers.run import checkpoint
from trainers.run.calibration import Calibration, write_calibration
from trainers.run.checkpoint import TrainingProgress
from trainers.run.ensemble import join_tensors, write_ensemble
from trainers.run.folder import write_config
from trainers.serving import app
from trainers.serving import model as served
from trainers.serving.config import ServeConfig, ServiceConfig
from trainers.serving.model import Answerer, Exported, export_for_service
from trainers.serving.proxy import build_middlewares
from trainers.serving.serve import find_url, refuse_too_many, require_free_port, serving
from trainers.serving.uploads import Refused

CLASSES, SIZE_PX, STEP = ("a", "b", "c"), 32, 7
IMAGE_HWC = np.random.default_rng(0).integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
TOLERANCE = 1e-5


def save(run: str, seed: int, num_members: int = 1) -> None:
    """Write a run's checkpoint of LeNet-5: of one, or of an ensemble."""
    torch.manual_seed(seed)
    nets = [build("lenet5", len(CLASSES), SIZE_PX).state_dict() for _ in range(num_members)]
    tensors = nets[0] if num_members == 1 else join_tensors(nets)
    progress = TrainingProgress(
        epoch=1, val_top1=0.5, global_step=STEP, best_step=STEP, classes=CLASSES
    )
    contents = {checkpoint.MODEL: safetensors.torch.save(dict(tensors))}
    checkpoint.save(run, contents, progress)


def write_run(run: str) -> None:
    model = ModelConfig(backbone="lenet5", init="he")
    ingest = IngestConfig(size_px=SIZE_PX)
    write_config(FinetuneConfig(data="/data", out=run, ingest=ingest, model=model))
    save(run, seed=0)
    write_calibration(run, STEP, CALIBRATION)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("served") / "run")
    write_run(out)
    return out


@pytest.fixture(scope="module")
def exported(run: str) -> Exported:
    return export_for_service(run)


@pytest.fixture
def retrained(run: str) -> Iterator[Callable[[], None]]:
    """A function that trains the run again, as many steps: its folder has other weights then."""
    yield lambda: save(run, seed=1)
    save(run, seed=0)


def find_port() -> int:
    return free_ports(1)[0]


@contextmanager
def listening(*options: int) -> Iterator[socket.socket]:
    """A program that listens on a port."""
    with socket.socket() as listener:
        for option in options:
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@pytest.mark.parametrize("options", [(), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)])
def test_a_port_where_another_program_listens_is_refused(options: tuple[int, ...]) -> None:
    with listening(*options) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(ValueError, match=rf"^port is {port}: another program listens"):
                require_free_port(host, port)


def test_a_port_of_closed_connections_is_free() -> None:
    with listening(socket.SO_REUSEADDR) as listener:
        address = listener.getsockname()
        with socket.create_connection(address):
            listener.accept()[0].close()  # first, as a service does at its end
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(address)
    require_free_port(*address)


def test_a_host_that_this_machine_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^host is '203\.0\.113\.7': .*; use 127\.0\.0\.1"):
        require_free_port("203.0.113.7", find_port())


async def start_two_servers(options: HTTPOptions) -> None:
    """Start the server of Ray Serve's proxies twice on a port."""
    loop, set_option, listeners = asyncio.get_running_loop(), http_util.set_socket_reuse_port, []
    running: list[tuple[Any, Any]] = []
    http_util.set_socket_reuse_port = lambda it: (listeners.append(it), set_option(it))[1]
    try:
        for _ in range(2):
            running.append(
                await http_util.start_asgi_http_server(
                    Starlette(), options, event_loop=loop, enable_so_reuseport=True
                )
            )
            while not running[-1][1].started:
                await asyncio.sleep(0.01)
    finally:
        for task, server in running:
            server.should_exit = True
            await task
        for listener in listeners:
            listener.close()


@pytest.mark.usefixtures("interruptible")  # uvicorn's handler stays where a server does not start
def test_proxies_share_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_util, "set_socket_reuse_port", http_util.set_socket_reuse_port)
    build_middlewares()  # the tests' environment asks for shared ports
    asyncio.run(start_two_servers(HTTPOptions(host="127.0.0.1", port=find_port())))

    monkeypatch.delenv("SERVE_SOCKET_REUSE_PORT_ENABLED")
    build_middlewares()
    with pytest.raises(RuntimeError, match="Failed to bind to address"):
        asyncio.run(start_two_servers(HTTPOptions(host="127.0.0.1", port=find_port())))


@pytest.mark.parametrize(
    ("host", "head", "here", "url"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1", "http://127.0.0.1:80"),
        ("127.0.0.1", "10.0.0.1", "10.0.0.1", "http://127.0.0.1:80"),
        ("::1", "10.0.0.1", "10.0.0.1", "http://[::1]:80"),
        ("0.0.0.0", "127.0.0.1", "127.0.0.1", "http://0.0.0.0:80"),
        ("0.0.0.0", "10.0.0.1", "10.0.0.2", "http://10.0.0.1:80"),
        ("10.0.0.1", "10.0.0.1", "10.0.0.2", "http://10.0.0.1:80"),
        ("gateway", "10.0.0.1", "10.0.0.2", "http://gateway:80"),
    ],
)
def test_the_url_is_one_where_a_proxy_listens(host: str, head: str, here: str, url: str) -> None:
    assert find_url(ServeConfig(run="r", host=host, port=80), head, here) == url


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_the_loopback_of_another_node_is_refused(host: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^host is '{host}': .* 10\.0\.0\.1, .*--host 0\.0\.0\.0"
    ):
        find_url(ServeConfig(run="r", host=host), "10.0.0.1", "10.0.0.2")


def test_replicas_that_do_not_fit_are_refused() -> None:
    two_cpus = Resources(num_nodes=1, num_cpus=2, num_gpus=0, memory_gib=8, object_store_gib=1)
    refuse_too_many(2, two_cpus)
    with pytest.raises(ValueError, match=r"^num_replicas is 3: .* 2 CPUs, .*; use 2 or fewer"):
        refuse_too_many(3, two_cpus)


def test_limits_of_a_calibration_are_computed_once(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = Answerer(exported, ServiceConfig(run="r"))
    monkeypatch.delattr(Calibration, "unknown_threshold")
    monkeypatch.delattr(Calibration, "least_probability")
    answer = answerer.answer(np.array([-50.0, -50.0, -40.0]))

    assert answer["unknown"] is True and answer["class_set"] == ["c"]
    assert answerer.answer(np.array([1.0, 1.0, 1.0]))["unknown"] is False


def test_a_heat_map_is_of_the_weights_that_answer(
    exported: Exported, retrained: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    early, late = (Answerer(exported, ServiceConfig(run="r")) for _ in range(2))
    heat = early.explain(IMAGE_HWC)
    retrained()
    assert early.explain(IMAGE_HWC) == heat
    for run in (exported.run, f"{exported.run}/nowhere"):
        late.exported = replace(exported, run=run)
        with pytest.raises(Refused) as caught:
            late.explain(IMAGE_HWC)
        assert caught.value.status == 503
        assert run not in caught.value.sentence and "--" not in caught.value.sentence
    assert "it was trained again since the service started" in caplog.text
    assert "no run folder there" in caplog.text


def test_an_ensemble_has_no_heat_map(exported: Exported, tmp_path: Path) -> None:
    out = str(tmp_path)
    write_run(out)
    save(out, seed=0, num_members=2)
    write_ensemble(out, ["lenet5", "lenet5"])
    sha256 = str(checkpoint.load(out, STEP)[0].files[checkpoint.MODEL]["sha256"])
    answerer = Answerer(exported, ServiceConfig(run=out))
    answerer.exported = replace(exported, run=out, sha256=sha256)
    with pytest.raises(Refused, match=r"an ensemble\.$") as caught:
        answerer.explain(IMAGE_HWC)
    assert caught.value.status == 501


def test_a_replica_exports_a_network_that_is_too_large_to_send(
    exported: Exported, retrained: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, images_BHWC = ServiceConfig(run="r"), IMAGE_HWC[None]
    expected_BK = Answerer(exported, config).compute(images_BHWC)
    with monkeypatch.context() as patch:
        patch.setattr(served, "_write_onnx", lambda *_: bytes(served.MAX_SENT_BYTES + 1))
        large = export_for_service(exported.run)

    assert exported.onnx is not None and large == replace(exported, onnx=None)
    assert Answerer(large, config).compute(images_BHWC) == pytest.approx(expected_BK, TOLERANCE)
    retrained()
    with pytest.raises(ValueError, match="it was trained again since the service started"):
        Answerer(large, config)


def wait_for_small(url: str) -> None:
    """Wait for the answer of `Small`: each node has a proxy on the same port, and one that starts
    or ends has none."""

    def answers() -> bool:
        try:
            return httpx.get(url, timeout=60).text == "small"
        except httpx.TransportError:
            return False

    wait_until(answers, f"the answer of {url}", 120)


@serve.deployment(graceful_shutdown_wait_loop_s=0.1)
class Small:
    async def __call__(self) -> str:
        return "small"


def bind_small(config: ServiceConfig | None = None, **options: Any) -> Any:
    """Return an application that starts fast."""
    deployment: Any = Small
    return deployment.options(**options).bind()


@pytest.mark.ray
def test_a_service_has_its_replicas_and_leaves_others_alone(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "bind", bind_small)
    config = ServeConfig(run="r", port=find_port(), num_replicas=2)
    with serving(config) as url:
        deployments = serve.status().applications["thaw"].deployments
        assert deployments["Small"].replica_states == {"RUNNING": 2}
        with (
            pytest.raises(ValueError, match=r"^address is .*\(applications: thaw\)"),
            serving(replace(config, port=find_port())),
        ):
            pass
        wait_for_small(url)
        serve.run(bind_small(), name="other", route_prefix="/other")
    assert set(serve.status().applications) == {"other"}
    wait_for_small(f"{url}/other")
    serve.shutdown()


@pytest.mark.ray
@pytest.mark.extended
def test_a_port_that_is_taken_on_the_head_node_leaves_no_ray_serve(
    ray_cluster: str, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.serving.serve.require_free_port", lambda host, port: None)
    with (
        listening() as listener,
        pytest.raises(ValueError, match=r"^port is \d+: the head node can't listen"),
        serving(ServeConfig(run=run, port=listener.getsockname()[1])),
    ):
        pass
    assert not serve.status().proxies


@pytest.mark.ray
@pytest.mark.extended
def test_a_run_has_two_replicas(ray_cluster: str, run: str) -> None:
    with serving(ServeConfig(run=run, port=find_port(), num_replicas=2)) as url:
        deployments = serve.status().applications["thaw"].deployments
        assert deployments["Service"].replica_states == {"RUNNING": 2}
        assert httpx.get(f"{url}/healthz").json()["classes"] == len(CLASSES)
