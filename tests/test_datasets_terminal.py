"""What commands report while they work: on terminals, in pipes, where it is quiet."""

import io
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from cluster import entry
from cluster.io import terminal
from cluster.io.terminal import Pace, count, describe_rate, describe_s, report, show
from tests.conftest import ROOT

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""Control characters but tab and newline."""


class Screen:
    """A terminal that knows the few codes rich sends: what stands on it in the end."""

    def __init__(self, output: str) -> None:
        self.lines, row, self.has_cursor = [""], 0, True
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", output):
            match part:
                case "\n":
                    row += 1
                    self.lines += [""] * (row == len(self.lines))
                case "\r":
                    pass  # each line is cleared before it is written anew
                case "\x1b[2K":
                    self.lines[row] = ""
                case "\x1b[1A":
                    row -= 1
                case "\x1b[?25l" | "\x1b[?25h":
                    self.has_cursor = part.endswith("h")
                case _ if part.startswith("\x1b"):
                    assert part.endswith("m"), f"{part!r} is no colour"
                case _:
                    self.lines[row] += part

    def text(self) -> list[str]:
        return [line.rstrip() for line in self.lines if line.strip()]


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: self.now_s))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 80 columns gets, drawn anew every 10 ms."""
    file = io.StringIO()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(terminal, "DRAW_EVERY_S", 0.01)
    monkeypatch.setattr(
        terminal,
        "open_console",
        lambda: Console(file=file, force_terminal=True, width=80, soft_wrap=True, highlight=False),
    )
    return file


def wait_for(text: str, file: io.StringIO) -> None:
    """Wait until a text was drawn once more."""
    before, pause = file.getvalue().count(text), threading.Event()
    for _ in range(1000):
        if file.getvalue().count(text) > before:
            return
        pause.wait(0.01)
    raise AssertionError(f"{text!r} was not drawn: {file.getvalue()[-500:]!r}")


def test_rate_and_time_left_are_those_of_this_sitting(clock: Clock) -> None:
    pace = Pace(100, done=20)
    assert (pace.rate(), pace.left_s()) == (None, None)
    clock.now_s += 10
    assert pace.left_s() is None, "nothing was done yet"
    pace.reach(40)
    assert pace.rate() == 2.0  # 20 units in 10 s
    assert pace.left_s() == 30.0  # 60 units
    clock.now_s += 12
    assert (pace.rate(), pace.left_s()) == (2.0, 18.0), "it counts down between two blocks"
    assert pace.describe("images") == ["40 of 100 images", "2.0 images/s", "18 s left"]
    clock.now_s += 18
    assert pace.describe("images") == ["40 of 100 images", "2.0 images/s"], "overdue"


def test_durations_and_rates_are_short() -> None:
    durations_s = (0.4, 99.4, 100, 5999, 6000, 7500)
    assert [describe_s(seconds) for seconds in durations_s] == [
        *("0 s", "99 s", "2 min", "1 h 40 min", "1 h 40 min", "2 h 05 min")
    ]
    assert [describe_rate(rate, "images") for rate in (0.0, 0.034, 0.25, 9.94, 171.4)] == [
        *("0.0 images/s", "2.0 images/min", "0.2 images/s", "9.9 images/s", "171 images/s")
    ]


def test_a_pipe_gets_a_line_every_ten_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI sets it: rich would take it for a terminal
    with count("Preparing images", 100, "images") as advance:
        for _ in range(10):
            clock.now_s += 4
            advance(10)
        report("news")
    told = capsys.readouterr()
    assert told.out == "news\n"
    assert told.err == (
        "Preparing images: 30 of 100 images, 2.5 images/s, 28 s left\n"
        "Preparing images: 60 of 100 images, 2.5 images/s, 16 s left\n"
        "Preparing images: 90 of 100 images, 2.5 images/s, 4 s left\n"
    )


def test_a_dumb_terminal_gets_no_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminals = io.StringIO()
    monkeypatch.setattr(terminals, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminals)
    monkeypatch.setenv("TERM", "dumb")
    assert not terminal.open_console().is_interactive
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    console = terminal.open_console()
    assert console.is_interactive
    console.print("[red]", style="red")
    assert terminals.getvalue() == "[red]\n"


def test_quiet_leaves_warnings(
    clock: Clock,
    fake: io.StringIO,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(terminal.QUIET_VAR, "1")
    with count("Preparing images", 100, "images") as advance:
        clock.now_s += 60
        advance(10)
        report("news")
        report("lost", warning=True)
    assert (capsys.readouterr(), fake.getvalue()) == (("lost\n", ""), "")


def test_a_terminal_has_a_block_below_the_news(fake: io.StringIO) -> None:
    path = "runs/" + "x" * 90
    with count("Preparing images", 942, "images") as advance:
        advance(512)
        wait_for("512 of 942 images", fake)
        report(f"news of {path}")
        wait_for("512 of 942 images", fake)
        during = Screen(fake.getvalue())
    assert during.text()[0] == f"news of {path}", "no line is broken"
    assert during.text()[1].startswith("Preparing images  ━━━")
    assert all(len(line) <= 80 for line in during.text()[1:])
    assert not during.has_cursor

    after = Screen(fake.getvalue())
    assert after.text() == [f"news of {path}"]
    assert after.has_cursor
    assert "terminal" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_ends_with_its_work(fake: io.StringIO, error: type[BaseException]) -> None:
    streams = sys.stdout, sys.stderr
    with pytest.raises(error), show(lambda: "block"):
        wait_for("block", fake)
        raise error
    assert Screen(fake.getvalue()).text() == [] and Screen(fake.getvalue()).has_cursor
    assert (sys.stdout, sys.stderr) == streams
    assert "terminal" not in {thread.name for thread in threading.enumerate()}


def test_drawing_slows_down_with_what_it_costs(
    fake: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "DRAWING_SHARE", 0.5)
    pause, drawn = threading.Event(), []

    def render() -> str:
        drawn.append(pause.wait(0.1))
        return "block"

    began_s = time.monotonic()
    with show(render):
        pause.wait(0.85)
    most = (time.monotonic() - began_s) / 0.3
    assert len(drawn) <= 2 + most, "twice at the start, then at most 0.1 of every 0.3 s"


def test_warnings_stand_above_the_block(fake: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stderr)
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        with show(lambda: "block"):
            logging.getLogger("thaw").warning("an image was lost")
            wait_for("block", fake)
            during = Screen(fake.getvalue())
    finally:
        logging.getLogger().removeHandler(handler)
    assert during.text() == ["an image was lost", "block"]
    assert handler.stream is stderr and stderr.getvalue() == ""


def test_a_file_that_stderr_goes_to_gets_its_lines(
    fake: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    with show(lambda: "block"):
        print("a warning", file=sys.stderr)
    assert capsys.readouterr().err == "a warning\n"


def test_quiet_is_an_option_of_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(terminal.QUIET_VAR, "")
    words = ["--address", "HEAD:6379", "--", "python", "-m", "tuning", "--quiet"]
    assert entry.take_quiet(words) == words and not terminal.is_quiet()
    assert entry.take_quiet(["zoo", "--quiet", "--json"]) == ["zoo", "--json"]
    assert terminal.is_quiet()


@pytest.mark.parametrize(
    "words", ["datasets", "datasets prepare", "trainers", "trainers evaluate", "tuning promote"]
)
def test_quiet_is_in_every_help(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    room, *arguments = words.split()
    monkeypatch.setattr(sys, "argv", [room, *arguments, "--help"])
    main = __import__(f"{room}.__main__", fromlist=["main"]).main
    try:
        entry.run_room(main)
    except SystemExit as end:
        assert end.code == 0
    assert capsys.readouterr().out.endswith(entry.QUIET_HELP + "\n")


def run_in_pipe(command: list[str]) -> tuple[str, str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def run_in_terminal(command: list[str]) -> str:
    """Run a command with a terminal for stdout and stderr; returns all that it was sent."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs) as job:
        os.close(theirs)
        sent = b""
        with suppress(OSError):  # how Linux says that the other side has closed a pty
            while part := os.read(ours, 2**16):
                sent += part
    os.close(ours)
    assert job.returncode == 0, sent.decode()
    return sent.decode()


@pytest.mark.ray
def test_prepare_in_a_terminal_in_a_pipe_and_quietly(ray_cluster: str, tmp_path: Path) -> None:
    def command(name: str, *more: str) -> list[str]:
        sizes = ["--num-classes", "3", "--train-per-class", "8", "--test-per-class", "2"]
        prepare = [sys.executable, "-m", "datasets", "prepare", "--source", "synthetic", *sizes]
        return [*prepare, "--out", str(tmp_path / name), *more]

    result = re.compile(r"/\w+: 3 classes; 21 train, 3 val, 6 test images; \d+ s$")

    sent = run_in_terminal(command("terminal", "--address", ray_cluster))
    assert "Preparing images" in sent and "Writing shards" in sent and "\x1b[?25l" in sent
    screen = Screen(sent)
    assert screen.has_cursor
    first, last = screen.text()
    assert first.startswith("Ray 2.") and result.search(last)

    started_s = time.monotonic()
    out, err = run_in_pipe(command("pipe"))
    (only,) = out.splitlines()
    assert result.search(only)
    assert not CONTROL.search(out + err)
    # A line every ten seconds: none where the machine is fast.
    lines = [line for line in err.splitlines() if re.match("(Preparing|Writing) ", line)]
    assert len(lines) <= (time.monotonic() - started_s) // terminal.REPORT_EVERY_S

    out, err = run_in_pipe(command("quiet", "--quiet"))
    (only,) = out.splitlines()
    assert result.search(only) and not CONTROL.search(out + err)
