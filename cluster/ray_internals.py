"""Private names of Ray Core, its job client and Ray Tune; `datasets` has those of Ray Data,
`trainers.loop` those of Ray Train, `trainers.serving` one of Ray Serve."""

import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import ray
from ray._private import parameter
from ray._private.node import Node

logger = logging.getLogger(__name__)

TESTED_VERSION = "2.60"
LOG_LEVEL_VAR = "RAY_BACKEND_LOG_LEVEL"
TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"
REMEDIES = {
    "memory pressure": "A node ran out of memory, and Ray killed workers there: use fewer workers "
    "or smaller batches, or nodes with more memory",
    "% full": "The disk of a node is almost full: free space there, or Ray can't spill objects",
}
"""What the user must know of the messages of Ray's nodes, by words in them."""


@cache
def check_version() -> None:
    """Warn, once, where Ray is not of the version that its private names were tested with."""
    if not ray.__version__.startswith(f"{TESTED_VERSION}."):
        logger.warning(
            "ray is %s, and Thaw was tested with %s: run test_cluster_*, test_datasets_epochs, "
            "test_scale, test_tuning_resume, test_trainers_serve and test_house_secrets, then set "
            "TESTED_VERSION in %s",
            ray.__version__,
            TESTED_VERSION,
            __name__,
        )


def find_session_folder() -> str:
    """Return the folder of the connected Ray session on this node."""
    from ray._private import worker

    node: Any = worker._global_node
    return node.get_session_dir_path()


def count_cpus() -> int:
    """Return how many CPUs this process may use, at least one.

    Ray counts those of the machine or of a container's quota, also where a batch system lends a job
    some of them, and 0 for half of one.
    """
    from ray._private.utils import get_num_cpus

    num_cpus = int(get_num_cpus(override_docker_cpu_warning=True))
    if hasattr(os, "sched_getaffinity"):  # Linux
        num_cpus = min(num_cpus, len(os.sched_getaffinity(0)))
    return max(1, num_cpus)


def find_memory_share() -> float:
    """Return the used share of this node's memory, as Ray's memory monitor computes it."""
    from ray._common.utils import get_system_memory
    from ray._private.utils import get_used_memory

    return get_used_memory() / get_system_memory()


def read_node_usage() -> list[float]:
    """Return the percentage of this node's CPUs in use since the call before, that of its memory,
    and the MB of this process."""
    import psutil  # pyright: ignore[reportMissingImports]  # Ray brings it

    rss_mb = psutil.Process().memory_info().rss / 1e6
    return [psutil.cpu_percent(), psutil.virtual_memory().percent, rss_mb]


def open_gpu(uuid: str) -> Callable[[], list[float]]:
    """Return what reads the use of an NVIDIA GPU: percent of the time in which it computed, percent
    of its memory, Watts, and degrees Celsius; zeros where its driver does not say, as for a part of
    one (MIG)."""
    from ray._private.thirdparty import pynvml

    nvml: Any = pynvml

    def read() -> list[float]:
        try:
            nvml.nvmlInit()  # counts its calls
            gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
            memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
            return [
                float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
                100 * memory.used / memory.total,
                nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
                float(nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
            ]
        except nvml.NVMLError as error:
            logger.debug("GPU %s: %s", uuid, error)
            return [0.0] * 4

    return read


def list_gpu_generations() -> list[int]:
    """Return the major compute capability of each NVIDIA GPU of this machine, as its driver says:
    torch would take some of the first one's memory to say it. Empty where there is no driver."""
    from ray._private.thirdparty import pynvml

    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        gpus = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        return [nvml.nvmlDeviceGetCudaComputeCapability(gpu)[0] for gpu in gpus]
    except nvml.NVMLError as error:
        logger.debug("GPUs: %s", error)
        return []


def find_server_version(client: Any) -> str:
    """Return the version of Ray behind a job server."""
    return str(client._server_ray_version)


def silence_driver(warn: Callable[[str], None]) -> None:
    """Keep Ray's own lines off the terminal: its log files in the session folder have them.

    These are the warning about tokens, messages of the nodes, such as one about many worker
    processes, and errors of the driver's C++ core. `warn` gets those that the user can act on.
    """
    from ray._private import worker

    check_version()
    logging.getLogger(TOKEN_LOGGER).setLevel(logging.ERROR)
    warned: set[str] = set()

    def print_message(data: dict[str, Any], ignore_prefix: bool) -> None:
        text = "\n".join(data["lines"])
        for words, remedy in REMEDIES.items():
            if words in text and remedy not in warned:
                warned.add(remedy)
                warn(remedy)

    connect = worker.connect

    def connect_silently(*arguments: Any, **options: Any) -> Any:
        """The core of this process reads the level when it starts; nodes have started before."""
        if LOG_LEVEL_VAR in os.environ:
            return connect(*arguments, **options)
        os.environ[LOG_LEVEL_VAR] = "fatal"
        try:
            with _without_lines(LOG_LEVEL_VAR):  # the core writes that it was set
                return connect(*arguments, **options)
        finally:
            del os.environ[LOG_LEVEL_VAR]

    if connect.__name__ != connect_silently.__name__:
        worker.print_to_stdstream, worker.connect = print_message, connect_silently


@contextmanager
def starting_few_processes() -> Iterator[None]:
    """Let `ray.init` start a node without what only people outside look at, three Python processes
    of a second of CPU each: the API server of the dashboard, the autoscaler's monitor (the node is
    all there is) and the log monitor (no log comes to this terminal). Its agent takes any port:
    where another Ray of the machine has the usual one, it would wait for 4 s."""
    params, start = parameter.RayParams, Node.start_api_server
    few: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False}
    parameter.RayParams = partial(params, **few, dashboard_agent_listen_port=0)
    Node.start_api_server = lambda self, **options: None
    try:
        yield
    finally:
        parameter.RayParams, Node.start_api_server = params, start


@contextmanager
def _without_lines(word: str) -> Iterator[None]:
    """Hold back what C++ writes to stderr; write it at the end, less the lines with a word."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            os.write(2, b"".join(line for line in held if word.encode() not in line))


def replace_restored(tuner: Any, callbacks: list[Any], num_concurrent: int, scheduler: Any) -> None:
    """Replace what `Tuner.restore` takes from the session before, and has no argument for."""
    check_version()
    restored = tuner._local_tuner
    restored._run_config.callbacks = callbacks
    restored._tune_config.max_concurrent_trials = num_concurrent
    restored._tune_config.scheduler = scheduler


def end_with_the_last_trial(controller: Any) -> None:
    """Let Tune kill the processes of trials once all trials have ended. It would wait for up to 5 s
    for processes that are still starting, and then for those that are ending; the trials have
    written all they have to.

    Args:
        controller: Tune's class of that name.
    """
    check_version()
    clean_up = controller._cleanup_trials

    def kill_or_clean_up(self: Any) -> None:
        if all(trial.is_finished() for trial in self.get_trials()):
            self._actor_manager.cleanup()
        else:
            clean_up(self)

    if clean_up.__name__ != kill_or_clean_up.__name__:
        controller._cleanup_trials = kill_or_clean_up


def find_rung(scheduler: Any, epoch: int) -> dict[str, float]:
    """Return what ASHA has recorded at one of its rungs, by trial: it decides nothing about those
    that are there."""
    (bracket,) = scheduler._brackets
    return dict(bracket._rungs)[epoch]


TRIAL_PREFIX_VAR = "_TEST_TUNE_TRIAL_UUID"
"""Tune starts the ids of listed trials with its value; they are PREFIX_00000, PREFIX_00001, ..."""


def predict_trial_ids(num_trials: int, known: str | None) -> list[str]:
    """Return the ids that Tune will give to the listed trials of a sweep.

    Args:
        known: the id of one of its trials, where it is resumed.
    """
    check_version()
    prefix = known.rpartition("_")[0] if known else uuid.uuid4().hex[:5]
    os.environ[TRIAL_PREFIX_VAR] = prefix
    return [f"{prefix}_{number:05d}" for number in range(num_trials)]
