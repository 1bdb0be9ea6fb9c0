"""Pretrained weights are loaded into a network: what fits, and a report of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from cluster.io.errors import UserError
from trainers.config import ModelConfig
from trainers.networks.backbones import find
from trainers.networks.published import IMAGENET_CLASSES
from trainers.networks.weights.class_rows import describe_names, match_head, same_classes
from trainers.networks.weights.files import Weights
from trainers.networks.weights.initializers import reset
from trainers.networks.weights.state_dicts import describe_mismatch
from trainers.networks.weights.tensors import refuse_not_finite

KEPT_BY_POSITION = (
    "head: kept by position, as the weights do not name their classes; give a checkpoint "
    "of Thaw, whose classes have names, where the order may differ"
)


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Result of loading a file, by tensor names; all empty for a random initialization."""

    loaded: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    """Of heads of another number of classes: not loaded, initialized randomly."""
    missing: tuple[str, ...] = ()
    """In the model, not in the file: initialized randomly."""
    unexpected: tuple[str, ...] = ()
    """In the file, not in the model."""
    notes: tuple[str, ...] = ()
    """Which of several state dicts was loaded, and what became of the head, for the user."""

    def __str__(self) -> str:
        """Return counts, and the first names of tensors that were not loaded."""
        return (
            f"{len(self.loaded)} tensors loaded; "
            f"{len(self.replaced)} of a head replaced{_first(self.replaced)}; "
            f"{len(self.missing)} missing{_first(self.missing)}; "
            f"{len(self.unexpected)} unexpected{_first(self.unexpected)}"
        )


def _first(names: tuple[str, ...]) -> str:
    return f" ({describe_names(names)})" if names else ""


def load_pretrained(
    model: nn.Module, weights: Weights, config: ModelConfig, classes: Sequence[str] | None
) -> LoadReport:
    """Load the tensors that fit; modules that lack one get torch's default initialization.

    Raises:
        UserError: for weights of another network, or weights that can't be trained further.
    """
    backbone, wanted, given = find(config.backbone), model.state_dict(), weights.tensors
    common = [name for name in wanted if name in given]
    misfits = {name for name in common if given[name].shape != wanted[name].shape}
    in_head = {name for name in common if backbone.stage_of(name) == len(backbone.stages)}
    _refuse_another_network(config, given, wanted, in_head)
    source, replaced = _find_source(weights, in_head), misfits
    if classes is not None and source is not None and not same_classes(source, classes):
        replaced = misfits | {n for n in in_head if given[n].shape[:1] == (len(source),)}
    report = _report(given, wanted, replaced)
    used = {name: given[name] for name in common if name not in misfits or source is not None}
    refuse_not_finite(used, f"model.weights is {config.weights!r}")
    _reset_incomplete(model, report)
    loaded, notes = {name: given[name] for name in report.loaded}, list(weights.notes)
    if classes is not None and source is not None and replaced:
        fresh = {name: wanted[name] for name in report.replaced}
        head = match_head(given, fresh, source, classes)
        if head.kept:
            loaded |= head.tensors
        if head.kept or not misfits:
            notes.append(head.describe())
    elif classes is not None and source is None and in_head - misfits:
        notes.append(KEPT_BY_POSITION)
    model.load_state_dict(loaded, strict=False)
    return replace(report, notes=tuple(notes))


def _refuse_another_network(
    config: ModelConfig,
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    in_head: Collection[str],
) -> None:
    """Refuse weights that only a head has in common with the network, or with other shapes."""
    origin = f"model.weights is {config.weights!r}"
    if not given:
        raise UserError(
            f"{origin}: it holds no tensors of a network, such as the state of an optimizer alone; "
            "save model.state_dict()"
        )
    body = [name for name in wanted if name in given and name not in in_head]
    for name in body:
        if given[name].shape != wanted[name].shape:
            raise UserError(
                f"{origin}: its {name} has shape {tuple(given[name].shape)}, {config.backbone} "
                f"needs {tuple(wanted[name].shape)}; give weights of the same network"
            )
    if not body:
        raise UserError(
            f"{origin}: none of its {len(given)} tensors belongs to {config.backbone} "
            f"({describe_mismatch(given, wanted)}); give weights of the same network"
        )


def _find_source(weights: Weights, in_head: Collection[str]) -> tuple[str, ...] | None:
    """Return the classes of the rows of the weights' heads; None where they are not known."""
    source, given = weights.classes, weights.tensors
    rows = {given[name].shape[0] for name in in_head if given[name].ndim == 2}
    if source is None and rows == {len(IMAGENET_CLASSES)}:
        source = IMAGENET_CLASSES
    return None if source is not None and rows and rows != {len(source)} else source


def _report(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], replaced: Collection[str]
) -> LoadReport:
    common = [name for name in wanted if name in given]
    return LoadReport(
        loaded=tuple(name for name in common if name not in replaced),
        replaced=tuple(name for name in common if name in replaced),
        missing=tuple(
            name
            for name in wanted
            # Files of torch before 0.4.1 lack counters of a BatchNorm, which nothing here reads.
            if name not in given
            and name.replace("num_batches_tracked", "running_mean") not in given
        ),
        unexpected=tuple(name for name in given if name not in wanted),
    )


def _reset_incomplete(model: nn.Module, report: LoadReport) -> None:
    """Reset the modules that lack a tensor."""
    incomplete = [name.rpartition(".")[0] for name in (*report.replaced, *report.missing)]
    for module in dict.fromkeys(incomplete):
        reset(model.get_submodule(module))
