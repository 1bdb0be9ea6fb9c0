"""Kubernetes' own kinds, and the pods and metadata of KubeRay's, against strict schemas of every
Kubernetes that Thaw supports."""

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from k8s.checker.crds import RAY_KINDS, path_of, shorten
from k8s.checker.kinds import is_foreign
from k8s.checker.overlays import Object
from k8s.checker.parts import Part, dig, is_of, objects, pods
from k8s.checker.rule import Problem, rule

VERSIONS = tuple(f"1.{minor}" for minor in range(29, 38))
QUEUES = {
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "clusterQueue": {"type": "string"},
                "capability": {"type": "object"},
                "namespaceSelector": {"type": "object"},
                "resourceGroups": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "coveredResources": {"type": "array"},
                            "flavors": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "properties": {
                                        "name": {"type": "string"},
                                        "resources": {"type": "array", "items": {"type": "object"}},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        }
    }
}
"""Of queues of Kueue and Volcano: the shape that rules count on."""
STANDARD = f"Kubernetes {VERSIONS[0]} to {VERSIONS[-1]}"


@cache
def load(file: str, version: str) -> Any:
    """Read a strict schema of kubernetes-validate; None where that version has no such kind."""
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    path = resources.files("kubernetes_validate").joinpath(folder, file)
    return json.loads(path.read_text()) if path.is_file() else None


@cache
def validator_of(api_version: str, kind: str, version: str) -> Draft202012Validator | None:
    group, _, number = api_version.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], number)))
    schema = load(f"{name}.json", version)
    if schema is None:
        return None
    registry: Registry[Any] = (
        Resource.from_contents(load("_definitions.json", version)) @ Registry()
    )
    return Draft202012Validator(schema, registry=registry)


def find_problems(item: Object) -> tuple[Problem, ...]:
    """Judge an object by all versions; a sentence names those that refuse it."""
    return _find_problems(json.dumps(item, sort_keys=True, default=str))


@cache  # most pods and policies are the same in many overlays
def _find_problems(text: str) -> tuple[Problem, ...]:
    item = json.loads(text)
    refused_by: dict[Problem, list[str]] = defaultdict(list)
    for version in VERSIONS:
        validator = validator_of(str(item.get("apiVersion")), str(item.get("kind")), version)
        if validator is None:
            where = ("apiVersion", f"there is no {item.get('kind')} of {item.get('apiVersion')}")
            refused_by[where].append(version)
            continue
        for error in validator.iter_errors(item):
            refused_by[path_of(error), shorten(error.message)].append(version)
    spans = {
        key: versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
        for key, versions in refused_by.items()
    }
    return tuple((path, f"Kubernetes {span}: {message}") for (path, message), span in spans.items())


@rule(objects(), STANDARD)
def kubernetes_schema(part: Part) -> Iterator[Problem]:
    if is_foreign(part.owner):
        for error in Draft202012Validator(QUEUES).iter_errors(part.value):
            yield path_of(error), shorten(error.message)
    elif part.owner.get("kind") not in RAY_KINDS:
        yield from find_problems(part.value)


@rule(objects(), STANDARD)
def metadata_schema(part: Part) -> Iterator[Problem]:
    """Metadata of other operators' objects; `kubernetes_schema` sees the others whole."""
    if part.owner.get("kind") not in RAY_KINDS and not is_foreign(part.owner):
        return
    metadata = dig(part.value, "metadata", {})
    yield from find_problems({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    if not metadata.get("name"):
        yield "metadata.name", "is missing"


@rule(pods, STANDARD)
def pod_schema(part: Part) -> Iterator[Problem]:
    """Pods that KubeRay makes; `kubernetes_schema` sees the others whole."""
    if any(is_of(part, role) for role in ("head", "worker", "submitter")):
        yield from find_problems({"apiVersion": "v1", "kind": "Pod", **part.value})
