"""Run the main function of a room: --quiet, the user's errors and the exit code."""

import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.io.errors import StorageError, UserError
from cluster.memory_allocator import keep_memory
from cluster.threads import spin_briefly

ROOT = Path(__file__).resolve().parent.parent
STDOUT = 1
leaving: list[int] = []
"""The signal that asked this process to end, if any; set by `cluster.runtime`."""
starts_early = False
"""Whether this process may start Ray while it imports what a command needs."""
OUT_OF_DISK = (
    "the object store of a node is full, and so is the disk that Ray spills it to; free space "
    "there (Ray's session folder, or --object-spilling-directory of `ray start`), or end the other "
    "jobs of this cluster"
)
NODE_ERRORS = {
    "ray.exceptions.OutOfMemoryError": "memory of a node ran out, and Ray killed tasks there until "
    "it gave up; free memory there, use smaller batches or fewer workers, or nodes with more "
    "(RAY_memory_usage_threshold is the share of memory at which Ray kills)",
    "ray.exceptions.OutOfDiskError": OUT_OF_DISK,
    "ray.exceptions.ObjectStoreFullError": OUT_OF_DISK,
    "torch.OutOfMemoryError": "the memory of a GPU ran out: use smaller batches or images, or a "
    "smaller network, or end the other processes on that GPU (`nvidia-smi` lists them)",
}
"""The user's sentences for errors of Ray and torch, by class: what a node lacks is no bug."""
INTERRUPTED = "Interrupted: run the same command again to resume"
QUIET_HELP = "\nEvery command also takes --quiet: results and warnings alone, no progress."


def run_room(main: Callable[[Sequence[str]], None], *, early: bool = False) -> None:
    """Call `main` with the command line; the user's error ends in one sentence and exit code 2.

    `--quiet` is an option of every command, so it is taken here, and said below every `--help`.
    A UserError or StorageError is printed in one sentence, with its traceback where
    THAW_TRACEBACK=1 is set. Any other error is a bug and keeps its traceback. Where the reader of a
    pipe leaves (`| head`), the command ends silently, as other commands do; Ctrl-C ends it in one
    sentence, with exit code 130.

    Args:
        early: a command that needs a Ray cluster of its own starts it before its own imports.
    """
    global starts_early
    starts_early = early
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    keep_memory()
    spin_briefly()
    arguments = take_quiet(sys.argv[1:])
    try:
        main(arguments)
    except BrokenPipeError:
        if _reader_has_left():
            raise SystemExit(128 + signal.SIGPIPE) from None
        raise
    except Exception as error:
        # Ray raises a task's error as one of its own class, whose text is a traceback.
        is_users = isinstance(error, UserError | StorageError)
        shown = getattr(error, "cause", error) if is_users else explain_node_error(error)
        if shown is None:
            raise
        if os.environ.get("THAW_TRACEBACK"):
            raise
        print(f"error: {shown}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if os.environ.get("THAW_TRACEBACK"):
            raise
        print(INTERRUPTED, file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except SystemExit:
        if leaving:  # raised within `ray.get`, it has come out with code 1
            raise SystemExit(128 + leaving[0]) from None
        raise
    finally:
        _reader_has_left()  # else the interpreter reports it when it flushes stdout
        if {"-h", "--help"} & set(arguments):
            print(QUIET_HELP)


def explain_node_error(error: BaseException | None) -> str | None:
    """Return the user's sentence where a node lacked memory or disk; None for any other error."""
    for _ in range(10):  # causes of causes
        if error is None:
            return None
        sentence = NODE_ERRORS.get(f"{type(error).__module__}.{type(error).__name__}")
        if sentence is not None:
            return sentence
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


def _reader_has_left() -> bool:
    """Return whether stdout is closed by its reader (`| head`); if so, discard what is printed."""
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
        from cluster.io.terminal import QUIET_VAR  # imports rich, which takes a while

        os.environ[QUIET_VAR] = "1"
    return ours + arguments[end:]
