"""Saving a sweep's views by wandb's own client, to a stand-in for W&B on loopback."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from cluster.entry import run_room
from tests.support.golden_views import NAMES, write_sweep
from tests.support.wandb.records import ANSWERS, ENTITY, Json, Records
from tests.support.wandb.server import KEY, WandbServer, serving
from tuning.wandb.views import save_views


@pytest.fixture
def sweep(tmp_path: Path) -> str:
    return write_sweep(tmp_path)


class Views:
    """What W&B keeps of views, and its answers to whoever saves them."""

    def __init__(self) -> None:
        self.saved: list[Json] = []
        """Variables of upsertView."""
        page = {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}
        project = {"project": {"id": "1", "name": "cars", "entityName": ENTITY}, "model": None}
        viewer = {"id": "user", "entity": ENTITY}
        self.answers: dict[str, Callable[[Records, Json], Json]] = {
            "GetDefaultEntity": lambda records, sent: {"viewer": viewer},
            "GetProjects": lambda records, sent: {"models": page},
            "CreateProject": lambda records, sent: {"result": project},
            "UpsertView2": self._upsert,
            "upsertView": self._upsert,
            "UpsertSweep": self._create_sweep,
        }
        self.sweeps: list[Json] = []
        """Variables of UpsertSweep."""

    def _upsert(self, records: Records, sent: Json) -> Json:
        self.saved.append(sent)
        view = {
            "id": sent.get("id") or f"View{len(self.saved)}",
            "project": {"id": "1", "name": sent["projectName"], "entityName": sent["entityName"]},
            "updatedAt": "2026-11-24T20:00:00Z",
            **{name: sent[name] for name in ("type", "name", "displayName", "description", "spec")},
        }
        return {"upsertView": {"view": view, "inserted": True}}

    def _create_sweep(self, records: Records, sent: Json) -> Json:
        self.sweeps.append(sent)
        project = {"id": "1", "name": "cars", "entity": {"id": "1", "name": ENTITY}}
        sweep = {"name": f"sweep{len(self.sweeps)}", "project": project}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    with serving(monkeypatch) as server:
        monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
        monkeypatch.delenv("WANDB_ENTITY", raising=False)
        yield server


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> Views:
    views = Views()
    for operation, answer in views.answers.items():
        monkeypatch.setitem(ANSWERS, operation, answer)
    return views


def test_views_are_saved_and_saved_again_in_their_place(
    server: WandbServer, views: Views, sweep: str, capfd: pytest.CaptureFixture[str], monkeypatch
) -> None:
    capfd.readouterr()
    urls = save_views(sweep, project="cars", entity=None)
    assert capfd.readouterr() == ("", "")
    base = f"{server.url}/{ENTITY}/cars"
    assert len(urls) == len(NAMES) and all(url.startswith(base) for url in urls)
    assert urls[0] == f"{base}?nw={views.saved[0]['name'].split('-')[1]}"
    assert urls[2] == f"{base}/reports/How-deep-to-thaw:-sweep--View3"
    types = [view["type"] for view in views.saved]
    assert types == ["project-view", "project-view", "runs"]
    sent = [json.loads(view["spec"]) for view in views.saved]
    assert [section["name"] for section in sent[1]["section"]["panelBankConfig"]["sections"]] == [
        "What decides",
        "How deep to thaw",
        "Pruning",
        "The sweep",
    ]
    assert "0.075 better than the best trial with" in json.dumps(sent[2])

    assert save_views(sweep, project="cars", entity=ENTITY) == urls
    ids = [view.get("id") for view in views.saved]
    assert ids == [None] * 3 + ["View1", "View2", "View3"]
    names = [view["name"] for view in views.saved]
    assert names[:2] == names[3:5]

    other = save_views(sweep, project="lorries", entity="team")
    assert not set(other) & set(urls)
    assert [view.get("id") for view in views.saved[6:]] == [None] * 3

    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert save_views(sweep, project="lorries", entity=None) == other
    assert save_views(sweep, project="cars", entity=ENTITY) == urls  # an option is stronger


def track(sweep: str, trial: str, wandb_id: str) -> None:
    folder = Path(sweep, "trials", trial)
    folder.mkdir(parents=True)
    (folder / "wandb_id").write_text(wandb_id)


def test_the_trials_are_a_sweep_of_wandb_created_once(
    server: WandbServer, views: Views, sweep: str, capfd: pytest.CaptureFixture[str]
) -> None:
    track(sweep, "trial-1", "first")
    capfd.readouterr()
    urls = save_views(sweep, project="cars", entity=None)
    assert save_views(sweep, project="cars", entity=None) == urls
    assert urls[-1] == f"{server.url}/{ENTITY}/cars/sweeps/sweep1"
    (sent,) = views.sweeps
    assert json.loads(sent["priorRunsFilters"]) == {"$or": [{"name": "first"}]}
    config = yaml.safe_load(sent["config"])
    assert config["metric"] == {"name": "val/best_top1", "goal": "maximize"}
    assert set(config["parameters"]["model"]["parameters"]) == {"init", "freeze_depth"}
    assert config["parameters"]["optim"]["parameters"]["clipnorm"]["values"][0] is None
    assert capfd.readouterr() == ("", "") and "WANDB_PROJECT" not in os.environ

    track(sweep, "trial-2", "second")
    assert save_views(sweep, project="cars", entity=None)[-1].endswith("/sweep2")


@pytest.mark.parametrize("with_port", [True, False], ids=["today's", "of an older client"])
def test_a_login_in_netrc_saves_views(
    with_port: bool, server: WandbServer, views: Views, sweep: str, monkeypatch, tmp_path, capfd
) -> None:
    """As a training's login: `wandb login` writes HOST:PORT today, and wrote HOST before."""
    host = server.url.removeprefix("http://")
    login = tmp_path / "no-netrc"
    host = host if with_port else host.partition(":")[0]
    login.write_text(f"machine {host}\n login user\n password {KEY}\n")
    login.chmod(0o600)
    monkeypatch.delenv("WANDB_API_KEY")
    capfd.readouterr()
    assert len(save_views(sweep, project="cars", entity=None)) == len(views.saved) == len(NAMES)
    assert capfd.readouterr() == ("", "")


def give_wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY[::-1])


def give_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")


def refuse_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ANSWERS, "UpsertView2")


@pytest.mark.parametrize(
    ("refuse", "reason"),
    [
        (give_wrong_key, "401"),
        (give_no_key, "No API key configured"),
        (refuse_views, "no answer to UpsertView2"),
    ],
)
def test_a_refusal_is_one_sentence_with_a_remedy(
    server: WandbServer,
    views: Views,
    sweep: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    refuse: Callable[[pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    refuse(monkeypatch)
    capfd.readouterr()
    with pytest.raises(SystemExit, match="2"):
        run_room(lambda _: print(save_views(sweep, project="cars", entity=None)))
    out, error = capfd.readouterr()
    assert error.startswith("error: project is 'cars': W&B refused the views") and not out
    assert reason in error and "set WANDB_API_KEY" in error and error.count("\n") == 1
    assert KEY not in error and KEY[::-1] not in error
    assert not views.saved and not Path(sweep, "wandb_views.json").exists()


def test_a_missing_extra_is_named(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert importlib.util.find_spec("wandb_workspaces") is None
    with pytest.raises(ValueError, match=r"pip install -e '\.\[workspaces\]', or leave out"):
        save_views(sweep, project="cars", entity=None)
