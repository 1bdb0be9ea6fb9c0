"""Check Kubernetes manifests. The checker is beside them, in k8s/, and is not part of an image."""

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated

import tyro

from cluster.io.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CheckK8sConfig:
    """Options of `python -m cluster check-k8s`."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH")] = ()
    """Folders with overlays at or below them, or YAML files of built objects. Default: all of
    k8s/."""
    crds: str | None = None
    """Folder with KubeRay's CRDs. Default: k8s/crds (`make crds`), else ../shared/kuberay-crds."""
    json: bool = False
    """Print one JSON object instead of lines."""


def run_check(config: CheckK8sConfig) -> None:
    """Print what is wrong; exit with 1 where there is something.

    Raises:
        UserError: where the checker or its packages are missing, or there is nothing to check.
    """
    try:
        command = import_module("k8s.checker.command")
    except ModuleNotFoundError as error:
        raise UserError(
            f"check-k8s needs {error.name}: run it in a checkout of Thaw after `make setup`"
        ) from error
    command.run(config)
