"""Environment variables of Ray's processes, set where a cluster is started or connected to.

What the user has set, wins: in this process, or with `submit --env` and a job's runtime_env.
"""

import json
import os
from collections.abc import Mapping

from cluster.io.storage import JOB_ENV_VAR
from cluster.memory_allocator import ALLOCATOR_ENV
from cluster.threads import SPIN_ENV

# Environment of every process of ours. Albumentations asks the network for a newer version at
# import; two busy cores need more than Ray's 60 s to start a worker group. A report waits until
# Ray Train polls the workers: with its 2 s, no epoch of several workers would be shorter.
WORKER_ENV = {
    **ALLOCATOR_ENV,
    **SPIN_ENV,
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_DATA_LOG_LEVEL": "ERROR",  # it would log 50 kB of each data set, in files without an end
    # Called by the proxies of Ray Serve.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "trainers.serving.proxy.build_middlewares",
}
# Read by `ray.init` in this process.
DRIVER_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about GPUs that are not there
    "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": "",  # .rayignore has them; silences a warning
    # Errors of Ray Data's statistics actor, whose results are never read; ours always are.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # Ray would run a task that its memory monitor kills again for ever: here 5 times in a minute.
    "RAY_task_oom_retries": "5",
    # Where actors take the CPUs, Ray would end an idle worker after a second, and the next trial
    # would wait for another one: 2 to 5 s where it takes 0.2 s.
    "RAY_idle_worker_killing_time_threshold_ms": "30000",
    # Ray's 15 gives a training what other programs of the machine leave, and each of its threads
    # waits for the other: 7 images/s beside one busy process, 16 with 0 (85 alone; LOG.md).
    "RAY_worker_niceness": "0",
    # It would keep the events of 100,000 tasks: 0.1 MB for each short trial.
    "RAY_task_events_max_num_task_in_gcs": "5000",
    # Ray sizes the object store by the machine's (or container's) memory; this is its upper bound.
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(8 * 2**30),
}


def set_environment() -> None:
    """Set both for this process, and so for a cluster that it starts."""
    os.environ.update({**WORKER_ENV, **DRIVER_ENV, **os.environ})


def find_worker_env(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return WORKER_ENV for processes of a cluster that runs already, with the values of this one.

    Ray sends them what the job's runtime_env sets, and refuses a driver that names it again.
    """
    job = json.loads(environment.get(JOB_ENV_VAR) or "{}")
    sent = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {
        name: environment.get(name, value) for name, value in WORKER_ENV.items() if name not in sent
    }
