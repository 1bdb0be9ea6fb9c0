"""Names and labels, whose syntax no schema holds."""

import re
from collections import Counter
from collections.abc import Iterator

from k8s.checker.overlays import name_of
from k8s.checker.parts import CONTAINER_LISTS, Part, dig, join, objects, pods
from k8s.checker.rule import Problem, rule
from k8s.checker.rules.operator_clusters import LABEL_NAME, is_label_key

STANDARD = "Kubernetes, object names and labels"
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@rule(objects(), STANDARD)
def object_name(part: Part) -> Iterator[Problem]:
    name, kind = name_of(part.owner), part.owner["kind"]
    if len(name) > 253 or not SUBDOMAIN.fullmatch(name):
        yield "metadata.name", f"{name!r} is no name: a-z, 0-9, - and . only"
    same = [item for item in part.overlay.objects if identity(item) == identity(part.owner)]
    if same[0] is part.owner and len(same) > 1:
        yield "metadata.name", f"{len(same)} objects are the {kind} {name}"


def identity(item: dict) -> tuple[object, ...]:
    return item.get("kind"), name_of(item), dig(item, "metadata.namespace")


@rule(objects(), STANDARD)
def object_labels(part: Part) -> Iterator[Problem]:
    yield from find_label_problems(part, "metadata.labels")


@rule(pods, STANDARD)
def pod_labels(part: Part) -> Iterator[Problem]:
    yield from find_label_problems(part, "metadata.labels")


def find_label_problems(part: Part, path: str) -> Iterator[Problem]:
    for key, value in dig(part.value, path, {}).items():
        if not is_label_key(key):
            yield path, f"{key!r} is no label key"
        if len(str(value)) > 63 or not LABEL_NAME.fullmatch(str(value)):
            yield join(path, key), f"{value!r} is no label value"


@rule(pods, STANDARD)
def container_name(part: Part) -> Iterator[Problem]:
    names = [
        str(container.get("name"))
        for field in CONTAINER_LISTS
        for container in dig(part.value, f"spec.{field}", ())
    ]
    for name, count in Counter(names).items():
        if len(name) > 63 or not LABEL.fullmatch(name):
            yield "spec.containers", f"{name!r} is no name: a-z, 0-9 and - only"
        if count > 1:
            yield "spec.containers", f"{count} containers are called {name}"
