"""Freed memory stays in the process, in any of its threads."""

import os
import subprocess
import sys

import pytest

from cluster.memory_allocator import ALLOCATOR_ENV, glibc_version
from tests.conftest import ROOT

# Fills and frees an array of 100 MiB, larger than the arena of a thread can hold.
COUNT_FAULTS = """
import resource, sys, threading
import numpy as np
from cluster.memory_allocator import keep_memory

def count():
    if sys.argv[1] == "keep":
        keep_memory()
    np.ones(100 * 2**17)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        np.ones(100 * 2**17)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=count)
thread.start()
thread.join()
"""


def count_faults(argument: str, environment: dict[str, str]) -> int:
    """Page faults of a process whose thread allocates the same three times again."""
    command = [sys.executable, "-c", COUNT_FAULTS, argument]
    environment = {"PATH": os.environ["PATH"], "NUMPY_MADVISE_HUGEPAGE": "0"} | environment
    return int(subprocess.check_output(command, cwd=ROOT, env=environment))


@pytest.mark.skipif(glibc_version() is None, reason="another C library")
def test_a_thread_gets_the_memory_that_it_freed() -> None:
    one_arena = {"MALLOC_ARENA_MAX": ALLOCATOR_ENV["MALLOC_ARENA_MAX"]}
    assert count_faults("keep", one_arena) < 100
    assert count_faults("keep", ALLOCATOR_ENV) < 100
    assert count_faults("keep", {}) > 10_000
    assert count_faults("don't", one_arena) > 10_000
    assert count_faults("keep", one_arena | {"MALLOC_MMAP_THRESHOLD_": "1048576"}) > 10_000
