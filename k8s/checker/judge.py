"""All rules, and an overlay judged by them."""

from collections.abc import Iterable

from k8s.checker import crds, schemas  # noqa: F401  each registers its rules
from k8s.checker.overlays import Overlay
from k8s.checker.rule import RULES, Finding
from k8s.checker.rules import (  # noqa: F401  each registers its rules
    builds,
    capacity,
    entrypoints,
    keys,
    names,
    network,
    numbers,
    operator_clusters,
    operator_jobs,
    placement,
    pods,
    queues,
    references,
    security,
    serving,
    settings,
)

IN_SCHEMAS = {"crd_schema", "kubernetes_schema", "metadata_schema", "pod_schema"}
COUNTED = {name for name, rule in RULES.items() if rule.check.__module__ == numbers.__name__}

__all__ = ["RULES", "check"]


def check(overlay: Overlay, rules: Iterable[str] | None = None) -> list[Finding]:
    """Judge an overlay by all rules, or by these.

    Where a schema refuses something the other rules have to wait: they count on its shape, and on
    numbers that are some.
    """
    rules = list(RULES if rules is None else rules)
    first = [name for name in rules if name in IN_SCHEMAS]
    second = [name for name in rules if name in COUNTED]
    others = [name for name in rules if name not in IN_SCHEMAS | COUNTED]
    return find_all(overlay, first) or find_all(overlay, second) or find_all(overlay, others)


def find_all(overlay: Overlay, rules: Iterable[str]) -> list[Finding]:
    return [finding for name in rules for finding in RULES[name].find(overlay)]
