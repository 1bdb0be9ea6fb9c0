"""Connect to Ray: to an address, to the cluster of a submitted job, or to one started here."""

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from cluster.entry import ROOT, leaving
from cluster.io.errors import UserError
from cluster.io.storage import JOB_ENV_VAR
from cluster.io.terminal import is_quiet, report
from cluster.memory_allocator import ALLOCATOR_ENV
from cluster.ray_internals import silence_driver
from cluster.session_folder import choose_session_folder, raise_file_limit

REACH_TIMEOUT_S = 5.0

# Environment of every process of ours. Albumentations asks the network for a newer version at
# import; two busy cores need more than Ray's 60 s to start a worker group.
WORKER_ENV = {
    **ALLOCATOR_ENV,
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
}
# Read by `ray.init` in this process.
DRIVER_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about GPUs that are not there
    "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": "",  # .rayignore has them; silences a warning
    # Errors of Ray Data's statistics actor, whose results are never read; ours always are.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # Ray sizes the object store by the machine's (or container's) memory; this is its upper bound.
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(8 * 2**30),
}


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
    )


def connect(address: str | None = None, *, quiet: bool = False) -> Resources:
    """Connect to `address`, else to RAY_ADDRESS, else to a cluster started on this machine.

    Does nothing where this process is connected already. Outside a submitted job, a cluster that
    runs already is sent our code; it then runs in a copy of ROOT, so URIs must be absolute.

    Raises:
        UserError: where the address can't be reached, or `datasets` is not ours.
    """
    if ray.is_initialized():
        return find_resources()
    dashboard = open_session(address)
    refuse_foreign_datasets()
    resources = find_resources()
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
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.update({**WORKER_ENV, **DRIVER_ENV, **os.environ})  # what the user set, wins
    if not os.environ.get("THAW_TRACEBACK"):
        silence_driver(partial(report, warning=True))
    # Ray Data logs five lines for each of its executions; its log file has them.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    options: dict[str, Any] = {}
    if address == "local":
        # The dashboard frees the workers of pruned trials; without it they keep their CPUs.
        options["include_dashboard"] = True
        raise_file_limit()
        if (folder := choose_session_folder()) is not None:
            options["_temp_dir"] = folder
    else:
        _refuse_unreachable(address)
        options["runtime_env"] = {"env_vars": WORKER_ENV}
        if JOB_ENV_VAR not in os.environ:  # a job was sent our code already
            options["runtime_env"] |= {"working_dir": str(ROOT)}  # less what .rayignore names
    try:
        context = ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **options)
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
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)  # in place of Ray's, which ends the process here
    return context.dashboard_url


def _leave(signum: int, frame: object) -> None:
    """Unwind the driver as Ctrl-C does, so that what it keeps is closed; the shell sees 143."""
    leaving.append(signum)
    raise SystemExit(128 + signum)


def refuse_foreign_datasets() -> None:
    """Check in this process and in a Ray worker that `datasets` is ours, not Hugging Face's.

    Raises:
        UserError: where it is not.
    """
    places: dict[str, Callable[[], str | None]] = {
        "this process": find_foreign_datasets,
        "a Ray worker": lambda: ray.get(
            ray.remote(num_cpus=0)(find_foreign_datasets).remote()  # pyright: ignore
        ),
    }
    for place, find in places.items():
        foreign = find()
        if foreign is not None:
            raise UserError(
                f"datasets is {foreign} in {place}: Thaw's own folder of that name must come "
                "first; start with `python -m` from Thaw's root, or uninstall the other one there"
            )


def find_foreign_datasets() -> str | None:
    """Where this process would import `datasets` from, unless that is beside this room."""
    spec = importlib.util.find_spec("datasets")
    if spec is None or spec.origin is None:
        return "missing"
    ours = Path(spec.origin).resolve().is_relative_to(ROOT / "datasets")
    return None if ours else spec.origin


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
