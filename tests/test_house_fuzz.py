"""Any content of a file that is read back gives a value, or one sentence that names the file.

`make fuzz` looks longer: THAW_FUZZ_EXAMPLES examples a reader, other ones each time.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.hostile_readers import Reader, list_readers, try_reader

EXAMPLES = os.environ.get("THAW_FUZZ_EXAMPLES")
SETTINGS = settings(
    max_examples=int(EXAMPLES or 25),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
NAMES = (
    "manifest", "manifest that may be another's", "schema version", "quarantine", "exclude list",
    "config", "rows", "session", "result", "progress", "checkpoint", "calibration", "evaluation",
    "trials", "leaderboard", "sweep config", "advice", "ranking", "space", "origin",
    "known results", "features", "combined", "ensemble", "combination", "cache",
    "review: config.json", "review: started.json", "review: trials.json",
    "review: leaderboard.json", "review: promoted/promoted.json",
)  # fmt: skip
NOT_JSON = ("quarantine", "exclude list", "space")

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.sampled_from([10**30, -(10**400), 2**63, float("nan"), float("inf"), -0.0, 1e308]),
    st.floats(),
    st.sampled_from(["", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "a\nb", "\ud800", "all"]),
    st.text(max_size=8),
)
KEYS = st.sampled_from(["epoch", "global_step", "classes", "splits", "trials", "__class__", ""])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return list_readers(tmp_path_factory.mktemp("good"))


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    below = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:3])
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, part in below for place in paths_of(part, (*path, key)))]


def change(value: Any, path: tuple[Any, ...], other: Any, *, drop: bool) -> Any:
    """Replace or remove the value at a path; the empty path is the whole."""
    if not path:
        return other
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    if drop:
        del parent[path[-1]]
    else:
        parent[path[-1]] = other
    return value


def test_all_readers_are_tried(readers: dict[str, Reader]) -> None:
    assert tuple(readers) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_good_is_read(name: str, readers: dict[str, Reader], tmp_path: Path) -> None:
    read = try_reader(readers[name], readers[name].good, tmp_path)
    if name not in ("checkpoint", "known results"):  # whose weights are not there
        assert read is not None and not isinstance(read, str), read


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_JSON])
def test_any_json_is_read_or_refused(name: str, readers: dict[str, Reader], tmp_path: Path) -> None:
    reader = readers[name]
    lines = name == "rows"
    text = reader.good.splitlines()[0] if lines else reader.good
    places = paths_of(json.loads(text))

    @SETTINGS
    @given(st.sampled_from(places), VALUES, st.booleans())
    def look(path: tuple[Any, ...], other: Any, drop: bool) -> None:
        content = json.dumps(change(json.loads(text), path, other, drop=drop)).encode()
        try_reader(reader, content + b"\n" + reader.good if lines else content, tmp_path)

    look()


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_read_or_refused(
    name: str, readers: dict[str, Reader], tmp_path: Path
) -> None:
    reader = readers[name]
    good = reader.good

    @SETTINGS
    @given(st.integers(0, len(good)), st.integers(0, 9), st.binary(max_size=9))
    def look(start: int, length: int, other: bytes) -> None:
        try_reader(reader, good[:start] + other + good[start + length :], tmp_path)
        try_reader(reader, other, tmp_path)
        try_reader(reader, good[:start], tmp_path)

    look()
    for content in (
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 60 + b"]" * 60,
        b"9" * 10_000,
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"null",
    ):
        try_reader(reader, content, tmp_path)
