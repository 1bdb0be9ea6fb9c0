"""One writer a folder: the second is refused, a dead one's place is taken."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cluster.io import lease as module
from cluster.io import storage
from cluster.io.lease import NAME, hold_lease
from tests.conftest import ROOT
from tests.support.waiting import wait_until

HOLD = """
import sys, time
from cluster.io.lease import hold_lease
with hold_lease(sys.argv[1]):
    print("holds", flush=True)
    time.sleep(60)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lease of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "holds\n"
    return process


def write_other(folder: Path, **changes) -> dict:
    """Write the lease of a process on another machine, seen just now."""
    values = asdict(module._describe_process())
    values |= {"machine": "another", "host": "gpu-7", "process": 11, "token": "x"} | changes
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_text(json.dumps(values))
    return values


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # it waits for what others write
    for name, seconds in (("BEAT_S", 0.4), ("STALE_S", 2.0), ("SETTLE_S", 0.01)):
        monkeypatch.setattr(module, name, seconds)


def test_a_folder_that_cannot_be_written_is_named_with_its_field(tmp_path):
    (tmp_path / "file").write_text("")
    places = (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/thaw"))
    for place in places:
        with (
            pytest.raises(
                (ValueError, OSError), match=f"^out is '{place}', which can't be written: "
            ),
            hold_lease(str(place)),
        ):
            pass


def test_the_second_process_is_refused_until_the_first_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SETTLE_S", 0.05)
    first = start(tmp_path)
    try:
        with (
            pytest.raises(ValueError) as caught,
            hold_lease(str(tmp_path), follow="follow it with `tail -f x`"),
        ):
            pass
        words = str(caught.value)
        assert words.startswith(f"out is '{tmp_path}': process {first.pid} on ")
        assert "writes there since 20" in words and words.count("\n") == 0
        assert "follow it with `tail -f x`, or give another --out" in words
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (tmp_path / NAME).exists()
        with hold_lease(str(tmp_path)):
            assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
        assert list(tmp_path.iterdir()) == []
    finally:
        first.kill()
        first.communicate()


def test_a_lease_ends_with_an_error_and_with_sigterm(tmp_path):
    with pytest.raises(OSError, match="full"), hold_lease(str(tmp_path)):
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []
    with ExitStack() as stack:
        stack.enter_context(hold_lease(str(tmp_path / "a")))
        stack.enter_context(hold_lease(str(tmp_path / "b")))


@pytest.mark.parametrize(
    ("changes", "beats", "refused"),
    [
        pytest.param({}, False, True, id="seen just now on another machine"),
        pytest.param({"seen": 0.0}, False, False, id="stale"),
        pytest.param({"seen": 0.0}, True, True, id="a clock behind, but alive"),
        pytest.param({"seen": 4e9}, False, False, id="a clock that jumped back, dead"),
        pytest.param({"seen": 4e9}, True, True, id="a clock ahead, alive"),
    ],
)
def test_a_lease_of_another_machine_is_watched(
    tmp_path, quick, monkeypatch, changes, beats, refused
):
    values = write_other(tmp_path, **changes)
    if beats:
        reads, read = [], module._read

        def read_later(uri, token):
            reads.append(uri)
            if len(reads) == 3:
                write_other(tmp_path, **values | {"seen": values["seen"] + 5})
            return read(uri, token)

        monkeypatch.setattr(module, "_read", read_later)
    if refused:
        with pytest.raises(ValueError, match="process 11 on gpu-7"), hold_lease(str(tmp_path)):
            pass
        assert json.loads((tmp_path / NAME).read_text())["token"] == "x"
    else:
        with hold_lease(str(tmp_path)):
            pass
        assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("off_s", [-3600.0, -20.0, 3600.0])
def test_a_clock_an_hour_off_takes_over_what_is_dead_alone(tmp_path, quick, monkeypatch, off_s):
    """The watcher's clock is off, that of the thread which beats is right."""
    watcher, now = threading.current_thread(), time.time

    def read_clock() -> float:
        return now() + off_s * (threading.current_thread() is watcher)

    with hold_lease(str(tmp_path)):
        monkeypatch.setattr(module, "_find_machine", lambda: "another")
        monkeypatch.setattr(module.time, "time", read_clock)
        with (
            pytest.raises(ValueError, match="its heartbeat is there, its clock differs"),
            hold_lease(str(tmp_path)),
        ):
            pass
    write_other(tmp_path, machine="of a dead driver", seen=now())
    started_s = time.monotonic()
    with hold_lease(str(tmp_path)):
        pass
    assert time.monotonic() - started_s < 30


def test_a_reused_process_number_is_no_holder(tmp_path, quick):
    ours = asdict(module._describe_process())
    write_other(tmp_path, **ours | {"token": "x", "process_started": "1"})
    with hold_lease(str(tmp_path)):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b'{"token": 1}', b"\xff" * 99])
def test_a_damaged_lease_holds_nothing_up(content, tmp_path, quick):
    (tmp_path / NAME).write_bytes(content)
    with hold_lease(str(tmp_path)):
        assert json.loads((tmp_path / NAME).read_bytes())["process"] == os.getpid()


def test_it_beats_and_stops_where_another_took_over(tmp_path, quick, monkeypatch, capsys):
    killed = []
    monkeypatch.setattr(module.os, "kill", lambda *arguments: killed.append(arguments))
    with hold_lease(str(tmp_path)):
        first = (tmp_path / NAME).read_text()
        wait_until(lambda: (tmp_path / NAME).read_text() != first, "a beat")

        def take_over() -> bool:
            write_other(tmp_path)  # again: a beat that was under way may have replaced it
            return bool(killed)

        wait_until(take_over, "its end")
    assert killed == [(os.getpid(), signal.SIGTERM)]
    assert "was taken over: process 11 on gpu-7" in capsys.readouterr().err
    assert json.loads((tmp_path / NAME).read_text())["token"] == "x"


def test_of_two_at_once_one_holds_it(tmp_path, quick):
    """On local files by a link, elsewhere by the last write."""
    uri = storage.join(str(tmp_path), NAME)
    one = module._describe_process()
    two = replace(one, token="two")
    assert (module._create(uri, one) and module._create(uri, two) is not False) or True
    held = module._read(uri, "two")
    assert held is not None and held.token == one.token


def test_a_lease_on_an_object_store(quick):
    import fsspec

    fsspec.filesystem("memory").store.clear()
    with hold_lease("memory://bucket/run"):
        refused = pytest.raises(ValueError, match="out is 'memory://bucket/run': process")
        with refused, hold_lease("memory://bucket/run"):
            pass
    assert not storage.exists("memory://bucket/run/.lease.json")
