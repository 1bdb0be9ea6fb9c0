"""An entry file's table of verbs; the modules of a verb are imported when it is called."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass
from importlib import import_module
from operator import attrgetter
from typing import Any

import tyro

from cluster import entry
from cluster.io.errors import UserError
from cluster.io.fields import check_fields
from cluster.io.json_output import json_alone
from cluster.io.markers import URI, change_marked


@dataclass(frozen=True)
class Verb:
    """One command of a room; modules are named, as `MODULE:ATTRIBUTE`, not imported."""

    summary: str
    config: str
    """Dataclass of the options."""
    run: str
    """Function that takes the config."""
    _: KW_ONLY
    help: str | None = None
    """Text of --help. Default: the docstring of the config."""
    default: Any = None
    """Config that the options change. Default: the defaults of the fields."""
    address: str | None = None
    """Field of the config with the address of the cluster that the verb connects to."""
    imports: tuple[str, ...] = ()
    """Modules that Ray's workers need at once, where the verb starts Ray."""
    parse: str | None = None
    """Function of the verb's name, its options and `help` that returns another config."""


def dispatch(
    room: str, verbs: Mapping[str, Verb], arguments: Sequence[str], *, default: str | None = None
) -> None:
    """Run a command line; `default` is the verb where none is named, else they are listed."""
    if default is None and (not arguments or arguments[0] in ("-h", "--help")):
        print_verbs(room, verbs)
        return
    config = parse_verb(room, verbs, arguments, default=default)
    name, _ = _split(arguments, default)
    verb = verbs[name]
    is_json = getattr(config, "json", False)
    with json_alone() if is_json else nullcontext(), starting_ray(verb, config):
        load(verb.run)(config)


@contextmanager
def starting_ray(verb: Verb, config: Any) -> Iterator[None]:
    """Start Ray in a thread, where the verb needs it, while the verb's modules are imported."""
    is_dry = getattr(config, "dry_run", False)
    if verb.address is None or not entry.starts_early or is_dry:
        yield
        return
    runtime = import_module("cluster.runtime")  # imports Ray
    runtime.start_early(attrgetter(verb.address)(config), verb.imports)
    try:
        yield
    finally:
        runtime.wait_for_start()


def parse_verb(
    room: str, verbs: Mapping[str, Verb], arguments: Sequence[str], *, default: str | None = None
) -> Any:
    """Parse a verb and its options into its config.

    Raises:
        UserError: for an unknown verb, or values that don't fit.
    """
    name, options = _split(arguments, default)
    if name not in verbs:
        kind = "verb" if default is None else "recipe"
        raise UserError(f"{kind} is {name!r}: choose from {', '.join(verbs)}")
    verb = verbs[name]
    if verb.parse is not None:
        return load(verb.parse)(name, options, verb.help)
    return parse_options(
        load(verb.config),
        options,
        prog=f"python -m {room} {name}",
        help=verb.help,
        default=verb.default,
    )


def parse_options(
    kind: type[Any], options: Sequence[str], *, prog: str, help: str | None, default: Any = None
) -> Any:
    """Parse options into a dataclass and check its fields."""
    given = {} if default is None else {"default": default}
    config = tyro.cli(
        kind,
        args=list(options),
        prog=prog,
        description=help,
        config=(tyro.conf.OmitArgPrefixes,),
        **given,
    )
    check_fields(config)
    return change_marked(config, URI, lambda value, field: _expand_home(value))


def _expand_home(uri: Any) -> Any:
    """Return a URI with the home folder for `~/`, which no shell replaces in `--out=~/runs`."""
    if isinstance(uri, tuple):
        return tuple(map(_expand_home, uri))
    return os.path.expanduser(uri) if uri.startswith("~/") else uri


def print_verbs(room: str, verbs: Mapping[str, Verb]) -> None:
    print(f"python -m {room} VERB, where VERB is one of\n")
    print(list_verbs(verbs))
    print(f"\n`python -m {room} VERB --help` shows the options of a verb.")


def list_verbs(verbs: Mapping[str, Verb]) -> str:
    """Write a line for each verb."""
    width = max(map(len, verbs)) + 2
    return "\n".join(f"  {name:<{width}}{verb.summary}" for name, verb in verbs.items())


def load(name: str) -> Any:
    """Import `MODULE:ATTRIBUTE`."""
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


def _split(arguments: Sequence[str], default: str | None) -> tuple[str, Sequence[str]]:
    """Return the verb's name and its options."""
    if default is not None and (not arguments or arguments[0].startswith("-")):
        return default, arguments
    return arguments[0], arguments[1:]
