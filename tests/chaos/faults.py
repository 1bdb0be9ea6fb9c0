"""All faults by name, in the order of the table."""

from collections.abc import Callable

from tests.chaos import (
    drivers,
    heads,
    machines,
    nodes,
    partitions,
    stalls,
    storages,
    sweeps,
    workers,
)
from tests.chaos.arena import Arena
from tests.chaos.outcomes import Outcome

Fault = Callable[[Arena, str], Outcome]
"""Injects what its name says, waits for the end, and raises `Unfit` where that isn't right."""

FAULTS: dict[str, Fault] = {
    **workers.FAULTS,
    **nodes.FAULTS,
    **partitions.FAULTS,
    **heads.FAULTS,
    **machines.FAULTS,
    **drivers.FAULTS,
    **storages.FAULTS,
    **stalls.FAULTS,
    **sweeps.FAULTS,
}
