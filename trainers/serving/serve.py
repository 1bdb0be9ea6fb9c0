"""Serve a run until Ctrl-C."""

import importlib.util
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from errno import EACCES, EADDRINUSE
from ipaddress import ip_address
from threading import Timer

import ray

from cluster.io.errors import UserError, require
from cluster.io.terminal import report
from cluster.runtime import Resources, connect, find_resources
from trainers.run.folder import read_config
from trainers.serving.config import ServeConfig, ServiceConfig

PACKAGES = {"fastapi": "fastapi", "starlette": "starlette", "uvicorn": "uvicorn",
            "python_multipart": "python-multipart",
            "grpc_reflection": "grpcio-reflection", "onnx": "onnx", "onnxscript": "onnxscript",
            "onnxruntime": "onnxruntime"}  # fmt: skip
"""Modules of the extra `serve`, and their packages."""
APPLICATION = "thaw"
HEAD_RESOURCE = "node:__internal_head__"
"""Ray's mark of the head node, where a proxy of Ray Serve always runs."""
PATIENCE_S = 30.0
"""After it the user is told what replicas wait for."""


def require_packages() -> None:
    """Check, before any work, that the optional packages are installed.

    Raises:
        UserError: with the command that installs them.
    """
    missing = [PACKAGES[name] for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs {', '.join(missing)}: pip install -e '.[serve]'")


def run_serve(config: ServeConfig) -> None:
    """Serve until Ctrl-C."""
    require_packages()
    read_config(config.run)
    connect(config.address)
    try:
        with serving(config) as url:
            print(f"Serving {config.run} at {url} (Ctrl-C ends it)", flush=True)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        pass


@contextmanager
def serving(config: ServeConfig) -> Iterator[str]:
    """Serve on the connected cluster within the block; yield the URL once the service answers.

    Raises:
        UserError: where there is no such run, Ray Serve runs on the cluster already, the replicas
            don't fit on it, or the port is taken.
    """
    from ray import serve

    from trainers.serving.app import bind

    _refuse_running_serve()
    refuse_too_many(config.num_replicas, find_resources())
    url = _find_url(config)
    arguments = {field.name: getattr(config, field.name) for field in fields(ServiceConfig)}
    application = bind(ServiceConfig(**arguments), num_replicas=config.num_replicas)
    _refuse_running_serve()  # again, as the export of a large network takes minutes
    try:
        _start_proxies(config)
        with _explaining_delay(config.num_replicas):
            serve.run(application, name=APPLICATION, route_prefix="/")
        yield url
    finally:
        _stop()


def refuse_too_many(num_replicas: int, resources: Resources) -> None:
    num_cpus = int(resources.num_cpus)
    require(
        num_replicas <= num_cpus,
        "num_replicas",
        num_replicas,
        f"the cluster has {num_cpus} CPUs, and a replica needs one; use {num_cpus} or fewer",
    )


def require_free_port(host: str, port: int) -> None:
    """Check that this machine can listen at an address.

    Raises:
        UserError: where it can't.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        # As the proxies': closed connections of an earlier service are no obstacle.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            in_use = "another program listens there; give another --port"
            not_allowed = "this user may not listen there; give a --port of 1024 or more"
            require(error.errno != EADDRINUSE, "port", port, in_use)
            require(error.errno != EACCES, "port", port, not_allowed)
            raise UserError(
                f"host is {host!r}: this machine has no such address; use 127.0.0.1, or 0.0.0.0 "
                "for all of its addresses"
            ) from None


def find_url(config: ServeConfig, head: str, here: str) -> str:
    """Return where the proxy of the head node answers, as seen from this node.

    Args:
        head: IP address of the head node.
        here: that of this node.

    Raises:
        UserError: where only the head node itself could reach it.
    """
    try:
        address = ip_address("127.0.0.1" if config.host == "localhost" else config.host)
    except ValueError:  # a name
        return f"http://{config.host}:{config.port}"
    require(
        head == here or not address.is_loopback,
        "host",
        config.host,
        f"Ray Serve listens on the cluster's head node, {head}, and this is another one; run "
        "`serve` there, or give --host 0.0.0.0 (the service has no login)",
    )
    if address.is_unspecified and not ip_address(head).is_loopback:
        address = ip_address(head)
    name = f"[{address}]" if address.version == 6 else str(address)
    return f"http://{name}:{config.port}"


def _find_url(config: ServeConfig) -> str:
    head = next(
        node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and HEAD_RESOURCE in node["Resources"]
    )
    here = ray.util.get_node_ip_address()
    url = find_url(config, head, here)
    if head == here:
        require_free_port(config.host, config.port)
    return url


def _refuse_running_serve() -> None:
    """Ray Serve is one per cluster: another service's port can't be changed, and its application
    would be replaced."""
    from ray import serve

    status = serve.status()
    if status.applications or status.proxies:
        raise UserError(
            f"address is {ray.get_runtime_context().gcs_address!r}: Ray Serve runs on this cluster "
            f"already (applications: {', '.join(status.applications) or 'none'}); end it where it "
            "was started, or with `serve shutdown` on the head node, or use another cluster; "
            "without --address and RAY_ADDRESS one starts on this machine"
        )


def _start_proxies(config: ServeConfig) -> None:
    from ray import serve

    try:
        serve.start(http_options={"host": config.host, "port": config.port})
    except RuntimeError as error:
        if "Failed to bind to address" not in str(error):
            raise
        raise UserError(
            f"port is {config.port}: the head node can't listen at {config.host}:{config.port}; "
            "give another --port if another program listens there, or a --host that the node has"
        ) from None


@contextmanager
def _explaining_delay(num_replicas: int) -> Iterator[None]:
    """Tell the user what replicas wait for, where the cluster is busy."""

    def explain() -> None:
        free = ray.available_resources().get("CPU", 0.0)
        report(
            f"num_replicas is {num_replicas}: not all run after {PATIENCE_S:.0f} s; a replica "
            f"needs a CPU, and {free:g} of the cluster are free",
            warning=True,
        )

    timer = Timer(PATIENCE_S, explain)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _stop() -> None:
    """Delete our application, and end Ray Serve where no other one runs on it by now."""
    from ray import serve

    others = serve.status().applications.keys() - {APPLICATION}
    if others:
        serve.delete(APPLICATION)
        report(f"Ray Serve runs on: it has other applications ({', '.join(sorted(others))})")
    else:
        serve.shutdown()
