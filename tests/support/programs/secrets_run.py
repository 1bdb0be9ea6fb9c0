"""A day's work in one process: prepare, train, sweep, and a crash. test_house_secrets starts it.

python -m tests.support.programs.secrets_run FOLDER
"""

import sys
import traceback
from dataclasses import replace
from pathlib import Path

import ray
import ray.train
from ray.experimental import internal_kv

import datasets.__main__ as datasets_main
import trainers.__main__ as trainers_main
import tuning.__main__ as tuning_main
from cluster.config import ClusterConfig
from tests.support.small import small_training
from trainers import launch
from trainers.config import ModelConfig
from trainers.prepare import prepare_run

SMALL = ("--policy", "light", "--size-px", "32", "--backbone", "lenet5", "--wandb", "offline",
         "--epochs", "1", "--global-batch-size", "8")  # fmt: skip


def main(folder: str) -> None:
    data, out = f"{folder}/cars", f"{folder}/runs"
    synthetic = ("--num-classes", "3", "--train-per-class", "12", "--test-per-class", "4")
    two_workers = ("--num-workers", "2")
    space = ("--inits", "he", "--freeze-depths", "0", "--learning-rates", "1e-3", "1e-4",
             "--clipnorms", "none")  # fmt: skip
    datasets_main.main(
        ["prepare", "--source", "synthetic", "--out", data, "--render-px", "48", *synthetic]
    )
    trainers_main.main(
        ["scratch", "--data", data, "--out", f"{out}/train", *SMALL, "--init", "he", *two_workers]
    )
    tuning_main.main(
        ["scratch", "--data", data, "--out", f"{out}/sweep", *SMALL, *space, "--trials", "2"]
    )
    lenet5 = ModelConfig(backbone="lenet5", init="he")
    cluster = ClusterConfig(num_workers=2, max_failures=0)
    run = prepare_run(small_training(data, f"{out}/crash", model=lenet5, cluster=cluster))
    unknown = replace(lenet5, backbone="no_such_network")  # `prepare_run` would refuse it
    try:
        launch.fit(replace(run, config=replace(run.config, model=unknown)))
    except ValueError as error:
        traceback.print_exc()
        if not isinstance(error.__cause__, ray.train.TrainingFailedError):
            raise  # it came to no worker, whose traceback is to be looked through
        print("crashed as it should", file=sys.stderr)
    else:
        raise AssertionError("an unknown network trained")
    with open(Path(folder, "gcs.bin"), "wb") as file:
        for namespace in (None, b"job", b"fun", b"package", b"dashboard", b"cluster", b"session"):
            for key in internal_kv._internal_kv_list(b"", namespace=namespace):
                file.write(key + b"\n")
                file.write((internal_kv._internal_kv_get(key, namespace=namespace) or b"") + b"\n")
    with open(Path(folder, "processes.bin"), "wb") as file:
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                file.write(place.read_bytes() + b"\n")
            except OSError:
                continue  # it has ended meanwhile
    context = ray.get_runtime_context()
    print(context.runtime_env, context.get_job_id())
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
