"""Networks to compare before any sweep: the training of each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.io import storage
from trainers.config import FinetuneConfig
from trainers.networks.backbones import find
from tuning.axes.backbones import read_backbones


@dataclass(frozen=True)
class Candidate:
    """A network and its initial weights."""

    name: str
    """Of its folder in OUT."""
    training: FinetuneConfig


def plan_candidates(texts: Sequence[str], training: FinetuneConfig) -> list[Candidate]:
    """Return the training of each network, in the order of the texts.

    Args:
        texts: as `read_backbones` takes them.
        training: of any network.

    Raises:
        UserError: for a text of another form, or as `find`.
    """
    candidates: list[Candidate] = []
    for named in read_backbones(texts):
        find(named.name)
        model = replace(
            training.model,
            backbone=named.name,
            normalization=named.normalization or training.model.normalization,
        )
        if named.init is not None:
            weights = named.weights and storage.absolute(named.weights, "backbones")
            model = replace(model, init=named.init, weights=weights)
        folder = _name_folder(named.name, [candidate.name for candidate in candidates])
        out = storage.join(training.out, folder)
        candidates.append(Candidate(folder, replace(training, model=model, out=out)))
    return candidates


def _name_folder(backbone: str, taken: Sequence[str]) -> str:
    """Return a folder name that no other candidate has."""
    name = re.sub(r"[^\w.-]+", "-", backbone)
    names = [name, *(f"{name}-{number}" for number in range(2, len(taken) + 2))]
    return next(each for each in names if each not in taken)
