"""Private names of Ray Core and its job client; `datasets` and `tuning` have a module like this."""

import logging
from functools import cache
from typing import Any

import ray

logger = logging.getLogger(__name__)

TESTED_VERSION = "2.60"


@cache
def check_version() -> None:
    """Warn, once, where Ray is not of the version that its private names were tested with."""
    if not ray.__version__.startswith(f"{TESTED_VERSION}."):
        logger.warning(
            "ray is %s, and Thaw was tested with %s: run test_cluster_*, test_datasets_epochs, "
            "test_scale, test_tuning_resume and test_house_secrets, then set TESTED_VERSION in %s",
            ray.__version__,
            TESTED_VERSION,
            __name__,
        )


def find_session_folder() -> str:
    """Return the folder of the connected Ray session on this node."""
    from ray._private import worker

    node: Any = worker._global_node
    return node.get_session_dir_path()


def find_server_version(client: Any) -> str:
    """Return the version of Ray behind a job server."""
    return str(client._server_ray_version)
