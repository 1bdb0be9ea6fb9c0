"""What is said where the failure budget is used up, the end of a hang, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray.exceptions
import ray.train
import torch
from ray.exceptions import RayTaskError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from cluster.config import ClusterConfig
from cluster.io.errors import StorageError, UserError
from tests.conftest import ROOT
from tests.support.small import living_workers, small_training
from tests.support.training import train_here
from tests.support.waiting import wait_until
from trainers import launch
from trainers.config import ModelConfig
from trainers.failures import (
    HANG_VARS,
    Watchdog,
    explain_failure,
    explaining_gpu_memory,
    noticing_hangs,
)
from trainers.networks.backbones import build
from trainers.prepare import prepare_run
from trainers.worker import WorkerContext

TWO = ClusterConfig(num_workers=2, max_failures=2)
GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")
DIED = WorkerHealthCheckFailedError("it failed", ray.exceptions.ActorDiedError())
ENDS = "cluster.max_failures is 2, and this was failure 3); run the same command again to resume"


@pytest.mark.parametrize(
    ("failures", "says"),
    [
        ({0: GLOO, 1: DIED}, "a worker died: it was killed, .* (worker 1 of the run in s3://b/run"),
        ({0: GLOO, 1: WorkerHealthCheckTimeoutError("")}, "a worker hangs"),
        ({0: GLOO, 1: GLOO}, "a worker lost its peers"),
        (
            {0: RayTaskError("f", "a traceback", UserError("data is 'x'")).as_instanceof_cause()},
            "data is 'x' (worker 0",
        ),
        ({0: GLOO, 1: ray.exceptions.OutOfDiskError("full")}, "the object store of a node is full"),
        (
            {0: StorageError("URI 'x' is out of reach"), 1: GLOO},
            "URI 'x' is out of reach (worker 0",
        ),
    ],
)
def test_the_failure_that_caused_the_others_is_told(
    failures: dict[int, Exception], says: str
) -> None:
    error = ray.train.WorkerGroupError("", failures)
    said = explain_failure(error, TWO, "s3://b/run")

    assert said is not None and ENDS in said and "\n" not in said
    begin, _, end = says.partition(".*")
    assert said.startswith(begin) and end in said


def test_workers_that_could_not_start_are_no_bug() -> None:
    said = explain_failure(ray.train.ControllerError(WorkerGroupStartupTimeoutError(2)), TWO, "run")

    assert said is not None and said.startswith("cluster.num_workers is 2: the cluster did not")


def test_a_gpu_without_memory_is_the_users_error() -> None:
    config = small_training("d", "run", global_batch_size=1024)
    worker = WorkerContext(rank=1, world_size=4, device=torch.device("cuda"), threads=1)
    with pytest.raises(UserError) as caught, explaining_gpu_memory(config, worker):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    assert str(caught.value) == (
        "global_batch_size is 1024: the memory of a GPU ran out, where a worker trains resnet50 on "
        "256 images of 32 px at a time; use --accumulation-steps 2, more workers, a smaller batch "
        "or a smaller ingest.size_px"
    )
    said = explain_failure(ray.train.WorkerGroupError("", {1: caught.value}), TWO, "run")
    assert said is not None and said.startswith(f"{caught.value} (worker 1")


@pytest.mark.ray
def test_a_users_error_in_a_worker_ends_the_training_without_restarts(
    ray_cluster: str, easy_data: str, tmp_path: Path
) -> None:
    """As where weights are on the driver's node alone."""
    torch.save(build("lenet5", 3).state_dict(), tmp_path / "weights.pth")
    model = ModelConfig(backbone="lenet5", init="file", weights=str(tmp_path / "weights.pth"))
    cluster = ClusterConfig(num_workers=2, max_failures=2)
    config = small_training(easy_data, str(tmp_path / "run"), model=model, cluster=cluster)
    run = prepare_run(config)
    (tmp_path / "weights.pth").unlink()
    with pytest.raises(UserError) as caught:
        launch.fit(run)

    assert str(caught.value).startswith(f"model.weights is '{model.weights}': no file there")
    assert str(caught.value).endswith(
        f" (a worker of the run in {config.out}); then run the same command again to resume"
    )


@pytest.mark.ray
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_workers_and_then_the_driver_as_ever(
    ray_cluster: str, easy_data: str, tmp_path: Path
) -> None:
    model = ModelConfig(backbone="lenet5", init="he")
    config = small_training(easy_data, str(tmp_path), model=model, epochs=1000, cluster=TWO)
    rows, driver = Path(config.out, "metrics.jsonl"), threading.get_ident()
    has_ended = threading.Event()

    def interrupt() -> None:
        while not rows.exists() and not has_ended.wait(0.1):
            pass
        if not has_ended.is_set():
            signal.pthread_kill(driver, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            launch.fit(prepare_run(config))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        has_ended.set()
        thread.join()

    wait_until(lambda: not living_workers(), "the workers end")


@pytest.mark.parametrize(
    "error",
    [
        ray.train.WorkerGroupError("", {0: TypeError("a bug"), 1: GLOO}),
        ray.train.WorkerGroupError("", {0: ValueError("not enough values to unpack")}),
        ray.train.ControllerError(KeyError("a bug")),
    ],
    ids=["worker", "a ValueError in a worker", "controller"],
)
def test_a_bug_keeps_its_traceback(error: ray.train.TrainingFailedError) -> None:
    assert explain_failure(error, TWO, "run") is None


def test_a_process_that_hangs_ends_and_tells_where() -> None:
    script = """
import time
from contextlib import closing
from trainers.failures import Watchdog
with closing(Watchdog(2.0)) as watchdog:
    for _ in range(12):
        time.sleep(0.2)
        watchdog.live()
    watchdog.rest()
    time.sleep(2.2)
    watchdog.live()
Watchdog(None).live()
time.sleep(2.2)
print("alive", flush=True)
Watchdog(0.5)
time.sleep(60.0)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )

    assert (run.returncode, run.stdout) == (1, "alive\n")
    assert "Timeout (0:00:00.5" in run.stderr and 'File "<string>", line 16' in run.stderr


@pytest.mark.ray
def test_a_training_alone_is_watched_until_it_reports(
    ray_cluster: str, easy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(Watchdog, "live", lambda self: calls.append(self._timeout_s))
    for name in ("rest", "close"):
        monkeypatch.setattr(Watchdog, name, lambda self: calls.append("rest"))
    config = small_training(
        easy_data,
        str(tmp_path),
        epochs=2,
        model=ModelConfig(backbone="lenet5", init="he"),
        cluster=ClusterConfig(num_workers=0, hang_timeout_s=77.0),
    )
    train_here(config, report=lambda row: calls.append("report"))

    reports = [at for at, what in enumerate(calls) if what == "report"]
    assert len(reports) == 2 and all(calls[at - 1] == "rest" for at in reports)
    first, second = calls[: reports[0]], calls[reports[0] : reports[1]]
    assert first.count(77.0) == second.count(77.0) + 1 > 3  # batches of both feeds; its start
    assert calls[-1] == "rest" and set(calls) == {77.0, "rest", "report"}


def test_what_the_user_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, users = HANG_VARS
    monkeypatch.delenv(ours, raising=False)
    monkeypatch.setenv(users, "7")
    with noticing_hangs(30.0):
        assert (os.environ[ours], os.environ[users]) == ("30.0", "7")

    assert ours not in os.environ and os.environ[users] == "7"


def test_a_timeout_below_a_second_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cluster\.hang_timeout_s is 0: use 1 second or more"):
        ClusterConfig(hang_timeout_s=0)
