"""What the other rooms lend this one, which imports none: `cluster/__main__.py` hands it on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


class AllReduce(Protocol):
    """`cluster.doctor.all_reduce.time_all_reduce`: bytes per second that ranks add up."""

    def __call__(
        self, rank: int, world_size: int, address: str, *, use_gpu: bool, timeout_s: float
    ) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Functions that nodes import by their names, as every node has all rooms."""

    absolute: Callable[[str, str], str]
    write_bytes: Callable[[str, bytes], None]
    read_bytes: Callable[[str], bytes]
    delete_file: Callable[[str], None]
    exists: Callable[[str], bool]
    read_manifest: Callable[[str], Any]
    """A manifest has a `fingerprint`, and `splits` by name, whose `shards` have a `path`."""
    time_all_reduce: AllReduce
