"""All rules, and an overlay judged by them."""

from collections.abc import Iterable

from tests.k8s import (  # noqa: F401  each registers its rules
    capacity,
    crds,
    entrypoints,
    keys,
    names,
    network,
    operator_clusters,
    operator_jobs,
    pods,
    queues,
    references,
    schemas,
    security,
)
from tests.k8s.crds import NEEDS_CRDS
from tests.k8s.overlays import Overlay
from tests.k8s.rules import RULES, Finding

__all__ = ["RULES", "check", "needs_missing_crds"]


def needs_missing_crds() -> tuple[str, ...]:
    """Rules that have nothing to judge by on this machine."""
    return () if crds.CRD_FOLDER.is_dir() else NEEDS_CRDS


def check(overlay: Overlay, rules: Iterable[str] | None = None) -> list[Finding]:
    """Judge an overlay by all rules there is a standard for, or by these."""
    if rules is None:
        rules = [name for name in RULES if name not in needs_missing_crds()]
    return [finding for name in rules for finding in RULES[name].find(overlay)]
