"""Progress of a command: live on a terminal, plain lines elsewhere, or none.

    on a terminal       news as lines, and below them a block that is redrawn every second
    pipe, CI, job log   the same lines; of long work one on stderr every 10 s, without control codes
    THAW_QUIET=1        only results and warnings; `--quiet` of every command sets it

News go through `report`; results are printed.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

QUIET_VAR = "THAW_QUIET"
"""Set by `--quiet`: print only results and warnings."""
REPORT_EVERY_S, DRAW_EVERY_S = 10.0, 1.0
DRAWING_SHARE = 0.05
"""Maximum share of the time spent drawing, however slow storage or terminal are."""


def is_quiet() -> bool:
    return bool(os.environ.get(QUIET_VAR))


def report(line: str, *, warning: bool = False) -> None:
    """Print a line of progress, or a warning; with --quiet only the warning."""
    if warning or not is_quiet():
        print(line, flush=True)


class Pace:
    """How far counted work is, and how fast it went since this was made."""

    def __init__(self, total: int, *, done: int = 0) -> None:
        self.total = total
        self._began = self._reached = (done, time.monotonic())

    @property
    def done(self) -> int:
        return self._reached[0]

    def reach(self, done: int) -> None:
        self._reached = (done, time.monotonic())

    def rate(self) -> float | None:
        """Units a second; None before the first."""
        done, at_s = self._reached
        begun, began_s = self._began
        return (done - begun) / (at_s - began_s) if done > begun and at_s > began_s else None

    def left_s(self) -> float | None:
        """Seconds to the end at this rate; None before the first unit, and where it is overdue."""
        rate = self.rate()
        if rate is None:
            return None
        done, at_s = self._reached
        left_s = (self.total - done) / rate - (time.monotonic() - at_s)
        return left_s if left_s > 0 else None

    def describe(self, unit: str) -> list[str]:
        """Write what is known: `3 of 9 images`, `1.5 images/s`, `4 s left`."""
        rate, left_s = self.rate(), self.left_s()
        parts = [f"{self.done} of {self.total} {unit}"]
        if rate is not None:
            parts.append(describe_rate(rate, unit))
        if left_s is not None:
            parts.append(f"{describe_s(left_s)} left")
        return parts


def describe_rate(rate: float, unit: str) -> str:
    """Write a rate as people say it: `171 images/s`, `9.9 images/s`, `2.0 trainings/min`."""
    if 0 < rate < 0.1:
        return f"{60 * rate:.1f} {unit}/min"
    return f"{rate:.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"


def describe_s(seconds: float) -> str:
    """Write a duration as people say it: `42 s`, `12 min`, `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def count(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Tell how far work is while the body does it.

    Yields:
        What the body calls with the number of units it has done since the last call.
    """
    pace, console = Pace(total), open_console()
    reported_s = time.monotonic()
    plain = not is_quiet() and not console.is_interactive

    def advance(number: int) -> None:
        nonlocal reported_s
        pace.reach(pace.done + number)
        now_s = time.monotonic()
        if plain and now_s - reported_s >= REPORT_EVERY_S and pace.done < total:
            reported_s = now_s
            print(f"{what}: {', '.join(pace.describe(unit))}", file=sys.stderr, flush=True)

    with show(lambda: draw_bar(what, pace.done, total, pace.describe(unit)), console):
        yield advance


def draw_bar(what: str, done: int, total: int, details: list[str]) -> Table:
    """Lay out one line: what is done, a bar and details."""
    drawn = ProgressBar(total=max(1, total), completed=done, width=20)
    return draw_rows([[Text(what, "bold"), drawn, *details]], shrinks=1)


def draw_rows(cells: Sequence[Sequence[RenderableType]], *, shrinks: int) -> Table:
    """Lay out lines of cells below each other; none is broken, however narrow the terminal is.

    Args:
        shrinks: the column that gives way first.
    """
    grid = Table.grid(padding=(0, 2, 0, 0))
    for column in range(max(map(len, cells), default=0)):
        grid.add_column(no_wrap=column != shrinks, overflow="ellipsis")
    for line in cells:
        grid.add_row(*(fit_line(cell) if isinstance(cell, str | Text) else cell for cell in line))
    return grid


def fit_line(text: str | Text) -> Text:
    """Return text that is cut where the terminal ends."""
    style = text.style if isinstance(text, Text) else ""
    return Text(str(text), style, no_wrap=True, overflow="ellipsis")


@contextmanager
def show(render: Callable[[], RenderableType], console: Console | None = None) -> Iterator[None]:
    """Keep what `render` returns below all that is printed while the body runs.

    `render` is called in a thread of its own about once a second, and may read files. Off a
    terminal, and where it is quiet, it is never called.
    """
    console = console or open_console()
    if is_quiet() or not console.is_interactive:
        yield
        return
    over = threading.Event()
    live = Live(
        render(),
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stderr=sys.stderr.isatty(),  # a file that stderr goes to gets its lines
    )

    def draw() -> None:
        took_s = 0.0
        while not over.wait(max(DRAW_EVERY_S, took_s / DRAWING_SHARE)):
            began_s = time.monotonic()
            live.update(render(), refresh=True)
            took_s = time.monotonic() - began_s

    drawer = threading.Thread(target=draw, name="terminal", daemon=True)
    with live, _logging_above():
        drawer.start()
        try:
            yield
        finally:
            over.set()
            drawer.join()


def open_console() -> Console:
    """Open stdout; FORCE_COLOR makes no terminal of a pipe, as it would for rich."""
    terminal = None if sys.stdout.isatty() else False
    return literal_console(force_terminal=terminal, soft_wrap=True, highlight=False)


def literal_console(**options: Any) -> Console:
    """Return a console that prints text as it is: a class may be called `Transit [van]`."""
    return Console(markup=False, emoji=False, **options)


@contextmanager
def _logging_above() -> Iterator[None]:
    """Let warnings go through the stderr that the block has put in place of the real one."""
    before = {
        handler: stream
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler)
        and (stream := handler.stream) is getattr(sys.stderr, "rich_proxied_file", None)
    }
    for handler in before:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler, stream in before.items():
            handler.setStream(stream)
