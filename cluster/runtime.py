"""Connect to Ray: to an address, to the cluster of a submitted job, or to one started here."""

import importlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from cluster.entry import ROOT, leaving
from cluster.environment import find_worker_env, set_environment
from cluster.foreign_datasets import refuse_foreign_datasets
from cluster.io.errors import UserError
from cluster.io.storage import JOB_ENV_VAR
from cluster.io.terminal import is_quiet, report
from cluster.memory_watch import watch_memory
from cluster.ray_internals import count_cpus, silence_driver, starting_few_processes
from cluster.session_folder import (
    choose_session_folder,
    provide_token,
    raise_file_limit,
    require_loopback,
)

REACH_TIMEOUT_S = 5.0
LOCAL = "local"
"""Address of a cluster that this process starts for itself."""


class Unreachable(UserError):
    """No cluster at the address that this process may use."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the connected cluster can hold."""

    num_nodes: int
    """Nodes that take work: a head started with no CPUs is not counted."""
    num_cpus: float
    num_gpus: int
    memory_gib: float
    object_store_gib: float
    started_here: bool = False
    """This process started the cluster, for itself."""

    def __str__(self) -> str:
        return (
            f"{_count(self.num_nodes, 'node')}, {_count(self.num_cpus, 'CPU')}, "
            f"{_count(self.num_gpus, 'GPU')}, {self.memory_gib:.0f} GiB memory, "
            f"{self.object_store_gib:.0f} GiB object store"
        )


def find_resources() -> Resources:
    """Count what the connected cluster has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def total(resource: str) -> float:
        return sum(node.get(resource, 0.0) for node in nodes)

    return Resources(
        num_nodes=sum(node.get("CPU", 0.0) > 0 for node in nodes),
        num_cpus=total("CPU"),
        num_gpus=int(total("GPU")),
        memory_gib=total("memory") / 2**30,
        object_store_gib=total("object_store_memory") / 2**30,
        started_here=_started_here,
    )


def require_cpus(resources: Resources) -> None:
    """Refuse a cluster on which no task can run, as where an autoscaler has started no node yet.

    Raises:
        UserError: where it has less than a CPU.
    """
    if resources.num_cpus < 1:
        raise UserError(
            f"the cluster has {resources.num_cpus:g} CPUs, and Thaw plans for the nodes that are "
            "up: start a worker node (minReplicas of 1 or more, where an autoscaler starts them)"
        )


_start: Future[str | None] | None = None
"""Start of a cluster for this process, by `start_early`, until `open_session` takes it."""
_started_here = False
"""The connected cluster was started by this process, for itself."""
PRELOADED_WORKERS = 4
"""Workers that import modules before their first task; later ones do it then."""


def start_early(address: str | None, imports: Sequence[str] = ()) -> None:
    """Start Ray in a thread where `connect` would start it, so that the caller can import torch
    meanwhile: each takes some seconds.

    Args:
        imports: modules that Ray's workers import at once.
    """
    global _start
    if _find_address(address) != LOCAL or _start is not None or ray.is_initialized():
        return
    set_environment()
    options: dict[str, Any] = {"include_dashboard": wants_dashboard(), "num_cpus": count_cpus()}
    raise_file_limit()
    require_loopback()
    provide_token()
    if (folder := choose_session_folder()) is not None:
        options["_temp_dir"] = folder
    start = _start = Future[str | None]()

    def run() -> None:
        try:
            with nullcontext() if wants_dashboard() else starting_few_processes():
                dashboard = _init(LOCAL, **options)
            _preload(imports)
        except BaseException as error:  # raised by `open_session`
            start.set_exception(error)
            return
        start.set_result(dashboard)
        threading.Event().wait()  # Ray's processes end with the thread that started them

    unwind_on_sigterm()
    threading.Thread(target=run, name="start-ray", daemon=True).start()


def wait_for_start() -> None:
    """Wait until `start_early` is done: a process that ends before would leave Ray's behind."""
    if _start is not None:
        _start.exception()


def _preload(imports: Sequence[str]) -> None:
    """Let idle workers import modules, each in a task that takes a CPU."""
    preload: Any = ray.remote(_import_all)
    num_workers = min(PRELOADED_WORKERS, int(ray.cluster_resources().get("CPU", 0)))
    for _ in range(num_workers if imports else 0):
        preload.remote(imports)


def _import_all(names: Sequence[str]) -> None:
    for name in names:
        importlib.import_module(name)


def wants_dashboard() -> bool:
    """Return whether THAW_DASHBOARD=1 asks for Ray's dashboard beside a cluster started here."""
    return os.environ.get("THAW_DASHBOARD", "0") == "1"


def starts_here(address: str | None) -> bool:
    """Return whether `connect` would start a cluster for this process."""
    return _find_address(address) == LOCAL and not ray.is_initialized()


def _find_address(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


def connect(address: str | None = None, *, quiet: bool = False) -> Resources:
    """Connect to `address`, else to RAY_ADDRESS, else to a cluster started on this machine.

    Does nothing where this process is connected already. Outside a submitted job, a cluster that
    runs already is sent our code; it then runs in a copy of ROOT, so URIs must be absolute.

    Raises:
        UserError: where the address can't be reached, it has no CPU, or `datasets` is not ours.
    """
    if ray.is_initialized() and _start is None:
        return find_resources()
    dashboard = open_session(address)
    resources = find_resources()
    require_cpus(resources)
    refuse_foreign_datasets(in_workers=not _started_here)
    if not (quiet or is_quiet()):
        print(
            f"Ray {ray.__version__} at {ray.get_runtime_context().gcs_address}: {resources}"
            + (f"; dashboard http://{dashboard}" if dashboard else ""),
            flush=True,
        )
    return resources


def open_session(address: str | None = None) -> str | None:
    """Connect as `connect` does, but look at nothing; return where the dashboard is.

    Raises:
        Unreachable: where no cluster answers at the address, or it doesn't let this process in.
        UserError: where the address is no address.
    """
    global _start, _started_here
    # Ray Data logs five lines for each of its executions, and a traceback of what it then raises.
    level = logging.ERROR if os.environ.get("THAW_TRACEBACK") else logging.CRITICAL
    logging.getLogger("ray.data").setLevel(level)
    address = _find_address(address)
    if address == LOCAL:
        start_early(address)
        start, _start = _start, None
        assert start is not None
        dashboard, _started_here = start.result(), True
        watch_memory(partial(report, warning=True))
        unwind_on_sigterm()  # again: Ray's core has set its own
        return dashboard
    set_environment()
    _refuse_unreachable(address)
    runtime_env: dict[str, Any] = {"env_vars": find_worker_env()}
    if JOB_ENV_VAR not in os.environ:  # a job was sent our code already
        runtime_env["working_dir"] = str(ROOT)  # less what .rayignore names
    dashboard, _started_here = _init(address, runtime_env=runtime_env), False
    unwind_on_sigterm()
    return dashboard


def _init(address: str, **options: Any) -> str | None:
    if not os.environ.get("THAW_TRACEBACK"):
        silence_driver(partial(report, warning=True))
    try:
        context = ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except ConnectionError as error:
        raise Unreachable(_unreachable(address, str(error))) from error
    except AuthenticationError as error:
        raise Unreachable(
            f"address is {address!r}: RAY_AUTH_MODE is token, and there is no token; put the "
            "cluster's into RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from error
    except RuntimeError as error:
        if not str(error).startswith("Version mismatch"):
            raise
        raise Unreachable(
            f"address is {address!r}: it runs other versions than this process "
            f"({' '.join(str(error).split())}); start from the image of the cluster, or use "
            "`python -m cluster submit`"
        ) from error
    except Exception as error:
        if type(error) is Exception and "timed out during startup" in str(error):
            raise Unreachable(
                f"address is {address!r}: Ray did not start here within 30 s, as this machine has "
                "too much to do or too little memory; end other programs and run it again"
            ) from error
        raise
    return context.dashboard_url or None


def unwind_on_sigterm() -> None:
    """Take the place of Ray's handler, which ends the process where it is."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)


def _leave(signum: int, frame: object) -> None:
    """Unwind the driver as Ctrl-C does, so that what it keeps is closed; the shell sees 143."""
    leaving.append(signum)
    raise SystemExit(128 + signum)


def _refuse_unreachable(address: str) -> None:
    """`ray.init` waits for a dead address for many minutes: knock first."""
    if address == "auto":
        return
    if "://" in address:
        raise UserError(
            f"address is {address!r}: give HOST:PORT of the cluster's head, such as 10.0.0.1:6379; "
            "from outside the cluster, `python -m cluster submit --address http://HOST:8265 "
            "-- python -m ...`"
        )
    host, separator, port = address.rpartition(":")
    if not (separator and host and port.isdigit()):
        raise UserError(f"address is {address!r}: use HOST:PORT, such as 10.0.0.1:6379, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_TIMEOUT_S).close()
    except OSError as error:
        raise Unreachable(_unreachable(address, str(error))) from None


def _unreachable(address: str, reason: str) -> str:
    return (
        f"address is {address!r}: no Ray cluster answers there ({reason}); "
        "check --address and RAY_ADDRESS, or unset both to start one on this machine; where it "
        "asks for a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token"
    )


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}" + ("" if number == 1 else "s")
