"""A sweep's command line: its options, and those that it takes from advice, as a config."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any

from cluster.dispatch import parse_options
from cluster.io.errors import UserError, require
from cluster.io.markers import URI, marked, replace_at
from cluster.jobs.entrypoint import refuse_relative
from trainers.config import PRETRAINED, RANDOM, FinetuneConfig
from trainers.recipes import RECIPES, pretrained, transfer
from tuning.advice.config import AdviseConfig
from tuning.axes.axis import (
    BACKBONE,
    CLIPNORM,
    FREEZE_DEPTH,
    INIT,
    WHEN,
    Axis,
    read_axes,
    read_axis,
)
from tuning.axes.backbones import read_backbones
from tuning.budget.config import BudgetConfig
from tuning.config import SpaceConfig, TuningConfig, fit_warmup
from tuning.options import FROM_RECIPE, OPTIONS, Command


def place_conditions(options: Sequence[str]) -> list[str]:
    """Write each `--when` as a word of the `--axis` before it, as a parser has no order of options.

    Raises:
        UserError: where there is none.
    """
    placed: list[str] = []
    last = None
    for word, following in zip_longest(options, options[1:], fillvalue=""):
        name, _, value = word.partition("=")
        if name != "--when":
            last = name if word.startswith("--") else last
            placed.append(word)
            continue
        condition = value or following
        require(last == "--axis", "when", condition, "write it after its --axis")
        placed += [WHEN, *filter(None, [value])]
    return placed


def read_space(uri: str) -> tuple[Axis, ...]:
    """Read the axes in a TOML file.

    Raises:
        UserError: where there is no such file, or it has anything else.
    """
    from cluster.io import storage

    uri = storage.absolute(uri, "space")
    try:
        values = tomllib.loads(storage.read_bytes(uri).decode("utf-8-sig").replace("\r\n", "\n"))
    except FileNotFoundError:
        raise UserError(f"space is {uri!r}: no such file; give a TOML file") from None
    except ValueError as error:
        raise UserError(f"space is {uri!r}: no TOML in UTF-8 ({error})") from None
    unknown = ", ".join(sorted(values.keys() - {"axis"}))
    require(not unknown, "space", unknown, f"{uri} may have tables [[axis]] only")
    return read_axes(values.get("axis", []), uri)


def to_config(command: Any, recipe: str, advised: Sequence[Axis] = ()) -> TuningConfig:
    """Return the sweep that a command describes.

    What `transfer` has for heads suits no stage that trains: a sweep that thaws some starts from
    the defaults.

    Args:
        advised: axes of an advice, where the command has none of the field.
    """
    require(command.data is not None, "data", command.data, "give --data URI, or --from-advice OUT")
    require(
        command.backbone is None or not command.backbones,
        "backbone",
        command.backbone,
        "--backbones takes its place: write its name there too, and leave --backbone out",
    )
    given: dict[str, Any] = {
        path: value
        for name, path in OPTIONS.items()
        if path and ((value := getattr(command, name)) is not None or name not in FROM_RECIPE)
    }
    axes = _read_axes(command)
    own = {axis.field for axis in axes}
    given["space.axes"] = (*axes, *(axis for axis in advised if axis.field not in own))
    clipnorms = (None if value == "none" else value for value in command.clipnorms)
    given["space.clipnorms"] = tuple(clipnorms)
    space = SpaceConfig(**_inside(given, "space"))
    source = RECIPES[recipe]
    if source == transfer() and not _is_of_heads(space):
        source = pretrained()
    epochs, warmup = command.epochs or source.epochs, source.schedule.warmup_epochs
    base: dict[str, Any] = {
        "seed": command.seed,
        "schedule.warmup_epochs": fit_warmup(warmup, epochs),
        **_inside(given, "base"),
    }
    if any(clipnorm is not None for clipnorm in space.values_of(CLIPNORM)):
        base["optim.global_clipnorm"] = None
    return TuningConfig(
        base=replace_at(source, base),
        space=space,
        budget=BudgetConfig(**_inside(given, "budget")),
        full_epochs=epochs if command.epochs is None else None,
        **{path: value for path, value in given.items() if "." not in path},
    )


def _read_axes(command: Any) -> list[Axis]:
    """Read the axes of --space and --axis."""
    axes = [] if command.space is None else [*read_space(command.space)]
    return [*axes, *map(read_axis, command.axis)]


def _list_networks(command: Any) -> set[str]:
    """Return the names of the networks that a command searches."""
    values = (axis.values for axis in _read_axes(command) if axis.field == BACKBONE)
    return {each.name for each in read_backbones(command.backbones)} | {
        str(value) for of_axis in values for value in of_axis
    }


def _is_of_heads(space: SpaceConfig) -> bool:
    """Whether all trials freeze every stage; random weights never do."""
    return {"all"}.issuperset(space.values_of(FREEZE_DEPTH)) and not any(
        init in RANDOM for init in space.values_of(INIT)
    )


def _inside(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    prefix = f"{section}."
    return {
        path.removeprefix(prefix): value
        for path, value in values.items()
        if path.startswith(prefix)
    }


@dataclass(frozen=True)
class Explanation:
    """A sweep that is only explained."""

    config: TuningConfig

    @property
    def base(self) -> FinetuneConfig:
        return self.config.base


def parse_sweep(recipe: str, options: Sequence[str], help: str) -> TuningConfig | Explanation:
    """Parse the options of a sweep; those that are not given are taken from the advice.

    Raises:
        UserError: where there is no advice, or it is about other data.
    """
    options = place_conditions(options)
    parse = partial(parse_options, Command, options, prog="python -m tuning", help=help)
    command, advised = parse(), ()
    if command.from_advice is not None:
        from cluster.io import storage, terminal
        from tuning.advice.front import choose_options, find_advice

        uri = storage.absolute(command.from_advice, "from_advice")
        advice = find_advice(uri)
        taken, advised = choose_options(advice, command.backbone, _list_networks(command))
        is_about = bool(advised) or not {"backbone", "backbones"}.isdisjoint(taken)
        if not is_about:
            terminal.report(
                f"{uri} lacks freeze depths for some of the networks that are named here: only "
                "data, size, epochs, batch size and policy are taken from there"
            )
        if set(PRETRAINED).isdisjoint(command.inits):
            taken.pop("weights", None)
        command = replace(parse(default=Command(**taken)), from_advice=uri if is_about else None)
        assert command.data is not None
        advice.require_same_data(command.data)
        if command.freeze_depths != SpaceConfig.freeze_depths:
            advised = ()
    config = to_config(command, recipe, advised)
    return Explanation(config) if command.explain else config


def parse_without_advice(recipe: str, options: Sequence[str], help: str) -> Any:
    """Parse as `parse_sweep` does; a command that names files to read is returned as it is."""
    placed = place_conditions(options)
    command = parse_options(Command, placed, prog="python -m tuning", help=help)
    reads = command.from_advice is not None or command.space is not None
    if reads:
        return command
    parsed = parse_sweep(recipe, options, help)
    config = parsed.config if isinstance(parsed, Explanation) else parsed
    for axis in config.space.all_axes:
        is_uri = axis.field in marked(FinetuneConfig, URI)
        for value in filter(None, axis.values if is_uri else ()):
            refuse_relative(axis.field, str(value), "--axis")
    return parsed


def parse_advise_for_job(verb: str, options: Sequence[str], help: str | None) -> AdviseConfig:
    """Parse the options of `advise` for another machine.

    Raises:
        UserError: where weights have a relative path.
    """
    config: AdviseConfig = parse_options(
        AdviseConfig, options, prog=f"python -m tuning {verb}", help=help
    )
    for named in read_backbones(config.backbones):
        if named.weights is not None:
            refuse_relative("backbones", named.weights, "--backbones NAME=URI with")
    return config


def run_sweep(config: TuningConfig | Explanation) -> None:
    """Raises SystemExit with 1 where every trial failed: a job must not count as done."""
    from tuning.record.results import FAILED
    from tuning.run import tune_sweep

    if isinstance(config, Explanation):
        tune_sweep(config.config, explain=True)
        return
    trials = tune_sweep(config)["trials"]
    if all(row["state"] == FAILED for row in trials):
        raise SystemExit(1)
