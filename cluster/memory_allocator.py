"""Lets a process keep the memory that it frees (standard library only).

glibc gives large blocks back to the kernel, so every step of a network on a CPU faults its tensors
in again: half of the time of MobileNetV2.
"""

import ctypes
import os

ALLOCATOR_ENV = {
    # Training runs in a thread of Ray's. Arenas of threads hold no block above 64 MiB, and only the
    # environment can still bind a thread to the main arena.
    "MALLOC_ARENA_MAX": "1",
    # Large pages, where the kernel has them on request (madvise).
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""For processes that are about to start."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # malloc.h
SETTINGS = {
    "MALLOC_TRIM_THRESHOLD_": (M_TRIM_THRESHOLD, 2**31 - 1),
    "MALLOC_TOP_PAD_": (M_TOP_PAD, 256 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": (M_MMAP_THRESHOLD, 2**30),
}
"""By the variable that sets the same; the user's wins."""


def keep_memory() -> None:
    """Let this process keep freed blocks of up to 1 GiB; without glibc, do nothing."""
    if glibc_version() is None:
        return
    mallopt = ctypes.CDLL(None).mallopt
    for variable, (parameter, value) in SETTINGS.items():
        if variable in os.environ or mallopt(parameter, value):
            continue
        mallopt(M_MMAP_MAX, 0)  # an older glibc, which refuses thresholds above 32 MiB


def glibc_version() -> str | None:
    """Return the version of glibc; None where the C library is another, as of Alpine and macOS."""
    try:
        get_version = ctypes.CDLL(None).gnu_get_libc_version
    except (AttributeError, TypeError):  # TypeError: Windows
        return None
    get_version.restype = ctypes.c_char_p
    return get_version().decode()
