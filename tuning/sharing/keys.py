"""What trials have in common: their network, and the prefix whose features they can use."""

from collections import Counter

from cluster.config import ClusterConfig
from trainers.config import FinetuneConfig, ModelConfig
from trainers.networks.freezing import count_frozen
from tuning.axes.axis import FREEZE_DEPTH
from tuning.config import TuningConfig
from tuning.point import Point, compared_fields, show_at, training_of
from tuning.search import count_trials
from tuning.space import models, points

Key = tuple[FinetuneConfig, int]
"""A network as `network_of` returns it, and frozen stages."""


def network_of(training: FinetuneConfig) -> FinetuneConfig:
    """Return what the features and the initial tensors of a training depend on: a training that is
    equal for all that have them in common."""
    model = training.model
    return FinetuneConfig(
        data=training.data,
        fold=training.fold,
        train_on=training.train_on,
        seed=training.seed,
        ingest=training.ingest,
        model=ModelConfig(
            backbone=model.backbone,
            init=model.init,
            weights=model.weights,
            normalization=model.normalization,
        ),
        compute=training.compute,
        cluster=ClusterConfig(device=training.cluster.device),
    )


def prefix_key(training: FinetuneConfig) -> Key:
    """Return the key of the features that a training can use; those of 0 stages are its images."""
    return network_of(training), 0 if blends(training) else count_frozen(training.model)


def blends(training: FinetuneConfig) -> bool:
    """Whether mixup or CutMix blend pixels, which no cached feature can."""
    return bool(training.loss.mixup_alpha or training.loss.cutmix_alpha)


def _list_points(config: TuningConfig) -> list[Point]:
    """List the points of the trials, or the networks that they are drawn from."""
    if config.search == "optuna":
        return models(config.space)
    return points(config.space, config.search, config.trials, config.seed)


def count_networks(config: TuningConfig) -> dict[Key, float]:
    """Count the trials of each network and depth; the expectation where they are drawn."""
    listed = _list_points(config)
    share = count_trials(config) / len(listed)
    counted = Counter(prefix_key(training_of(config.base, point)) for point in listed)
    return {key: share * number for key, number in counted.items()}


def name_networks(config: TuningConfig) -> dict[FinetuneConfig, str]:
    """Name each network of a sweep by what tells it from the others, such as `file`."""
    listed = [*models(config.space), *_list_points(config)]
    fields = [
        field
        for field in compared_fields(listed)
        if field != FREEZE_DEPTH and not field.startswith(("optim.", "schedule.", "loss."))
    ]
    return {
        network_of(training_of(config.base, point)): " ".join(
            show_at(point, field) for field in fields
        )
        for point in listed
    }
