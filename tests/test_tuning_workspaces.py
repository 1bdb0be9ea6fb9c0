"""W&B's workspaces and report of a sweep, compared with golden models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.golden_views import GOLDEN, NAMES, models_of, standing, write_sweep
from trainers.config import FinetuneConfig
from tuning.axes.axis import INIT
from tuning.config import TuningConfig
from tuning.point import AXES
from tuning.record.leaderboard import write_leaderboard
from tuning.record.record import SweepRecord
from tuning.record.results import LEARNS_NOT
from tuning.search import build_scheduler
from tuning.wandb.workspaces import build_run_review

Json = dict[str, Any]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_sweep(tmp_path_factory.mktemp("promoted"))


@pytest.fixture
def own_sweep(sweep: str, tmp_path: Path) -> str:
    """A copy to write in; its leaderboard and promotion name the runs of the first."""
    return str(shutil.copytree(sweep, tmp_path / "sweep"))


@pytest.mark.parametrize("name", NAMES)
def test_models_are_the_golden_ones(sweep: str, name: str) -> None:
    assert models_of(sweep)[name] == json.loads((GOLDEN / f"{name}.json").read_text())


def test_axes_are_where_wandb_has_nested_config(sweep: str) -> None:
    model = models_of(sweep)["sweep_review"]
    columns = model["spec"]["section"]["runSets"][0]["runFeed"]["columnOrder"]
    config: Json = {
        section: {"value": values} for section, values in FinetuneConfig(data="").to_dict().items()
    }
    paths = [column.removeprefix("config:") for column in columns if column.startswith("config:")]
    assert len(paths) == len(AXES)
    for path in paths:
        place: Any = config
        for part in path.split("."):
            place = place[part]
    parallel = model["spec"]["section"]["panelBankConfig"]["sections"][0]["panels"][0]
    accessors = [column["accessor"] for column in parallel["config"]["columns"]]
    assert accessors == [*(f"config:{path}" for path in paths), "summary:val/best_top1"]


@pytest.mark.parametrize("group", ["sweep", 'lr=1e-3 <it\'s> "best"', "größe/2 \\n"])
def test_a_filter_holds_the_group_whatever_its_name(group: str) -> None:
    model = build_run_review("team", "cars", group, fields=[INIT])._to_model()
    (runset,) = model.model_dump()["spec"]["section"]["run_sets"]
    (found,) = runset["filters"]["filters"]
    assert (found["key"]["name"], found["op"], found["value"]) == ("group", "=", group)


@pytest.mark.parametrize(
    ("epochs", "grace_epochs", "factor"), [(10, 1, 3), (10, 2, 3), (9, 1, 2), (4, 3, 4), (4, 4, 3)]
)
def test_rungs_are_those_of_the_scheduler(epochs: int, grace_epochs: int, factor: int) -> None:
    config = TuningConfig(
        base=FinetuneConfig(data="", epochs=epochs),
        grace_epochs=grace_epochs,
        reduction_factor=factor,
    )
    scheduler: Any = build_scheduler(config)
    brackets = getattr(scheduler, "_brackets", [])
    expected = sorted(rung for bracket in brackets for rung, _ in bracket._rungs)
    assert config.rungs == expected


def at(depth: int | str, val_top1: float | None, **changes: Any) -> Any:
    return standing("runs/sweep", 1, depth, val_top1, **changes)


def test_a_running_sweep_has_workspaces_and_no_report(own_sweep: str) -> None:
    Path(own_sweep, "leaderboard.json").unlink()
    assert list(models_of(own_sweep)) == ["run_review", "sweep_review"]
    Path(own_sweep, "config.json").unlink()
    with pytest.raises(ValueError, match=r"no sweep there \(config\.json is missing, or another"):
        SweepRecord.read(own_sweep)


def test_a_sweep_without_winner_has_a_report_that_says_so(own_sweep: str) -> None:
    rows = [at(0, 0.3, verdict=LEARNS_NOT), at(1, None, state="failed", verdict=LEARNS_NOT)]
    write_leaderboard(own_sweep, rows, SweepRecord.read(own_sweep).base, sync=[])
    models = models_of(own_sweep)
    assert list(models) == list(NAMES)
    assert "No trial learned." in json.dumps(models["report"])
