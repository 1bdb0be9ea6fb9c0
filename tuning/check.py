"""Whether a sweep can run, and whether OUT may resume it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.entry import ROOT
from cluster.io import storage, terminal
from cluster.io.errors import UserError, require
from cluster.io.markers import RESUMABLE, URI, flatten, marked
from cluster.provenance import find_commit
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from trainers import checks
from trainers.config import PRETRAINED, FinetuneConfig, FreezeDepth
from trainers.networks.freezing import describe_frozen, resolve_depth
from trainers.tracking.where import require_settings, require_tags
from trainers.unused import why_unused
from tuning.axes.axis import BACKBONE, FREEZE_DEPTH, INIT, WHEN, Axis, Condition
from tuning.axes.backbones import with_weights
from tuning.config import TuningConfig
from tuning.point import describe, identify, training_of, without_optimizer
from tuning.record.files import read_start, read_sweep_config
from tuning.space import corners, models

PRECISION = "base.compute.precision"


def check(config: TuningConfig) -> Manifest:
    """Find the user's errors before anything starts, in every network and value of the space."""
    require_tags(config.base.track)
    require_settings(config.base.track)
    manifest = read_manifest(config.base.data, config.base.fold)
    unused = _check_space(config, manifest)
    require(
        not config.promote or "test" in manifest.splits,
        "promote",
        config.promote,
        "this data set has no test split to test the winner on; leave it out, or sweep data that "
        "was prepared with --test-root or a folder test/",
    )
    if not storage.exists(storage.join(config.out, "config.json")):
        _refuse_unused(config, unused)  # an older Thaw took it
    else:
        known = read_sweep_config(config.out)
        require(
            known is not None,
            "out",
            config.out,
            "its config.json is not that of a sweep; use another --out",
        )
        assert known is not None
        before, now = _flatten(facts_of(*known)), _flatten(facts_of(config, known[1]))
        left_out = dict.fromkeys(field for field in before if field.startswith("space."))
        for field, value in (left_out | now).items():
            if field == PRECISION and "auto" in (value, before.get(field)):
                continue  # `choose_precision` takes that of the sweep
            if field not in marked(TuningConfig, RESUMABLE) and before.get(field) != value:
                raise UserError(
                    f"{field} is {value!r}: the sweep in {config.out} has {before.get(field)!r}; "
                    f"use the same value{_other_commit(config.out)} to resume it, or another --out"
                )
        if known[1] != manifest.fingerprint:
            raise UserError(
                f"data is {config.base.data!r}: it was prepared again since the sweep in "
                f"{config.out} began, and is another data set now; use another --out"
            )
    return manifest


def _check_space(config: TuningConfig, manifest: Manifest) -> dict[str, str | None]:
    """Find the user's errors at every value of the space, and at both bounds of a range; return the
    axes, each with the reason where no trial uses it."""
    checked, unused = set[object](), dict[str, str | None]()
    for point in corners(config.space):
        try:
            training = training_of(config.base, point)
        except UserError as error:
            raise UserError(f"{error} (in a trial with {describe(point)})") from None
        network = identify(without_optimizer(point))
        if network not in checked:
            checked.add(network)
            checks.check(training, manifest)
        for field in point:
            why = why_unused(training, field)
            unused[field] = why and unused.get(field, why)
    return unused


def _refuse_unused(config: TuningConfig, axes: dict[str, str | None]) -> None:
    for field, why in axes.items():
        require(why is None, "axis", field, f"no trial uses it: {why}")
    model = config.base.model
    require(
        model.weights is None or not set(PRETRAINED).isdisjoint(config.space.values_of(INIT)),
        "model.weights",
        model.weights,
        "no trial reads it, as all of them start from random weights: add file to --inits",
    )


def _other_commit(out: str) -> str:
    """Name the commit that a sweep started with: a recipe's values may have changed since."""
    commit = (read_start(out) or {}).get("commit")
    return f", or commit {commit[:12]} of Thaw," if commit not in (None, find_commit(ROOT)) else ""


def with_absolute_axes(config: TuningConfig) -> TuningConfig:
    """Return the sweep with absolute URIs in its space: workers run in folders of their own."""

    def change(axis: Axis | Condition) -> Any:
        if axis.field not in marked(FinetuneConfig, URI):
            return axis
        paths = (value and storage.absolute(str(value), axis.field) for value in axis.values)
        return replace(axis, values=tuple(paths))

    space = config.space
    axes = (replace(axis, when=tuple(map(change, axis.when))) for axis in map(change, space.axes))
    texts = with_weights(space.backbones, lambda uri: storage.absolute(uri, "backbones"))
    return replace(config, space=replace(space, backbones=texts, axes=tuple(axes)))


def distinct_depths(config: TuningConfig) -> TuningConfig:
    """Return the sweep without the freeze depths that freeze as many stages as an earlier one, and
    warn: of 3 stages, 0.75 and 0.5 are 2. Each of several networks has depths of its own.

    Raises:
        UserError: as `resolve_depth`.
    """
    space = config.space
    if any(axis.field == FREEZE_DEPTH for axis in space.axes):
        return config
    networks = space.values_of(BACKBONE)
    if not networks:
        freezes = set(PRETRAINED) & set(space.values_of(INIT))
        kept = _distinct(config.base.model.backbone, space.freeze_depths, quiet=not freezes)
        return replace(config, space=replace(space, freeze_depths=kept))
    pretrained = {m[BACKBONE] for m in models(space) if m.get(INIT, "") in PRETRAINED}
    depths = (
        Axis(
            field=FREEZE_DEPTH,
            values=_distinct(str(name), space.freeze_depths),
            when=(Condition(field=BACKBONE, values=(str(name),)),),
        )
        for name in networks
        if name in pretrained
    )
    return replace(config, space=replace(space, axes=(*space.axes, *depths)))


def _distinct(
    backbone: str, depths: Sequence[FreezeDepth], *, quiet: bool = False
) -> tuple[FreezeDepth, ...]:
    kept: dict[str, FreezeDepth] = {}
    for depth in depths:
        last, _ = describe_frozen(backbone, depth)
        if last in kept and not quiet:
            terminal.report(
                f"freeze depth {depth} is left out: in {backbone}, {kept[last]} freezes the same "
                f"{resolve_depth(backbone, depth)} stages",
                warning=True,
            )
        kept.setdefault(last, depth)
    return tuple(kept.values())


def facts_of(config: TuningConfig, fingerprint: str | None) -> dict[str, Any]:
    """Return what config.json holds: a sweep has one config and one data set."""
    return config.to_dict() | {"data_fingerprint": fingerprint}


def _flatten(facts: dict[str, Any]) -> dict[str, Any]:
    """Name the facts by dotted paths, each axis by its field and its conditions."""
    flat = flatten(facts)
    for axis in flat.pop("space.axes", []):
        conditions = "".join(f" {WHEN} {of['field']}={of['values']}" for of in axis["when"])
        values = axis["values"] or axis["range"]
        flat[f"space.{axis['field']}{conditions}"] = values + ["log"] * axis["log"]
    return flat
