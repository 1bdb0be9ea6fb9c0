"""Options of rendered cars (standard library only)."""

from dataclasses import dataclass
from typing import Literal

from cluster.io.errors import require_at_least, require_between

LabelBy = Literal["model", "body"]


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The rendered cars of `--source synthetic`."""

    num_classes: int = 20
    """How many make/model/year-like classes to render, 2 to 196."""
    train_per_class: int = 40
    """Training images per class, before the validation split is cut."""
    test_per_class: int = 20
    """Test images per class."""
    render_px: int = 160
    """Height of a rendered photograph in pixels; its width is 4/3 of it."""
    label_by: LabelBy = "model"
    """`model`: every car model is a class. `body`: every body type is a class (to pretrain on)."""
    seed: int = 0
    """Another seed gives other cars: other proportions, other photographs."""

    def __post_init__(self) -> None:
        require_between("synthetic.num_classes", self.num_classes, 2, 196)
        require_between("synthetic.train_per_class", self.train_per_class, 2, 100_000)
        require_between("synthetic.test_per_class", self.test_per_class, 1, 100_000)
        require_between("synthetic.render_px", self.render_px, 32, 1024)
        require_at_least("synthetic.seed", self.seed, 0)
