"""A resumed run says what it does otherwise."""

from dataclasses import replace

import pytest

from cluster.scaling import WorkerPlan
from datasets.manifest_file import read_manifest
from trainers.config import FinetuneConfig, ModelConfig, OptimConfig, ScheduleConfig
from trainers.prepare import Run
from trainers.resume import describe_changes
from trainers.run.checkpoint import TrainingProgress
from trainers.run.folder import write_config

COSINE = ScheduleConfig(schedule="cosine")


def lines(config: FinetuneConfig, changed: FinetuneConfig, epoch: int) -> list[str]:
    """Resume after `epoch` epochs of 3 steps, with other settings."""
    write_config(config)
    manifest = read_manifest(config.data)
    progress = TrainingProgress(
        epoch=epoch, global_step=3 * epoch, classes=manifest.classes, fingerprint="x"
    )
    plan = WorkerPlan(
        num_workers=0, cpus_per_worker=1, reader_cpus=1.0, use_gpu=False, threads_per_worker=1
    )
    run = Run(config=changed, manifest=manifest, workers=plan, resume=progress)
    return list(describe_changes(run))


@pytest.mark.parametrize(
    ("schedule", "epochs", "done", "words"),
    [
        pytest.param(COSINE, 8, 4, "from 1.7e-05 up to 0.0005 at step 13", id="a finished cosine"),
        pytest.param(COSINE, 8, 2, "from 0.00063 up to 0.00085 at step 7", id="in the middle"),
        pytest.param(COSINE, 3, 2, "from 0.00063 down to 0.00025 at step 7", id="fewer epochs"),
        pytest.param(ScheduleConfig(), 8, 4, None, id="a constant rate"),
        pytest.param(COSINE, 4, 2, None, id="nothing changed"),
    ],
)
def test_a_jump_of_the_learning_rate_is_said(
    schedule, epochs, done, words, easy_data: str, tmp_path
):
    config = FinetuneConfig(
        data=easy_data,
        out=str(tmp_path),
        epochs=4,
        global_batch_size=16,
        schedule=schedule,
        model=ModelConfig(backbone="lenet5", init="he"),
        optim=OptimConfig(learning_rate=1e-3),
    )
    said = lines(config, replace(config, epochs=epochs), done)
    assert [line for line in said if "epochs is" in line] == (
        [f"Resume: epochs is {epochs}, it was 4"] if epochs != 4 else []
    )
    jumps = [line for line in said if "learning rate" in line]
    assert bool(jumps) == (words is not None)
    assert words is None or words in jumps[0]


def test_every_setting_that_changed_is_said(easy_data: str, tmp_path):
    config = FinetuneConfig(data=easy_data, out=str(tmp_path), global_batch_size=16)
    changed = replace(
        config,
        out=str(tmp_path),
        checkpoint_every_steps=7,
        track=replace(config.track, project="cars"),
        cluster=replace(config.cluster, num_workers=2, address="auto"),
        ingest=replace(config.ingest, max_bad_fraction=0.5),
        schedule=replace(config.schedule, early_stopping_epochs=3),
    )
    assert lines(config, changed, 1) == [
        "Resume: checkpoint_every_steps is 7, it was 500",
        "Resume: cluster.num_workers is 2, it was None",
        "Resume: ingest.max_bad_fraction is 0.5, it was 0.01",
        "Resume: schedule.early_stopping_epochs is 3, it was None",
        "Resume: track.project is 'cars', it was None",
    ]
    assert lines(config, config, 1) == []
