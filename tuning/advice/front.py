"""The advice that a sweep starts from: of one network, or of the front of a ranking."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.records import damaged, read_object
from trainers.config import PRETRAINED, FinetuneConfig, FreezeDepth
from tuning.advice.advice import Advice, advice_uri, ranking_uri, read_advice
from tuning.axes.axis import BACKBONE, FREEZE_DEPTH, Axis, Condition
from tuning.axes.backbones import NamedBackbone
from tuning.point import model_of
from tuning.record.results import TrialResult, find_winner


@dataclass(frozen=True)
class Front:
    """The networks of a ranking that no other dominates, the most accurate first."""

    advices: tuple[Advice, ...]

    def options(self) -> dict[str, Any]:
        """Return the fields of a sweep's command that come from the advice."""
        texts = (
            NamedBackbone(
                name=advice.backbone,
                init=advice.init,
                weights=advice.weights,
                normalization=None if advice.normalization == "auto" else advice.normalization,
            ).text
            for advice in self.advices
        )
        return _without_network(self.advices[0].options()) | {"backbones": tuple(texts)}

    def axes(self) -> tuple[Axis, ...]:
        """Return the recommended freeze depths of each network and their neighbours."""
        depths: dict[str, dict[FreezeDepth, None]] = {}
        for advice in self.advices:
            if advice.init in PRETRAINED:
                of_network = depths.setdefault(advice.backbone, {})
                of_network |= dict.fromkeys(advice.to_sweep)
        return tuple(
            Axis(
                field=FREEZE_DEPTH,
                values=tuple(of_network),
                when=(Condition(field=BACKBONE, values=(name,)),),
            )
            for name, of_network in depths.items()
        )

    def require_same_data(self, data: str) -> None:
        """As that of `Advice`."""
        for advice in self.advices:
            advice.require_same_data(data)

    def score(self, base: FinetuneConfig, results: Sequence[TrialResult]) -> str:
        """Say in one sentence how the first network of the ranking did in a sweep.

        Args:
            base: the training that every trial starts from.
            results: of all trials, in order of rank.
        """
        first = self.advices[0].backbone
        start = f"ranked {first} first of {len(self.advices)} networks"
        winner = find_winner(results)
        if winner is None or winner.val_top1 is None:
            return f"{start}; no trial of this sweep learned"
        network = model_of(base, winner.point).backbone
        if network == first:
            return f"{start}; the winner has it ({winner.val_top1:.3f})"
        best = next(
            (row.val_top1 for row in results if model_of(base, row.point).backbone == first), None
        )
        other = "finished no epoch" if best is None else f"reached {best:.3f}"
        return f"{start}, which {other}; the winner has {network} ({winner.val_top1:.3f})"


def _without_network(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of advice that are not about a network."""
    about = ("backbone", "inits", "weights", "normalization", "freeze_depths")
    return {name: value for name, value in options.items() if name not in about}


def choose_options(
    advice: Advice | Front, backbone: str | None, networks: Collection[str]
) -> tuple[dict[str, Any], tuple[Axis, ...]]:
    """Return the fields and the axes of a sweep's command that come from the advice, where the
    command names networks itself.

    The weights of --backbone come from the advice about it. Several networks are searched at the
    freeze depths that the advice has for each, or at the usual ones where it lacks one of them.

    Args:
        backbone: of --backbone.
        networks: names, where the command has several.
    """
    if backbone is None and not networks:
        return advice.options(), advice.axes()
    advices = (advice,) if isinstance(advice, Advice) else advice.advices
    for each in advices:
        if each.backbone == backbone and not networks:
            return each.options(), ()
    axes = [a for a in Front(advices).axes() if a.when[0].values[0] in networks]
    is_whole = len(axes) == len(networks)
    return _without_network(advices[0].options()), tuple(axes if is_whole else ())


def find_advice(out: str) -> Advice | Front:
    """Read what `python -m tuning advise` left in a folder.

    Raises:
        UserError: if there is nothing, or it is damaged.
    """
    uri = ranking_uri(out)
    if storage.exists(advice_uri(out)) or not storage.exists(uri):
        return read_advice(out)
    rows = read_object(uri, {"networks": [{"name": str, "on_front": bool}]})["networks"]
    names = [row["name"] for row in rows if row["on_front"]]
    if not names:
        raise damaged(uri, UserError("networks: none is on the front"))
    for name in names:
        storage.require_name("networks.name", name)
    return Front(tuple(read_advice(storage.join(out, name)) for name in names))
