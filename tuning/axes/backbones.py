"""Networks with their initial weights as text: NAME, NAME=INIT, NAME=URI, NAME=URI@half."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.io.errors import require, require_choice
from trainers.config import NORMALIZATIONS, PRETRAINED, RANDOM

FAST = (
    "mobilenet_v2",
    "mobilenetv4_conv_small.e2400_r224_in1k",
    "efficientnet_b0",
    "resnet18.a1_in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "resnet50",
)
ACCURATE = (
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch14_dinov2.lvd142m",
    "vit_base_patch16_siglip_224.v2_webli",
    "eva02_base_patch14_224.mim_in22k",
    "convnext_base.fb_in22k_ft_in1k",
    "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
)
SETS = {"fast": FAST, "accurate": ACCURATE, "all": FAST + ACCURATE}
"""fast: a few milliseconds an image on a CPU. accurate: pretrained on more than ImageNet-1k, and
the best of their size on other data sets."""
FORM = re.compile(r"(?P<name>[^=@]+)(=(?P<weights>.+?))?(@(?P<normalization>[a-z]+))?")


@dataclass(frozen=True, kw_only=True)
class NamedBackbone:
    """A network, and what its text says about its initial weights."""

    name: str
    init: str | None = None
    """None where the text names none."""
    weights: str | None = None
    """URI, for init `file`."""
    normalization: str | None = None

    @property
    def text(self) -> str:
        source = self.weights if self.init == "file" and self.weights else self.init
        normalization = f"@{self.normalization}" if self.normalization else ""
        return f"{self.name}{f'={source}' if source else ''}{normalization}"


def read_backbones(texts: Sequence[str]) -> list[NamedBackbone]:
    """Read the texts, named sets replaced by their networks; each text once.

    Raises:
        UserError: for a text of another form.
    """
    names = dict.fromkeys(name for text in texts for name in SETS.get(text, (text,)))
    return [_read(name) for name in names]


def with_weights(texts: Sequence[str], change: Callable[[str], str]) -> tuple[str, ...]:
    """Return the texts with the URIs of weights changed, and named sets replaced."""
    changed = []
    for named in read_backbones(texts):
        weights = change(named.weights) if named.weights else None
        changed.append(NamedBackbone(**{**vars(named), "weights": weights}).text)
    return tuple(changed)


def _read(text: str) -> NamedBackbone:
    parts = FORM.fullmatch(text)
    require(
        parts is not None,
        "backbones",
        text,
        "use NAME, NAME=INIT, NAME=WEIGHTS or NAME=WEIGHTS@NORMALIZATION",
    )
    assert parts is not None
    source, normalization = parts["weights"], parts["normalization"]
    if normalization is not None:
        require_choice("backbones", normalization, ("auto", *NORMALIZATIONS))
    is_init = source in PRETRAINED + RANDOM
    return NamedBackbone(
        name=parts["name"],
        init=source if is_init or source is None else "file",
        weights=None if is_init else source,
        normalization=normalization,
    )
