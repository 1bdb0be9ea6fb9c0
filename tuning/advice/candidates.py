"""Networks to compare before any sweep: names, named sets, and where their weights come from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.io import storage
from cluster.io.errors import require, require_choice
from trainers.config import NORMALIZATIONS, PRETRAINED, RANDOM, FinetuneConfig
from trainers.networks.backbones import find

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


@dataclass(frozen=True)
class Candidate:
    """A network and its initial weights."""

    name: str
    """Of its folder in OUT."""
    training: FinetuneConfig


def expand(texts: Sequence[str]) -> list[str]:
    """Replace named sets by their networks; each text once."""
    return list(dict.fromkeys(name for text in texts for name in SETS.get(text, (text,))))


def plan_candidates(texts: Sequence[str], training: FinetuneConfig) -> list[Candidate]:
    """Return the training of each network, in the order of the texts.

    Args:
        texts: NAME, NAME=INIT or NAME=URI of weights, each with @NORMALIZATION where it isn't that
            of the published weights; or a name of SETS.
        training: of any network.

    Raises:
        UserError: for a text of another form, or as `find`.
    """
    candidates: list[Candidate] = []
    for text in expand(texts):
        parts = FORM.fullmatch(text)
        require(
            parts is not None,
            "backbones",
            text,
            "use NAME, NAME=INIT, NAME=WEIGHTS or NAME=WEIGHTS@NORMALIZATION",
        )
        assert parts is not None
        name, weights = parts["name"], parts["weights"]
        find(name)
        normalization = parts["normalization"] or training.model.normalization
        require_choice("backbones", normalization, ("auto", *NORMALIZATIONS))
        model = replace(training.model, backbone=name, normalization=normalization)
        if weights in PRETRAINED + RANDOM:
            model = replace(model, init=weights, weights=None)
        elif weights is not None:
            uri = storage.absolute(weights, "backbones")
            model = replace(model, init="file", weights=uri)
        folder = _name_folder(name, [candidate.name for candidate in candidates])
        out = storage.join(training.out, folder)
        candidates.append(Candidate(folder, replace(training, model=model, out=out)))
    return candidates


def _name_folder(backbone: str, taken: Sequence[str]) -> str:
    """Return a folder name that no other candidate has."""
    name = re.sub(r"[^\w.-]+", "-", backbone)
    names = [name, *(f"{name}-{number}" for number in range(2, len(taken) + 2))]
    return next(each for each in names if each not in taken)
