"""What the user sets in the environment of a job or a driver, wins."""

import json
import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from ray.runtime_env.runtime_env import RuntimeEnv, _merge_runtime_env

from cluster import runtime
from cluster.environment import WORKER_ENV, find_worker_env
from cluster.io.storage import JOB_ENV_VAR

NAMES = [*WORKER_ENV]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, str]]]:
    """What `ray.init` gets of an address; nothing is connected."""
    sent: dict[str, dict[str, str]] = {}
    monkeypatch.setattr(runtime, "_refuse_unreachable", lambda address: None)
    monkeypatch.setattr(runtime, "_init", lambda address, runtime_env: sent.update(runtime_env))
    with patch.dict(os.environ):
        for name in (*WORKER_ENV, JOB_ENV_VAR):  # which other tests have left
            os.environ.pop(name, None)
        yield sent


def open_session() -> None:
    runtime.open_session("10.0.0.1:6379")


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_of_the_job_is_not_sent_again(name, sent):
    """`submit --env`, and runtimeEnvYAML of a RayJob; Ray refuses what both name."""
    of_job = {"working_dir": "gcs://x.zip", "env_vars": {name: "mine"}}
    os.environ |= {JOB_ENV_VAR: json.dumps({"runtime_env": of_job, "metadata": {}}), name: "mine"}
    open_session()
    merged = _merge_runtime_env(RuntimeEnv(**of_job), RuntimeEnv(**sent))
    assert merged is not None
    assert merged["env_vars"] == {**WORKER_ENV, name: "mine"}
    assert os.environ[name] == "mine" and "working_dir" not in sent


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_of_the_driver_reaches_its_workers(name, sent):
    os.environ[name] = "mine"
    open_session()
    assert sent["env_vars"] == {**WORKER_ENV, name: "mine"}


@pytest.mark.parametrize("job", ["{}", '{"runtime_env": null}', '{"runtime_env": {"pip": []}}'])
def test_a_job_that_sets_nothing_gets_all(job):
    assert find_worker_env({JOB_ENV_VAR: job}) == WORKER_ENV
