"""metrics.jsonl, and whether W&B mirrors it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.io import storage
from trainers.config import TrackConfig
from trainers.run import rows
from trainers.run.checkpoint import TrainingProgress
from trainers.run.recorder import Recorder
from trainers.run.rows import JsonlTracker, RowReader, find_mode, read_rows


def row(step: int, **metrics: float) -> dict[str, Any]:
    return {"epoch": 1, "global_step": step, "train/loss": 1.0 / step, **metrics}


def test_rows_after_the_checkpoint_are_dropped_at_a_resume(tmp_path: Path) -> None:
    first = JsonlTracker(str(tmp_path))
    for step in (1, 2, 3):
        first.log(row(step))
    JsonlTracker(str(tmp_path), last_row=row(2)).log(row(3, resumed=1.0))

    assert [found["global_step"] for found in read_rows(str(tmp_path))] == [1, 2, 3]
    assert read_rows(str(tmp_path))[-1]["resumed"] == 1.0


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [found["global_step"] for found in rows]


def test_a_row_writes_what_it_weighs_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    append = storage.append_bytes
    monkeypatch.setattr(
        storage,
        "append_bytes",
        lambda uri, content: (written.append(len(content)), append(uri, content)),
    )
    tracker = JsonlTracker(str(tmp_path))
    monkeypatch.delattr(storage, "write_bytes")  # which would write all rows
    for step in range(100, 600):
        tracker.log(row(step))

    assert steps(read_rows(str(tmp_path))) == [*range(100, 600)]
    assert sum(written) == (tmp_path / "metrics.jsonl").stat().st_size
    assert len(written) == 500 and max(written) < 100


def test_a_reader_gets_each_row_once_and_reads_few_bytes_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, reader = JsonlTracker(str(tmp_path)), RowReader(str(tmp_path))
    assert reader.read_new() == []
    read: list[int] = []
    read_bytes = storage.read_bytes

    def count(uri: str, **options: int) -> bytes:
        content = read_bytes(uri, **options)
        read.append(len(content))
        return content

    monkeypatch.setattr(storage, "read_bytes", count)
    found = []
    for step in range(100, 300):
        tracker.log(row(step))
        found += reader.read_new()
        assert reader.read_new() == []

    assert steps(found) == [*range(100, 300)]
    assert max(read) < 200  # the last line it knows, and the new one
    assert len(read) == 200  # nothing where nothing is new


def test_a_reader_notices_that_a_file_was_written_anew(tmp_path: Path) -> None:
    run = str(tmp_path)
    first, reader = JsonlTracker(run), RowReader(run)
    for step in (1, 2, 3):
        first.log(row(step))
    assert steps(reader.read_new()) == [1, 2, 3]

    resumed = JsonlTracker(run, last_row=row(2))
    assert steps(reader.read_new()) == [1, 2]  # the file is shorter
    resumed.log(row(3, resumed=1.0))
    assert steps(reader.read_new()) == [3]
    longer = JsonlTracker(run, last_row=row(1))
    for step in (2, 3, 4):
        longer.log(row(step, again=1.0))
    assert steps(reader.read_new()) == [1, 2, 3, 4]  # as long, and of other rows
    (tmp_path / "metrics.jsonl").unlink()
    assert reader.read_new() == []


def test_a_row_that_is_being_written_is_not_read_yet(tmp_path: Path) -> None:
    tracker, reader = JsonlTracker(str(tmp_path)), RowReader(str(tmp_path))
    tracker.log(row(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "global_')
        file.flush()
        assert steps(reader.read_new()) == steps(read_rows(str(tmp_path))) == [1]
        file.write('step": 2}\n')
    assert steps(reader.read_new()) == [2]
    assert steps(read_rows(str(tmp_path))) == [1, 2]


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Storage without appending, where a write takes 0.01 s for each row, and its clock."""
    store = SimpleNamespace(now_s=100.0, writes=[])
    store.monotonic = lambda: store.now_s
    write = storage.write_bytes

    def write_slowly(uri: str, content: bytes) -> None:
        store.writes.append(content.count(b"\n"))
        store.now_s += 0.01 * store.writes[-1]
        write(uri, content)

    monkeypatch.setattr(storage, "can_append", lambda uri: False)
    monkeypatch.setattr(storage, "write_bytes", write_slowly)
    monkeypatch.setattr(rows, "time", store)
    return store


def test_rows_of_an_object_store_wait_until_they_are_worth_a_write(
    tmp_path: Path, object_store: SimpleNamespace
) -> None:
    tracker = JsonlTracker(str(tmp_path))
    for step in range(2000):
        object_store.now_s += 0.5
        tracker.log(row(step + 1))
    tracker.flush()
    seconds = object_store.now_s - 100

    assert steps(read_rows(str(tmp_path))) == [*range(1, 2001)]
    assert sum(0.01 * rows for rows in object_store.writes) < 0.15 * seconds
    assert len(object_store.writes) < 100  # of 2,000 rows
    tracker.flush()
    assert object_store.writes[-1] == 2000 and object_store.writes.count(2000) == 1


def test_no_row_waits_at_the_end_of_an_epoch_at_a_checkpoint_and_at_the_end(
    tmp_path: Path, object_store: SimpleNamespace
) -> None:
    run = str(tmp_path)
    with Recorder(run) as recorder:
        recorder.log(row(1))
        recorder.log(row(2))
        recorder.wait()
        assert steps(read_rows(run)) == []  # the empty file is not a second old
        recorder.save(lambda: {"model.safetensors": b""}, TrainingProgress(global_step=2))
        recorder.wait()
        assert steps(read_rows(run)) == [1, 2]
        recorder.log(row(3, **{"time/epoch_s": 1.0}))
        recorder.wait()
        assert steps(read_rows(run)) == [1, 2, 3]
        recorder.log(row(4))
    assert steps(read_rows(run)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("configured", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "secret"}, "online"),
        ("auto", {"WANDB_API_KEY": "secret", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "off"),
        ("off", {"WANDB_API_KEY": "secret"}, "off"),
    ],
)
def test_the_mode_follows_config_then_environment(
    monkeypatch: pytest.MonkeyPatch, configured: Any, environment: dict[str, str], mode: str
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert find_mode(TrackConfig(wandb=configured)) == mode
