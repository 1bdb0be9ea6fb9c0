"""Stop pressed in W&B: for a trial, for a sweep, for a training."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.small import small_training
from tests.support.waiting import comes, wait_until
from tests.support.wandb.server import WandbServer, ask_often, serving
from tests.test_tuning_run import pretend, sweep  # noqa: F401, the fixture
from trainers.commands import follow_training
from trainers.config import ClusterConfig, ModelConfig, TrackConfig
from trainers.prepare import prepare_run
from trainers.run import checkpoint
from trainers.run.folder import find_result
from trainers.run.stop import StoppedByUser
from trainers.tracking.local_runs import read_id
from tuning import run, trials
from tuning.config import TuningConfig
from tuning.run import tune_sweep

pytestmark = [pytest.mark.ray, pytest.mark.extended]
TRACK = TrackConfig(wandb="online", project="thaw-test", log_every_steps=1)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    ask_often(monkeypatch)
    with serving(monkeypatch) as server:
        yield server


def press_stop(server: WandbServer, folder: Path) -> None:
    """Press Stop on the page of a folder's run, and wait until W&B's client has noticed."""
    wait_until(lambda: read_id(str(folder)) in server.runs, "the run")
    server.press_stop(str(read_id(str(folder))))
    wait_until((folder / "wandb_stopped").exists, "the stop")


def test_a_trial_is_pruned_alone_and_a_sweep_ends_as_at_a_deadline(
    server: WandbServer,
    sweep: TuningConfig,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The first trial is stopped, then the sweep while the second one runs."""

    def before(point: dict, epoch: int) -> None:
        """Wait in the second epoch of the first two trials."""
        number = 1 + len(list(tmp_path.glob("waits-*")))
        if epoch == 2 and number < 3:
            (tmp_path / f"waits-{number}").touch()
            comes((tmp_path / f"go-{number}").exists, 60)

    def press() -> None:
        wait_until((tmp_path / "waits-1").exists, "the first trial")
        (trial,) = Path(sweep.out, "trials").iterdir()
        press_stop(server, trial)
        comes(lambda: False, 2)  # Tune's loop goes round
        (tmp_path / "go-1").touch()
        wait_until((tmp_path / "waits-2").exists, "the second trial")
        press_stop(server, Path(sweep.out))
        comes(lambda: False, 2)
        (tmp_path / "go-2").touch()

    monkeypatch.setattr(trials, "build_trial", pretend(sweep, before))
    monkeypatch.setattr(run, "start_runner", lambda: None)
    online = replace(sweep, base=replace(sweep.base, track=TRACK))
    thread = threading.Thread(target=press)
    thread.start()
    answer = tune_sweep(online)
    thread.join()

    stopped, cut = sorted(answer["trials"], key=lambda trial: trial["state"], reverse=True)
    assert (stopped["state"], cut["state"]) == ("stopped by user", "cut")
    assert (stopped["num_epochs"], answer["winner"]["state"]) == (2, "stopped by user")
    runs = {found.display_name: found for found in server.runs.values()}
    trial = server.runs[str(read_id(f"{sweep.out}/trials/{stopped['trial_id']}"))]
    assert (trial.summary["state"], trial.exit_code) == ("stopped by user", 0)
    of_sweep = runs["sweep sweep"].summary
    assert of_sweep["state"] == "finished" and of_sweep["trials/stopped by user"] == 1
    printed = capfd.readouterr().out
    assert "stopped by user after epoch 2" in printed
    assert "The sweep was stopped in W&B: stopping" in printed
    assert "Stopped:      in W&B; 1 trials were stopped, and 4 of 6 not started; run the" in printed

    again = tune_sweep(online)  # the server still has the run of the sweep as stopped
    states = [trial["state"] for trial in again["trials"]]
    assert len(states) == 6 and states.count("stopped by user") == 1
    assert set(states) <= {"finished", "pruned", "stopped by user"}
    assert "Stopped:" not in capfd.readouterr().out


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_ends_with_a_checkpoint(
    server: WandbServer,
    ray_cluster: str,
    easy_data: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    num_workers: int,
) -> None:
    config = small_training(
        easy_data,
        str(tmp_path / "run"),
        epochs=500,
        model=ModelConfig(backbone="lenet5", init="he"),
        track=TRACK,
        cluster=ClusterConfig(num_workers=num_workers),
    )
    thread = threading.Thread(target=press_stop, args=(server, tmp_path / "run"))
    thread.start()
    with pytest.raises(StoppedByUser):
        follow_training(prepare_run(config), job_type="train")
    thread.join()

    assert "Stopped in W&B: run the same command again to resume" in capfd.readouterr().out
    assert find_result(config.out) is None
    progress = checkpoint.latest_progress(config.out)
    assert progress is not None
    (found,) = server.runs.values()
    assert found.rows[-1]["global_step"] == progress.global_step
    assert (found.summary["state"], found.exit_code) == ("stopped by user", 0)
