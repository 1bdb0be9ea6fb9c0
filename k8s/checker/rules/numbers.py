"""Numbers and words that no schema here checks; other rules count with them."""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

from k8s.checker.parts import Part, containers, dig, objects, ray_groups
from k8s.checker.quantities import parse_quantity
from k8s.checker.rule import Problem, rule

WHOLE = ("gpu", "tpu", "neuron")
"""Ends of the names of devices, which Kubernetes gives out whole."""
OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


@rule(containers, "Kubernetes, extended resources")
def devices_are_whole(part: Part) -> Iterator[Problem]:
    for kind in ("requests", "limits"):
        for name, value in dig(part.value, f"resources.{kind}", {}).items():
            if name.endswith(WHOLE) and not str(value).isdigit():
                yield f"resources.{kind}.{name}", f"is {value!r}: use a whole number"


@rule(ray_groups, "Ray, `ray start`")
def ray_counts_are_numbers(part: Part) -> Iterator[Problem]:
    for name in ("num-cpus", "num-gpus"):
        value = dig(part.value, f"rayStartParams.{name}", "0")
        if not str(value).isdigit():
            yield f"rayStartParams.{name}", f'is {value!r}: use a whole number, such as "0"'


@rule(objects("ClusterQueue", "Queue"), "Kueue and Volcano, quotas")
def quotas_are_quantities(part: Part) -> Iterator[Problem]:
    for path, value in _find_quotas(part.value):
        try:
            parse_quantity(value)
        except ValueError:
            yield path, f"is {value!r}: use a quantity, such as 8 or 64Gi"


def _find_quotas(queue: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in dig(queue, "spec.capability", {}).items():
        yield f"spec.capability.{name}", value
    for number, group in enumerate(dig(queue, "spec.resourceGroups", [])):
        for flavor in dig(group, "flavors", []):
            for item in dig(flavor, "resources", []):
                path = f"spec.resourceGroups[{number}]"
                yield f"{path}.{dig(item, 'name')}.nominalQuota", dig(item, "nominalQuota")


@rule(objects("NetworkPolicy"), "Kubernetes, CIDR notation")
def addresses_are_cidrs(part: Part) -> Iterator[Problem]:
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for number, item in enumerate(dig(part.value, f"spec.{direction}", [])):
            for peer in dig(item, side, []):
                block = dig(peer, "ipBlock", {})
                for text in filter(None, [dig(block, "cidr"), *dig(block, "except", [])]):
                    if not _is_cidr(text):
                        yield f"spec.{direction}[{number}].{side}", f"{text!r} is no CIDR"


def _is_cidr(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return "/" in text


@rule(objects("NetworkPolicy", "ClusterQueue"), "Kubernetes, label selectors")
def selector_operator(part: Part) -> Iterator[Problem]:
    for path, expression in _find_expressions(part.value, ""):
        operator = dig(expression, "operator")
        if operator not in OPERATORS or "key" not in expression:
            yield path, f"has the operator {operator!r}: use a key, and {', '.join(OPERATORS)}"


def _find_expressions(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "matchExpressions" and isinstance(item, list):
                yield from ((f"{path}.{key}".lstrip("."), each) for each in item)
            else:
                yield from _find_expressions(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _find_expressions(item, f"{path}[{number}]")
