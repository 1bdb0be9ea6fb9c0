"""Saving a sweep's views by wandb's own client, to a stand-in for W&B on loopback."""

import base64
import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb

from cluster.entry import run_room
from tests.golden_views import NAMES, write_sweep
from tuning.wandb_views import save_views

KEY = "0123456789abcdef0123456789abcdef01234567"
Json = dict[str, Any]


@pytest.fixture
def sweep(tmp_path: Path) -> str:
    return write_sweep(tmp_path)


class WandbStandIn(ThreadingHTTPServer):
    """Answers what saving a view asks of W&B, and keeps the views it is given."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.saved: list[Json] = []
        """Variables of upsertView."""
        self.refuses_views = False
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: WandbStandIn

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/graphql":  # telemetry
            return self._send(200, {})
        asked = json.loads(body)
        if KEY not in _key(self.headers.get("Authorization") or ""):
            return self._send(401, {"errors": [{"message": "user is not logged in"}]})
        query, given = asked["query"], asked.get("variables") or {}
        if "upsertView" not in query:
            page = {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}
            viewer = {"id": "1", "entity": "me", "username": "me", "teams": {"edges": []}}
            project = {"project": {"id": "1", "name": "cars", "entityName": "me"}, "model": None}
            return self._send(200, {"data": {"viewer": viewer, "models": page, "result": project}})
        if self.server.refuses_views:
            return self._send(200, {"errors": [{"message": "permission denied"}], "data": None})
        self.server.saved.append(given)
        view = {
            "id": given.get("id") or f"View{len(self.server.saved)}",
            "type": given["type"],
            "name": given["name"],
            "displayName": given["displayName"],
            "description": given["description"],
            "project": {"id": "1", "name": given["projectName"], "entityName": given["entityName"]},
            "spec": given["spec"],
            "updatedAt": "2026-11-24T20:00:00Z",
        }
        self._send(200, {"data": {"upsertView": {"view": view, "inserted": True}}})

    def _send(self, status: int, answer: Json) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


def _key(authorization: str) -> str:
    return base64.b64decode(authorization.removeprefix("Basic ")).decode()


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbStandIn]:
    server = WandbStandIn()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    yield server
    wandb.teardown()  # it keeps server and key for whoever comes next in this process
    server.shutdown()
    server.server_close()


def test_views_are_saved_and_saved_again_in_their_place(
    wandb_server: WandbStandIn, sweep: str, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    urls = save_views(sweep, project="cars", entity=None)
    assert capfd.readouterr() == ("", "")
    base = f"http://127.0.0.1:{wandb_server.server_port}/me/cars"
    assert len(urls) == len(NAMES) and all(url.startswith(base) for url in urls)
    assert urls[0] == f"{base}?nw={wandb_server.saved[0]['name'].split('-')[1]}"
    assert urls[2] == f"{base}/reports/How-deep-to-thaw:-sweep--View3"
    types = [view["type"] for view in wandb_server.saved]
    assert types == ["project-view", "project-view", "runs", "runs"]
    sent = [json.loads(view["spec"]) for view in wandb_server.saved]
    assert [section["name"] for section in sent[1]["section"]["panelBankConfig"]["sections"]] == [
        "What decides",
        "How deep to thaw",
        "Pruning",
        "The sweep",
    ]
    assert "0.075 above the best at another freeze depth" in json.dumps(sent[2])

    assert save_views(sweep, project="cars", entity="me") == urls
    ids = [view.get("id") for view in wandb_server.saved]
    assert ids == [None] * 4 + ["View1", "View2", "View3", "View4"]
    names = [view["name"] for view in wandb_server.saved]
    assert names[:2] == names[4:6]

    other = save_views(sweep, project="lorries", entity="team")
    assert not set(other) & set(urls)
    assert [view.get("id") for view in wandb_server.saved[8:]] == [None] * 4


def refuse_key(server: WandbStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY[::-1])


def give_no_key(server: WandbStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")


def refuse_views(server: WandbStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    server.refuses_views = True


@pytest.mark.parametrize(
    ("refuse", "reason"),
    [
        (refuse_key, "not logged in"),
        (give_no_key, "No API key configured"),
        (refuse_views, "permission denied"),
    ],
)
def test_a_refusal_is_one_sentence_with_a_remedy(
    wandb_server: WandbStandIn,
    sweep: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    refuse: Callable[[WandbStandIn, pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    refuse(wandb_server, monkeypatch)
    capfd.readouterr()
    with pytest.raises(SystemExit, match="2"):
        run_room(lambda _: print(save_views(sweep, project="cars", entity=None)))
    printed = capfd.readouterr()
    error = next(line for line in printed.err.splitlines() if line.startswith("error: "))
    assert reason in error and "set WANDB_API_KEY" in error
    assert KEY not in printed.err + printed.out and KEY[::-1] not in printed.err + printed.out
    assert not wandb_server.saved and not Path(sweep, "wandb_views.json").exists()


def test_a_missing_extra_is_named(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert importlib.util.find_spec("wandb_workspaces") is None
    with pytest.raises(ValueError, match=r"pip install -e '\.\[workspaces\]', or leave out"):
        save_views(sweep, project="cars", entity=None)
