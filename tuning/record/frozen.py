"""How much of its network a trial freezes, and how that is said."""

from dataclasses import dataclass

from trainers.config import FinetuneConfig
from trainers.networks.freezing import adapter_rank, describe_frozen, name_stages
from tuning.point import Point, model_of


@dataclass(frozen=True, kw_only=True)
class FrozenPart:
    """How much of its network a trial freezes."""

    backbone: str
    stages: tuple[str, ...]
    """Of the network, from the input on."""
    depth: int
    """Frozen stages."""
    last: str
    """The last of them, or none, all, or lora:8 where adapters train beside all of them."""
    share: float
    is_only_network: bool
    """Whether all trials have this network."""

    @property
    def has_adapters(self) -> bool:
        return adapter_rank(self.last) is not None

    @property
    def key(self) -> tuple[str, str]:
        """Equal for trials that freeze the same part of the same network."""
        return self.backbone, self.last

    @property
    def column(self) -> tuple[float, str]:
        """Its position among those of all trials, and its label: `layer3 80%`, or the share alone
        where there are several networks."""
        shows_name = self.is_only_network or self.has_adapters
        return self.share, self.short if shows_name else f"{self.share:.0%}"

    @property
    def short(self) -> str:
        return f"{self.last} {self.share:.0%}"

    @property
    def name(self) -> str:
        """`2 of 5 stages frozen, up to layer1`, with the network where there are several."""
        num_stages = len(self.stages)
        name = f"{self.depth} of {num_stages} stages frozen, up to {self.last}"
        if self.depth in (0, num_stages):
            name = "nothing frozen" if self.depth == 0 else f"all {num_stages} stages frozen"
        name += f", {self.last}" * self.has_adapters
        return name if self.is_only_network else f"{self.backbone}, {name}"

    @property
    def instruction(self) -> str:
        """`thaw from layer3 on`, with the network where there are several."""
        if self.depth == 0:
            text = "thaw the whole network"
        elif self.has_adapters:
            text = f"train the head and adapters ({self.last})"
        elif self.depth == len(self.stages):
            text = "train only the head"
        else:
            text = f"thaw from {self.stages[self.depth]} on"
        return text if self.is_only_network else f"with {self.backbone}, {text}"


def find_frozen(base: FinetuneConfig, point: Point, *, is_only_network: bool) -> FrozenPart:
    """Return what a trial freezes, by its point and the training that every trial starts from."""
    model = model_of(base, point)
    stages = tuple(name_stages(model.backbone))
    last, share = describe_frozen(model.backbone, model.freeze_depth)
    return FrozenPart(
        backbone=model.backbone,
        depth=round(share * len(stages)),
        stages=stages,
        last=last,
        share=share,
        is_only_network=is_only_network,
    )
