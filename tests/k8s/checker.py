"""All rules, and an overlay judged by them."""

from collections.abc import Iterable

from tests.k8s import crds, schemas  # noqa: F401  schemas registers rules
from tests.k8s.crds import NEEDS_CRDS
from tests.k8s.overlays import Overlay
from tests.k8s.rule import RULES, Finding
from tests.k8s.rules import (  # noqa: F401  each registers its rules
    capacity,
    entrypoints,
    keys,
    names,
    network,
    operator_clusters,
    operator_jobs,
    pods,
    queues,
    references,
    security,
)

IN_SCHEMAS = {"crd_schema", "kubernetes_schema", "metadata_schema", "pod_schema"}

__all__ = ["RULES", "check", "needs_missing_crds"]


def needs_missing_crds() -> tuple[str, ...]:
    """Rules that have nothing to judge by on this machine."""
    return () if crds.CRD_FOLDER.is_dir() else NEEDS_CRDS


def check(overlay: Overlay, rules: Iterable[str] | None = None) -> list[Finding]:
    """Judge an overlay by all rules there is a standard for, or by these.

    Where a schema refuses something the other rules have to wait: they count on its shape.
    """
    if rules is None:
        rules = [name for name in RULES if name not in needs_missing_crds()]
    first = [name for name in rules if name in IN_SCHEMAS]
    others = [name for name in rules if name not in IN_SCHEMAS]
    return find_all(overlay, first) or find_all(overlay, others)


def find_all(overlay: Overlay, rules: Iterable[str]) -> list[Finding]:
    return [finding for name in rules for finding in RULES[name].find(overlay)]
