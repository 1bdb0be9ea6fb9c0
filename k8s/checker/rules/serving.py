"""What a RayService serves: a text in YAML that KubeRay hands to Ray Serve as it is. And whether
its workers have the command by which KubeRay asks them."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from cluster.io.fields import build
from k8s.checker.overlays import Overlay
from k8s.checker.parts import Part, dig, is_of, objects, ray_containers
from k8s.checker.rule import Problem, rule
from trainers.serving.config import ServiceConfig

OURS = "trainers.serving.app:build"
PROBE = "wget"
INSTALLS = re.compile(r"^RUN apt-get update && apt-get install ([^&|;]*)", re.MULTILINE)


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


def serving_workers(overlay: Overlay) -> Iterator[Part]:
    """The Ray containers of a RayService's workers."""
    for container in ray_containers(overlay):
        if container.owner["kind"] == "RayService" and is_of(container.up("pod"), "worker"):
            yield container


@rule(serving_workers, "KubeRay, initLivenessAndReadinessProbe")
def image_has_probe(part: Part) -> Iterator[Problem]:
    """Their readiness is an exec probe, whatever Ray's version; all other probes are HTTP. Without
    its command no worker is ever ready, and the service has no endpoints."""
    if PROBE not in list_packages(part.overlay.dockerfile):
        yield "image", f"is made by k8s/Dockerfile, whose last stage must install {PROBE} always"


def list_packages(dockerfile: str) -> set[str]:
    """Debian's packages that the last stage installs, whatever the build arguments are."""
    *_, stage = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)
    joined = re.sub(r"\s*\\\n\s*", " ", stage)
    return {word for found in INSTALLS.findall(joined) for word in found.split()}
