"""What a RayService serves: a text in YAML that KubeRay hands to Ray Serve as it is."""

from collections.abc import Iterator
from typing import Any

import yaml

from cluster.io.fields import build
from k8s.checker.parts import Part, dig, objects
from k8s.checker.rule import Problem, rule
from trainers.serving.config import ServiceConfig

OURS = "trainers.serving.app:build"


@rule(objects("RayService"), "Ray Serve, ServeDeploySchema")
def serve_config_parses(part: Part) -> Iterator[Problem]:
    path = "spec.serveConfigV2"
    try:
        content = yaml.safe_load(dig(part.value, path, ""))
    except yaml.YAMLError as error:
        yield path, f"is no YAML: {' '.join(str(error).split())}"
        return
    applications = content.get("applications") if isinstance(content, dict) else None
    if not isinstance(applications, list) or not applications:
        yield path, "has no list `applications`: nothing would be served"
        return
    for number, application in enumerate(applications):
        yield from ((f"{path}.applications[{number}]", text) for text in find_faults(application))


def find_faults(application: Any) -> Iterator[str]:
    """Write what is wrong with an application; Thaw's own has the options of `serve`."""
    place = application.get("import_path") if isinstance(application, dict) else None
    if not isinstance(place, str) or ":" not in place:
        yield f"has no import_path: use {OURS}"
    elif place == OURS:
        try:
            build(ServiceConfig, application.get("args") or {}, "args.")
        except ValueError as error:
            yield str(error)
