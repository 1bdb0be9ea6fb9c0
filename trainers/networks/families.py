"""The stages of each family of networks, from the input to the features.

The stem is one stage. From there a new stage begins at each reduction of the resolution, and where
the family's paper begins another group of blocks. Hidden dense layers (AlexNet, VGG) are a stage.
The head is the last layer and the normalization of averaged features (ConvNeXt); normalization of
the last group's maps belongs to the last stage.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.networks.lecture_nets import LeNet5, NASNetMobile
from trainers.networks.published import Published, from_torchvision
from trainers.networks.torch_internals import models

Stage = tuple[str, tuple[str, ...]]  # name, and the modules that belong to it
Triple = tuple[float, float, float]
Normalization = Literal["imagenet", "half"] | tuple[Triple, Triple]

STEM_AND_STAGES = ("stem", *(f"stage{number}" for number in range(1, 9)))


@dataclass(frozen=True, kw_only=True)
class Backbone:
    build: Callable[..., nn.Module]
    """num_classes -> the network."""
    source: Literal["torchvision", "timm", "thaw"]
    """The library that implements it."""
    stages: tuple[Stage, ...]
    """From the input to the features; each tensor is in one stage or head."""
    head: str
    """The module that turns features into logits_BK; never frozen."""
    head_parts: tuple[str, ...] = ()
    """Other modules of the head: normalization of pooled features, a second classifier."""
    tensors: Mapping[str, int] = field(default_factory=dict)
    """The stage of each tensor that no module of a stage has, such as a class token."""
    aux: str | None = None
    """An auxiliary head, never frozen. In train mode such a network returns torchvision's
    InceptionOutputs: logits_BK, and the auxiliary head's."""
    activations: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    """By the last module of a stage: the function, not a module, that the network applies to its
    output."""
    published: Mapping[str, Published] = field(default_factory=dict)
    """Its ImageNet weights by `model.init`; empty where none are published."""
    normalization: Normalization = "imagenet"
    """A name in config.NORMALIZATIONS, or mean and standard deviation: those of the published
    weights."""
    size_px: int = 224
    """Height and width of an image where the published accuracy was measured."""
    takes_size: bool = False
    """`build` takes `size_px`: positions, windows or attention belong to an image size."""
    channels_last: frozenset[str] = frozenset()
    """Stages whose output is maps_BHWC."""
    uncuttable: frozenset[str] = frozenset()
    """Stages whose output is not one tensor."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Modules that are never frozen."""
        return (self.head, *self.head_parts, *([self.aux] if self.aux else []))

    def stage_of(self, name: str) -> int:
        """Return the stage index of a parameter or buffer, `len(stages)` for a head.

        Raises:
            KeyError: for a name in no stage.
        """
        if name in self.tensors:
            return self.tensors[name]
        for index, (_, modules) in enumerate((*self.stages, ("head", self.heads))):
            if any(name.startswith(f"{module}.") for module in modules):
                return index
        raise KeyError(name)


def _cut(
    module: str, ends: tuple[int, ...], names: tuple[str, ...] = STEM_AND_STAGES
) -> tuple[Stage, ...]:
    """Cut a Sequential into stages that end with the children numbered `ends`."""
    starts = (0, *(end + 1 for end in ends))
    return tuple(
        (name, tuple(f"{module}.{child}" for child in range(start, end + 1)))
        for name, start, end in zip(names, starts, ends, strict=False)
    )


def _from_torchvision(
    name: str,
    stages: tuple[Stage, ...],
    head: str,
    *,
    aux: str | None = None,
    activations: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    normalization: Normalization | None = None,
    **options: Any,
) -> Backbone:
    recipe = models.get_model_weights(name)["DEFAULT"].transforms.keywords
    trained_with = "half" if recipe.get("mean") == (0.5, 0.5, 0.5) else "imagenet"
    return Backbone(
        build=partial(models.get_model, name, weights=None, **options),
        source="torchvision",
        stages=stages,
        head=head,
        aux=aux,
        activations=activations or {},
        published=from_torchvision(name),
        normalization=normalization or trained_with,
        size_px=recipe["crop_size"],
    )


def lenet5() -> Backbone:
    stages = (("conv1", ("conv1",)), ("conv2", ("conv2",)), ("dense", ("dense1", "dense2")))
    return Backbone(
        build=LeNet5,
        source="thaw",
        stages=stages,
        head="head",
        activations=dict.fromkeys(("conv1", "conv2", "dense2"), torch.tanh),
        size_px=32,
    )


def alexnet() -> Backbone:
    convolutions = _cut("features", (2, 5, 12), ("conv1", "conv2", "conv3"))
    return _from_torchvision(
        "alexnet", (*convolutions, *_cut("classifier", (5,), ("dense",))), "classifier.6"
    )


def vgg(name: str, poolings: tuple[int, ...]) -> Backbone:
    blocks = _cut("features", poolings, tuple(f"block{number}" for number in range(1, 6)))
    return _from_torchvision(name, (*blocks, *_cut("classifier", (5,), ("dense",))), "classifier.6")


def resnet(name: str) -> Backbone:
    layers = tuple((f"layer{number}", (f"layer{number}",)) for number in range(1, 5))
    stem = ("stem", ("conv1", "bn1", "relu", "maxpool"))
    return _from_torchvision(name, (stem, *layers), "fc")


def densenet(name: str) -> Backbone:
    stages = (
        ("stem", tuple(f"features.{module}0" for module in ("conv", "norm", "relu", "pool"))),
        ("block1", ("features.denseblock1",)),
        ("block2", ("features.transition1", "features.denseblock2")),
        ("block3", ("features.transition2", "features.denseblock3")),
        ("block4", ("features.transition3", "features.denseblock4", "features.norm5")),
    )
    activations = {"features.norm5": F.relu}
    return _from_torchvision(name, stages, "classifier", activations=activations)


def inception_v3() -> Backbone:
    convolutions = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")
    groups = (("5", "bcd"), ("6", "abcde"), ("7", "abc"))
    stages = (
        ("stem", tuple(f"Conv2d_{name}" for name in convolutions)),
        *(
            (f"mixed{group}", tuple(f"Mixed_{group}{letter}" for letter in letters))
            for group, letters in groups
        ),
    )
    return _from_torchvision(
        "inception_v3",
        stages,
        "fc",
        aux="AuxLogits",
        # torchvision converts `imagenet` to `half` in `transform_input`, which is off here.
        normalization="half",
        transform_input=False,
        init_weights=False,  # `initialize` draws them
    )


def mobilenet_v3(name: str, ends: tuple[int, ...]) -> Backbone:
    """Keras' definition has the same tensors, the two last layers as 1x1 convolutions of pooled
    maps; where a stride is 2 it pads the end of the maps more."""
    stages = (*_cut("features", ends), *_cut("classifier", (1,), ("dense",)))
    return _from_torchvision(name, stages, "classifier.3")


def sequential(name: str, ends: tuple[int, ...]) -> Backbone:
    """Describe a torchvision network whose `features` are one Sequential (MobileNetV2,
    EfficientNet, ConvNeXt) of stages that end with the children numbered `ends`."""
    return _from_torchvision(name, _cut("features", ends), "classifier")


def _create_timm(architecture: str, *, num_classes: int) -> nn.Module:
    import timm  # takes a second, which networks of torchvision don't pay

    return timm.create_model(architecture, num_classes=num_classes)


def _from_timm(architecture: str, stages: tuple[Stage, ...], head: str, **facts: Any) -> Backbone:
    published = facts.pop("published")
    return Backbone(
        build=partial(_create_timm, architecture),
        source="timm",
        stages=stages,
        head=head,
        published={"imagenet": published} if published else {},
        **facts,
    )


def timm_stages(architecture: str, *, norm: tuple[str, ...], **facts: Any) -> Backbone:
    """Describe a timm network of stem, four stages, `norm` and head (ResNetV2, ConvNeXt)."""
    stages = tuple((f"stage{number}", (f"stages.{number - 1}",)) for number in range(1, 4))
    last = ("stage4", ("stages.3", *norm))
    return _from_timm(architecture, (("stem", ("stem",)), *stages, last), "head", **facts)


def timm_mobile(architecture: str, *, groups: int, top: bool, **facts: Any) -> Backbone:
    """Describe a timm network of MobileNet's build; `top` where a convolution ends it."""
    blocks = tuple((f"stage{number}", (f"blocks.{number - 1}",)) for number in range(1, groups + 1))
    last = ((f"stage{groups + 1}", ("conv_head", "bn2")),) if top else ()
    stages = (("stem", ("conv_stem", "bn1")), *blocks, *last)
    return _from_timm(architecture, stages, "classifier", **facts)


def xception(**facts: Any) -> Backbone:
    stages = (
        ("stem", ("conv1", "bn1", "act1", "conv2", "bn2", "act2")),
        *((f"entry{number}", (f"block{number}",)) for number in range(1, 4)),
        ("middle", tuple(f"block{number}" for number in range(4, 12))),
        ("exit", ("block12", "conv3", "bn3", "act3", "conv4", "bn4", "act4")),
    )
    return _from_timm("legacy_xception", stages, "fc", **facts)


def inception_resnet_v2(**facts: Any) -> Backbone:
    stem = ("conv2d_1a", "conv2d_2a", "conv2d_2b", "conv2d_3b", "conv2d_4a")
    stages = (
        ("stem", stem),
        ("mixed5", ("mixed_5b", "repeat")),
        ("mixed6", ("mixed_6a", "repeat_1")),
        ("mixed7", ("mixed_7a", "repeat_2", "block8", "conv2d_7b")),
    )
    return _from_timm("inception_resnet_v2", stages, "classif", **facts)


def nasnet_large(**facts: Any) -> Backbone:
    cells = [tuple(f"cell_{cell}" for cell in range(first, first + 6)) for first in (0, 6, 12)]
    stages, activations = _divide_nasnet(cells, ("reduction_cell_0", "reduction_cell_1"))
    return _from_timm("nasnetalarge", stages, "last_linear", activations=activations, **facts)


def nasnet_mobile() -> Backbone:
    cells = [tuple(f"cells{group}.{cell}" for cell in range(4)) for group in (1, 2, 3)]
    stages, activations = _divide_nasnet(cells, ("reduction1", "reduction2"))
    return Backbone(
        build=NASNetMobile,
        source="thaw",
        stages=stages,
        head="head",
        activations=activations,
        normalization="half",
    )


def _divide_nasnet(
    cells: list[tuple[str, ...]], reductions: tuple[str, str]
) -> tuple[tuple[Stage, ...], dict[str, Callable[[Tensor], Tensor]]]:
    """Return the stages of a NASNet, and the activation behind all but the last: the next cell
    begins with ReLU."""
    stages = (
        ("stem", ("conv0", "cell_stem_0", "cell_stem_1")),
        ("cells1", cells[0]),
        ("cells2", (reductions[0], *cells[1])),
        ("cells3", (reductions[1], *cells[2], "act")),
    )
    return stages, dict.fromkeys((modules[-1] for _, modules in stages[:-1]), F.relu)
