"""The other package called `datasets`, Hugging Face's, must not come before our room."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import ray

from cluster.entry import ROOT
from cluster.io.errors import UserError


def refuse_foreign_datasets(*, in_workers: bool) -> None:
    """Check in this process that `datasets` is ours, not Hugging Face's.

    Args:
        in_workers: and in a Ray worker; those of a cluster of this process search its paths.

    Raises:
        UserError: where it is not.
    """
    places: dict[str, Callable[[], str | None]] = {"this process": find_foreign_datasets}
    if in_workers:
        places["a Ray worker"] = lambda: ray.get(
            ray.remote(num_cpus=0)(find_foreign_datasets).remote()  # pyright: ignore
        )
    for place, find in places.items():
        foreign = find()
        if foreign is not None:
            raise UserError(
                f"datasets is {foreign} in {place}: Thaw's own folder of that name must come "
                "first; start with `python -m` from Thaw's root, or uninstall the other one there"
            )


def find_foreign_datasets() -> str | None:
    """Where this process would import `datasets` from, unless that is beside this room."""
    spec = importlib.util.find_spec("datasets")
    if spec is None or spec.origin is None:
        return "missing"
    ours = Path(spec.origin).resolve().is_relative_to(ROOT / "datasets")
    return None if ours else spec.origin
