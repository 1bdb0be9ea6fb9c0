"""A sweep of a thousand trials that train nothing: what the driver does for each of them."""

import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune

from cluster import runtime
from datasets.config import IngestConfig
from datasets.shards import read_manifest
from tests.bench.scale_constants import exponent
from tests.bench.scale_ranks import private_mib
from tests.conftest import write_shards
from trainers import metrics
from trainers.config import FinetuneConfig, ModelConfig, TrackConfig
from trainers.run.rows import JsonlTracker
from trainers.tracking.mirror import TRIAL, RunMirror
from tuning import states
from tuning.config import SpaceConfig, TuningConfig
from tuning.progress import SweepProgress
from tuning.search import build_tuner, run_folder
from tuning.states import TrialStates
from tuning.sweep_display import SweepDisplay
from tuning.trial import Shared

TRIALS = [60, 180, 500]
CONCURRENT = 16
MIRRORS = [4, 8, 16]


def measure_sweep() -> dict[str, Any]:
    """Run sweeps of more and more trials, without W&B."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["THAW_QUIET"] = "1"
    runtime.connect(None, quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(f"{folder}/data")
        found = []
        for number in TRIALS:
            found.append(_run(folder, number))
            print(json.dumps(found[-1]), flush=True)
    ray.shutdown()
    values = {name: [each[name] for each in found] for name in found[0]}
    return {
        "trials": TRIALS,
        **values,
        "wall_exponent": exponent(TRIALS, values["wall_s"]),
        "callbacks_exponent": exponent(TRIALS, values["callbacks_s"]),
    }


def measure_mirrors() -> dict[str, Any]:
    """Mirror more and more runs at a time in W&B, offline: what each costs the driver."""
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_shards(f"{folder}/data")
        for number in [1, *MIRRORS]:  # the first starts W&B's own process
            found.append(_mirror(folder, number))
            print(json.dumps(found[-1]), flush=True)
    values = {name: [each[name] for each in found[1:]] for name in found[0]}
    return {"mirrors": MIRRORS, **values, "cpu_exponent": exponent(MIRRORS, values["cpu_s"])}


def _mirror(folder: str, number: int) -> dict[str, float]:
    before_mib, before_threads = private_mib(os.getpid()), threading.active_count()
    cpu_s, start = time.process_time(), time.perf_counter()
    mirrors = []
    for run in range(number):
        config = FinetuneConfig(
            data=f"{folder}/data",
            out=f"{folder}/{number}/{run}",
            ingest=IngestConfig(size_px=32),
            model=ModelConfig(backbone="lenet5", init="he"),
            track=TrackConfig(wandb="offline"),
        )
        tracker = JsonlTracker(config.out)
        for row in _rows():
            tracker.log(row)
        mirrors.append(RunMirror(config, name=str(run), group="sweep", job_type=TRIAL))
    threads = threading.active_count() - before_threads
    for mirror in mirrors:
        mirror.finish("finished")
    for mirror in mirrors:
        mirror.close()
    return {
        "wall_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu_s,
        "threads": threads,
        "kept_mib": private_mib(os.getpid()) - before_mib,
    }


def _rows() -> Iterator[dict[str, Any]]:
    for epoch in (1, 2):
        yield {
            metrics.EPOCH: epoch, metrics.GLOBAL_STEP: 10 * epoch, metrics.EPOCH_S: 1.0,
            metrics.UNREADABLE_IMAGES: 0, metrics.IMAGES_PER_S: 1.0, metrics.TRAIN_LOSS: 1 / epoch,
            metrics.VAL_TOP1: 0.1 * epoch, metrics.TOTAL_S: float(epoch),
        }  # fmt: skip


def _run(folder: str, num_trials: int) -> dict[str, Any]:
    config = TuningConfig(
        base=FinetuneConfig(
            data=f"{folder}/data",
            epochs=2,
            ingest=IngestConfig(size_px=32),
            model=ModelConfig(backbone="lenet5", init="he"),
            track=TrackConfig(wandb="off"),
        ),
        space=SpaceConfig(
            freeze_depths=(0,),
            learning_rates=tuple(1e-4 * (1 + number / 1000) for number in range(num_trials)),
            clipnorms=(None,),
            inits=("he",),
        ),
        out=f"{folder}/sweep-{num_trials}",
        search="grid",
        grace_epochs=2,
    )

    def trial(params: dict[str, Any]) -> None:
        trial_id = ray.tune.get_context().get_trial_id()
        tracker = JsonlTracker(run_folder(config, str(trial_id)))
        for row in _rows():
            tracker.log(row)
            ray.tune.report(row)

    manifest = read_manifest(config.base.data)
    display = SweepDisplay(config, manifest, num_trials=num_trials, num_concurrent=CONCURRENT)
    progress = SweepProgress(
        config, Shared(), display, TrialStates(config.out, num_trials=num_trials)
    )
    callbacks_s = _time_callbacks(progress)
    writes = _count_writes()
    tuner = build_tuner(
        config,
        tune.with_resources(trial, {"cpu": 0.1}),  # pyright: ignore
        [progress],
        num_concurrent=CONCURRENT,
    )
    cpu_s, start = time.process_time(), time.perf_counter()
    tuner.fit()
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_s
    progress.close()
    gc.collect()  # garbage waits for hundreds of MiB
    state_files = Path(config.out, "tune").glob("experiment_state-*.json")
    return {
        "wall_s": wall_s,
        "driver_cpu_s": cpu_s,
        "callbacks_s": sum(callbacks_s),
        "trials_json_bytes": Path(config.out, "trials.json").stat().st_size,
        "trials_json_writes": len(writes),
        "trials_json_written": sum(writes),
        "tune_state_bytes": sum(file.stat().st_size for file in state_files),
        "driver_mib": private_mib(os.getpid()),
    }


def _time_callbacks(progress: SweepProgress) -> list[float]:
    """Have the driver's callbacks add their seconds to the list that is returned."""
    seconds: list[float] = []
    for name in ("on_trial_start", "on_trial_result", "on_step_end", "on_trial_complete"):
        method = getattr(progress, name)

        def timed(*arguments: Any, method: Any = method, **named: Any) -> None:
            start = time.perf_counter()
            method(*arguments, **named)
            seconds.append(time.perf_counter() - start)

        setattr(progress, name, timed)
    return seconds


def _count_writes() -> list[int]:
    """Have the writes of trials.json add their bytes to the list that is returned."""
    sizes: list[int] = []
    write = states.storage.write_bytes

    def counted(uri: str, content: bytes) -> None:
        if uri.endswith("trials.json"):
            sizes.append(len(content))
        write(uri, content)

    states.storage.write_bytes = counted
    return sizes
