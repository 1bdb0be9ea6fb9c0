"""How a command ends that ran out of memory, with Ray's own classes of errors."""

import sys

import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError

from cluster import entry


def raise_from(error: Exception, cause: Exception | None) -> None:
    raise error from cause


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OutOfMemoryError("killed"), None),
        (RuntimeError("a stream failed"), OutOfMemoryError("killed")),
        (RayTaskError("f", "traceback", OutOfMemoryError("killed")), None),
    ],
)
def test_out_of_memory_ends_in_one_sentence(error, cause, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as ended:
        entry.run_room(lambda arguments: raise_from(error, cause))
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: memory of a node ran out") and shown.count("\n") == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("x"), OSError("full")])
def test_other_errors_keep_their_traceback(error, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(type(error)):
        entry.run_room(lambda arguments: raise_from(error, None))
