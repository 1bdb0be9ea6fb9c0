"""Fields that a training does not use, because of others."""

from cluster.io.markers import SET_BY_PHASES, marked
from trainers.config import RANDOM, FinetuneConfig


def why_unused(config: FinetuneConfig, field: str) -> str | None:
    """Return why the field at a dotted path changes nothing here; None where it may."""
    if config.schedule.phases and field in marked(FinetuneConfig, SET_BY_PHASES):
        return "schedule.phases has its own"
    if field == "model.weights" and config.model.init in RANDOM:
        return f"init {config.model.init} draws random ones"
    if field == "optim.momentum" and config.optim.optimizer != "sgd":
        return f"{config.optim.optimizer} has none, only sgd does"
    return None
