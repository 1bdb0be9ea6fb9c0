"""How a command ends where a node lacks memory or disk, with Ray's own classes of errors."""

import json
import os
import re
import sys
import threading
from dataclasses import dataclass

import pytest
import torch
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, OutOfMemoryError, RayTaskError

from cluster import dispatch, entry
from cluster.dispatch import Verb
from cluster.io.errors import UserError
from cluster.io.json_output import print_json
from cluster.io.terminal import report
from cluster.session_folder import choose_session_folder
from datasets.__main__ import parse
from tests.conftest import ROOT
from trainers.__main__ import parse as parse_trainers

WRAPPED = {
    "itself": lambda error: (error, None),
    "of a task": lambda error: (RayTaskError("f", "a traceback", error), None),
    "a cause": lambda error: (RuntimeError("a stream failed"), error),
    "a cause of a cause": lambda error: (RuntimeError("1"), chain(ValueError("2"), error)),
}


def chain(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def raise_from(error: BaseException, cause: Exception | None) -> None:
    raise error from cause


def test_the_home_folder_is_found_where_no_shell_replaces_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = parse(["prepare", "--source=folder", "--root=~/cars", "--out=~/a", "--exclude=x~/y"])
    assert (found.root, found.out, found.exclude) == ("/home/me/cars", "/home/me/a", "x~/y")
    runs = parse_trainers(["compare", "--runs", "~/a", "b", "--out", "~x"])
    assert (runs.runs, runs.out) == (("/home/me/a", "b"), "~x")


@pytest.mark.parametrize("cause", [OutOfMemoryError, OutOfDiskError, ObjectStoreFullError])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_what_a_node_lacks_is_one_sentence(cause, wrap, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as ended:
        entry.run_room(lambda arguments: raise_from(*WRAPPED[wrap](cause("killed"))))
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    lacking = "memory" if cause is OutOfMemoryError else "the object store"
    assert shown.startswith(f"error: {lacking} of a node") and shown.count("\n") == 1
    assert ("RAY_memory_usage_threshold" in shown) == (cause is OutOfMemoryError)


def test_the_users_own_error_says_more(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit):
        entry.run_room(lambda _: raise_from(UserError("data is 'x'"), OutOfDiskError("full")))
    assert capsys.readouterr().err == "error: data is 'x'\n"


def test_a_gpu_without_memory_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x"])
    error = RayTaskError("f", "a traceback", torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(SystemExit) as ended:
        entry.run_room(lambda _: raise_from(error, None))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: the memory of a GPU ran out: use smaller")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("x"), OSError("full")])
def test_other_errors_keep_their_traceback(error, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(type(error)):
        entry.run_room(lambda arguments: raise_from(error, None))


@pytest.mark.parametrize(("set_by_user", "expected"), [(None, "20000"), ("7", "7")])
def test_threads_of_a_command_spin_briefly(set_by_user, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if set_by_user is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", set_by_user)
    entry.run_room(lambda _: print(os.environ["GOMP_SPINCOUNT"]))
    assert capsys.readouterr().out == f"{expected}\n"


def test_ctrl_c_is_one_sentence_and_130(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as ended:
        entry.run_room(lambda _: raise_from(KeyboardInterrupt(), None))
    assert ended.value.code == 130
    assert capsys.readouterr().err == "Interrupted: run the same command again to resume\n"
    monkeypatch.setenv("THAW_TRACEBACK", "1")
    with pytest.raises(KeyboardInterrupt):
        entry.run_room(lambda _: raise_from(KeyboardInterrupt(), None))


@dataclass(frozen=True, kw_only=True)
class JsonConfig:
    json: bool = False


def answer(config: JsonConfig) -> None:
    """Print what may stand beside a result: news, of libraries, warnings of other threads."""
    report("news")
    print("of a library")
    warner = threading.Thread(target=report, args=("memory is full",), kwargs={"warning": True})
    warner.start()
    warner.join()
    if config.json:
        print_json({"top1": 0.5})


@pytest.mark.parametrize("is_json", [True, False])
def test_json_is_alone_on_stdout(is_json, capsys):
    verbs = {"show": Verb("show", f"{__name__}:JsonConfig", f"{__name__}:answer")}
    dispatch.dispatch("room", verbs, ["show", *["--json"] * is_json])
    printed, beside = capsys.readouterr(), "news\nof a library\nmemory is full\n"
    if is_json:
        assert json.loads(printed.out) == {"top1": 0.5} and printed.err == beside
    else:
        assert printed.out == beside and printed.err == ""


def test_ray_that_starts_early_prints_nothing_on_the_stdout_of_json(monkeypatch, capsys):
    """A long TMPDIR is reported before the modules of the command are imported."""
    monkeypatch.setattr(entry, "starts_early", True)
    monkeypatch.setattr(
        "cluster.runtime.start_early",
        lambda *_: choose_session_folder({"TMPDIR": f"/tmp/{'x' * 90}"}),
    )
    verbs = {"show": Verb("", f"{__name__}:JsonConfig", f"{__name__}:answer", address="json")}
    dispatch.dispatch("room", verbs, ["show", "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"top1": 0.5} and printed.err.startswith("TMPDIR is '/tmp/xx")


def test_every_json_is_printed_where_it_is_alone():
    for room in ("cluster", "datasets", "k8s", "trainers", "tuning"):
        for file in (ROOT / room).rglob("*.py"):
            printed = re.search(r"^ *print\(json\.dumps", file.read_text(), re.MULTILINE)
            assert printed is None or file.stem == "json_output", file
