"""How a command ends where a node lacks memory or disk, with Ray's own classes of errors."""

import os
import sys

import pytest
import torch
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, OutOfMemoryError, RayTaskError

from cluster import entry
from cluster.io.errors import UserError
from datasets.__main__ import parse
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


def raise_from(error: Exception, cause: Exception | None) -> None:
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
