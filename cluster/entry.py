"""What every `python -m <room>` shares: verbs, the user's errors and the exit code."""

import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUIET_VAR = "THAW_QUIET"
"""Set where only results and warnings are wanted; `cluster.io.terminal` reads it as well."""
STDOUT = 1
leaving: list[int] = []
"""The signal this process was asked to leave by, if any; `cluster.runtime` notes it."""
QUIET_HELP = "\nEvery command also takes --quiet: results and warnings alone, no progress."


def run_room(main: Callable[[list[str]], None]) -> None:
    """Call `main` with the command line; the user's error ends in one sentence and exit code 2.

    `--quiet` is an option of every command, so it is taken here, and said below every `--help`.
    A ValueError or OSError raised by a line of Thaw is the user's error. One from a library
    is a bug and keeps its traceback. THAW_TRACEBACK=1 shows the traceback of both. Where the reader
    of a pipe leaves, the command ends as others do, silently.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    arguments = take_quiet(sys.argv[1:])
    try:
        main(arguments)
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            raise SystemExit(128 + signal.SIGPIPE) from None
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        ours = raised_in.is_relative_to(ROOT) and not raised_in.is_relative_to(ROOT / ".venv")
        if not ours or os.environ.get("THAW_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit:
        if leaving:  # raised within `ray.get`, it has come out with code 1
            raise SystemExit(128 + leaving[0]) from None
        raise
    finally:
        _reader_has_left()  # else the interpreter tells of it, when it flushes at its end
        if {"-h", "--help"} & set(arguments):
            print(QUIET_HELP)


def print_verbs(room: str, verbs: Mapping[str, str]) -> None:
    """Print what a room can do: the summaries of its verbs."""
    width = max(map(len, verbs)) + 2
    print(f"python -m {room} VERB, where VERB is one of\n")
    print("\n".join(f"  {verb:<{width}}{summary}" for verb, summary in verbs.items()))
    print(f"\n`python -m {room} VERB --help` shows the options of a verb.")


def _reader_has_left() -> bool:
    """Tell whether nobody reads what is printed (`| head`); from then on it goes nowhere."""
    output = select.poll()
    output.register(STDOUT, select.POLLERR)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return True


def take_quiet(arguments: list[str]) -> list[str]:
    """Set QUIET_VAR where the command line asks for it; return the other words."""
    end = arguments.index("--") if "--" in arguments else len(arguments)  # another command's
    ours = [word for word in arguments[:end] if word != "--quiet"]
    if len(ours) < end:
        os.environ[QUIET_VAR] = "1"
    return ours + arguments[end:]
