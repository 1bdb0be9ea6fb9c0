"""The options of a sweep, derived from the fields of its config."""

import ast
import inspect
import textwrap
from dataclasses import MISSING, field, fields, make_dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro

from cluster.io.markers import URI
from tuning.config import TuningConfig

OPTIONS = {
    "data": "base.data",
    "fold": "base.fold",
    "from_advice": "advice",
    "out": "out",
    "trials": "trials",
    "budget": "budget.time",
    "budget_gpu_hours": "budget.gpu_hours",
    "budget_cost": "budget.cost",
    "price_per_hour": "budget.price_per_hour",
    "search": "search",
    "freeze_depths": "space.freeze_depths",
    "learning_rates": "space.learning_rates",
    "learning_rate_range": "space.learning_rate_range",
    "clipnorms": "space.clipnorms",
    "inits": "space.inits",
    "weights": "base.model.weights",
    "backbone": "base.model.backbone",
    "backbones": "space.backbones",
    "axis": None,
    "when": None,
    "space": None,
    "normalization": "base.model.normalization",
    "epochs": "base.epochs",
    "global_batch_size": "base.global_batch_size",
    "size_px": "base.ingest.size_px",
    "policy": "base.ingest.policy",
    "views": "base.ingest.views",
    "share": "share",
    "explain": None,
    "head_first": "head_first",
    "fractional_gpus": "fractional_gpus",
    "cache": "cache",
    "feature_cache_gib": "feature_cache_gib",
    "grace_epochs": "grace_epochs",
    "reduction_factor": "reduction_factor",
    "combine": "combine",
    "promote": "promote",
    "seed": "seed",
    "num_workers": "base.cluster.num_workers",
    "device": "base.cluster.device",
    "max_failures": "max_failures",
    "hang_timeout_s": "base.cluster.hang_timeout_s",
    "address": "base.cluster.address",
    "wandb": "base.track.wandb",
    "project": "base.track.project",
    "group": "base.track.group",
}
"""Option -> the field of TuningConfig that it sets; None: one that `to_config` interprets."""
FROM_RECIPE = (
    "weights",
    "backbone",
    "normalization",
    "epochs",
    "global_batch_size",
    "size_px",
    "policy",
    "views",
)
"""Options with the recipe's value as default."""
WORDS = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]
TYPES = {
    "clipnorms": (tuple[float | Literal["none"], ...], ("none", 1.0)),
    "axis": (WORDS, ()),
    "when": (WORDS, ()),
    "space": (Annotated[str | None, URI], None),
}
"""Options whose annotation and default are not those of the field; others without one are flags."""
HELP = {
    "from_advice": "URI of the folder that `python -m tuning advise` wrote: data, network, "
    "weights, size, freeze depths, and epochs, batch size and policy that were given there, are "
    "taken from there, unless an option here gives them.",
    "clipnorms": "Norms that each tensor's gradient is clipped to; `none` does not clip. A norm "
    "replaces the recipe's global_clipnorm.",
    "axis": "FIELD VALUE ..., or FIELD LOW..HIGH: search any field of a training by its dotted "
    "path, such as optim.weight_decay 0 0.05. Add `log` to sample a range uniformly in the "
    "logarithm. Repeat the option for each field; it replaces the short option of the field.",
    "when": "FIELD=VALUE,VALUE after an --axis: search that axis only if another axis has one of "
    "these values.",
    "space": "URI of a TOML file of axes. Each is a table [[axis]] with field, values or range, "
    "log, when.",
    "weights": "URI of a state dict, for `file`; also replaces the download of `imagenet`.",
    "backbone": "Network. Default: the recipe's, as for --normalization, --epochs, --size-px, "
    "--global-batch-size, --policy and --views.",
    "epochs": "Epochs of a trial that is not pruned.",
    "explain": "Only print the plan: what would run, and what sharing would save.",
    "seed": "Seed of the search and of every training.",
    "num_workers": "DDP workers of a trial that trains more than the head; 0 trains in the trial's "
    "process.",
    "group": "W&B group of the trials. Default: the name of the sweep's folder.",
}
"""Help where the docstring of the field is about a single training, or there is no field."""


def _build_command() -> type[Any]:
    options = [_build_option(name, path) for name, path in OPTIONS.items()]
    return make_dataclass("Command", options, frozen=True, kw_only=True)


def _build_option(name: str, path: str | None) -> tuple[str, Any, Any]:
    """Return an option's name, annotation and default from the field at a dotted path."""
    if path is None:
        whole, default = TYPES.get(name, (bool, False))
        hint, *markers = _split(whole)
        text = tyro.conf.arg(help=HELP[name])
        return name, Annotated[hint, *markers, text], field(default=default)
    owner: type[Any] = TuningConfig
    *sections, attribute = path.split(".")
    for section in sections:
        owner = get_type_hints(owner)[section]
    (source,) = (each for each in fields(owner) if each.name == attribute)
    hint, *markers = _split(get_type_hints(owner, include_extras=True)[attribute])
    hint, default = TYPES.get(name, (hint, source.default))
    if default is MISSING or name in FROM_RECIPE:
        hint, default = hint | None, None
    text = HELP.get(name) or _docstrings(owner)[attribute]
    return name, Annotated[hint, *markers, tyro.conf.arg(help=text)], field(default=default)


def _split(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if hasattr(hint, "__metadata__") else (hint,)


@cache
def _docstrings(cls: type[Any]) -> dict[str, str]:
    """Return the docstring under each field of a config."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            found[statement.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found


Command: Any = _build_command()
"""The options of a sweep that the command line offers; the recipe has the other fields."""
