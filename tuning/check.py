"""Whether a sweep can run, and whether OUT may resume it."""

from dataclasses import replace
from typing import Any

from cluster.io import storage, terminal
from cluster.io.errors import UserError
from cluster.io.markers import RESUMABLE, flatten, marked
from datasets.shards import Manifest, read_manifest
from trainers import prepare
from trainers.config import FreezeDepth
from trainers.networks.freezing import resolve_depth
from tuning.config import TuningConfig
from tuning.record import read_sweep_config
from tuning.space import models, training_of

PRECISION = "base.compute.precision"


def check(config: TuningConfig) -> Manifest:
    """Find the user's errors before anything starts, in every network of the space."""
    manifest = read_manifest(config.base.data, config.base.fold)
    for model in models(config.space):
        prepare.check(training_of(config.base, model), manifest)
    if storage.exists(storage.join(config.out, "config.json")):
        known = read_sweep_config(config.out)
        before = flatten(facts_of(*known)) if known else {}
        if before.get("data_fingerprint") != manifest.fingerprint:
            raise UserError(
                f"data is {config.base.data!r}: it was prepared again since the sweep in "
                f"{config.out} began, and is another data set now; use another --out"
            )
        for field, value in flatten(facts_of(config, manifest.fingerprint)).items():
            if field == PRECISION and "auto" in (value, before.get(field)):
                continue  # `choose_precision` takes that of the sweep
            if field not in marked(TuningConfig, RESUMABLE) and before.get(field) != value:
                raise UserError(
                    f"{field} is {value!r}: the sweep in {config.out} has {before.get(field)!r}; "
                    "use the same value to resume it, or another --out"
                )
    return manifest


def distinct_depths(config: TuningConfig) -> TuningConfig:
    """Return the sweep without the freeze depths that freeze as many stages as an earlier one, and
    warn: of 3 stages, 0.75 and 0.5 are 2.

    Raises:
        UserError: as `resolve_depth`.
    """
    backbone = config.base.model.backbone
    kept: dict[int, FreezeDepth] = {}
    for depth in config.space.freeze_depths:
        number = resolve_depth(backbone, depth)
        if number in kept:
            terminal.report(
                f"freeze depth {depth} is left out: in {backbone}, {kept[number]} freezes the same "
                f"{number} stages",
                warning=True,
            )
        kept.setdefault(number, depth)
    return replace(config, space=replace(config.space, freeze_depths=tuple(kept.values())))


def facts_of(config: TuningConfig, fingerprint: str | None) -> dict[str, Any]:
    """Return what config.json holds: a sweep has one config and one data set."""
    return config.to_dict() | {"data_fingerprint": fingerprint}
