"""Fine-tuning by the family of the network: what `auto` stands for.

Batch normalization keeps a network stable at the rate of its head, and lower rates for earlier
stages cost it accuracy (docs/performance.md, Recipes). A transformer has many blocks, which are its
stages, and no batch normalization: a small step down of the rate from block to block, stochastic
depth and a longer warm-up suit it (He et al. 2022, "Masked Autoencoders", table 9). Other networks
without batch normalization, such as ConvNeXt and VGG, step down from stage to stage; not measured.
"""

from dataclasses import dataclass, replace
from functools import cache

from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from cluster.io.errors import require
from trainers.config import AUTO, FinetuneConfig
from trainers.networks.backbones import find, on_meta
from trainers.networks.transformers.lora import attention_layers
from trainers.networks.transformers.stochastic_depth import has_branches


@dataclass(frozen=True, kw_only=True)
class Family:
    layer_decay: float
    drop_path: float
    warmup_epochs: float
    """At most."""
    warmup_share: float
    """Of the epochs, at most."""


TRANSFORMER = Family(layer_decay=0.75, drop_path=0.1, warmup_epochs=5, warmup_share=0.2)
WITH_BATCHNORM = Family(layer_decay=1.0, drop_path=0.0, warmup_epochs=1, warmup_share=0.5)
OTHER = replace(WITH_BATCHNORM, layer_decay=0.7)


@cache
def is_transformer(backbone: str) -> bool:
    """Whether most stages of a network have attention."""
    stage_of = find(backbone).stage_of
    with_attention = {stage_of(f"{layer}.weight") for layer in attention_layers(backbone)}
    return 2 * len(with_attention) > len(find(backbone).stages)


@cache
def find_family(backbone: str) -> Family:
    if is_transformer(backbone):
        return TRANSFORMER
    modules = on_meta(backbone, 2).modules()
    return WITH_BATCHNORM if any(isinstance(each, BatchNorm) for each in modules) else OTHER


def suit(config: FinetuneConfig, before: FinetuneConfig | None = None) -> FinetuneConfig:
    """Return a training with numbers in place of `auto`: those of the run that it resumes, or those
    of its network.

    Args:
        before: config of the run in its folder.

    Raises:
        UserError: as `find`, and for a run that is resumed with fewer epochs than it warms up.
    """
    if before is not None:
        config = _keep_numbers(config, before)
    optim, model, schedule = config.optim, config.model, config.schedule
    if AUTO not in (optim.layer_decay, model.drop_path, schedule.warmup_epochs):
        return config
    backbone = model.backbone
    family = find_family(backbone)
    if optim.layer_decay == AUTO:
        optim = replace(optim, layer_decay=family.layer_decay)
    if model.drop_path == AUTO:
        rate = family.drop_path if has_branches(backbone) else 0.0
        model = replace(model, drop_path=rate)
    if schedule.warmup_epochs == AUTO:
        shortest = min(phase.num_epochs for phase in config.phases)
        epochs = min(family.warmup_epochs, family.warmup_share * shortest)
        schedule = replace(schedule, warmup_epochs=epochs)
    return replace(config, optim=optim, model=model, schedule=schedule)


def _keep_numbers(config: FinetuneConfig, before: FinetuneConfig) -> FinetuneConfig:
    """Take the numbers of a run in place of `auto`, which depends on its epochs then."""
    optim, model, schedule = config.optim, config.model, config.schedule
    if optim.layer_decay == AUTO:
        optim = replace(optim, layer_decay=before.optim.layer_decay)
    if model.drop_path == AUTO:
        model = replace(model, drop_path=before.model.drop_path)
    if schedule.warmup_epochs == AUTO and before.schedule.warmup_epochs != AUTO:
        warmup_epochs = before.schedule.warmup_epochs
        require(
            warmup_epochs < min(phase.num_epochs for phase in config.phases),
            "epochs",
            config.epochs,
            f"the run in {config.out} was started with schedule.warmup_epochs {warmup_epochs}; use "
            "more epochs to resume it, or another --out",
        )
        schedule = replace(schedule, warmup_epochs=warmup_epochs)
    return replace(config, optim=optim, model=model, schedule=schedule)
