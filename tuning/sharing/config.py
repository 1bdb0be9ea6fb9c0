"""Options of `cache` (standard library only)."""

from dataclasses import dataclass
from typing import Annotated

from cluster.io.errors import require_not_negative
from cluster.io.markers import URI


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """List the features that sweeps share, and delete the least recently used.

      python -m tuning cache --cache runs/cache
      python -m tuning cache --cache runs/cache --keep-gib 5
      python -m tuning cache --cache runs/cache --keep-gib 0

    Delete only while no sweep uses them: its trials would have to restart, on images.
    """

    cache: Annotated[str, URI] = "runs/cache"
    """URI of the cache: the folder `cache` beside the sweeps, or the value of their --cache."""
    keep_gib: float | None = None
    """Delete the least recently used entries until the rest takes at most this many GiB."""

    def __post_init__(self) -> None:
        if self.keep_gib is not None:
            require_not_negative("keep_gib", self.keep_gib)
