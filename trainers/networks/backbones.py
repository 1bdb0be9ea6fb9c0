"""The backbones: LeNet-5, AlexNet and the networks of Keras Applications, which families.py divides
into stages; and any other classifier of timm by its name there, divided by timm_stages.py.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from cluster.io.errors import UserError, require
from trainers.networks import families, timm_models
from trainers.networks.families import Backbone
from trainers.networks.published import from_timm
from trainers.networks.torch_internals import without_compiler

XCEPTION_URL = (
    "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/"
    "xception-43020ad28.pth"
)


def _torchvision() -> dict[str, Backbone]:
    resnets = ("resnet50", "resnet101", "resnet152")
    densenets = ("densenet121", "densenet169", "densenet201")
    efficientnets = [f"efficientnet_b{size}" for size in range(8)]
    convnexts = [f"convnext_{size}" for size in ("tiny", "small", "base", "large")]
    return {
        **{name: families.resnet(name) for name in resnets},
        # a new one at each reduction of the resolution, and where the width steps up
        "mobilenet_v2": families.sequential("mobilenet_v2", (1, 3, 6, 10, 13, 17, 18)),
        "mobilenet_v3_small": families.mobilenet_v3("mobilenet_v3_small", (0, 1, 3, 6, 8, 11, 12)),
        "mobilenet_v3_large": families.mobilenet_v3(
            "mobilenet_v3_large", (1, 3, 6, 10, 12, 15, 16)
        ),
        "alexnet": families.alexnet(),
        "vgg16": families.vgg("vgg16", (4, 9, 16, 23, 30)),
        "vgg19": families.vgg("vgg19", (4, 9, 18, 27, 36)),
        "inception_v3": families.inception_v3(),
        **{name: families.densenet(name) for name in densenets},
        **{name: families.sequential(name, tuple(range(9))) for name in efficientnets},
        "efficientnet_v2_s": families.sequential("efficientnet_v2_s", tuple(range(8))),
        "efficientnet_v2_m": families.sequential("efficientnet_v2_m", tuple(range(9))),
        "efficientnet_v2_l": families.sequential("efficientnet_v2_l", tuple(range(9))),
        **{name: families.sequential(name, (0, 1, 3, 5, 7)) for name in convnexts},
    }


def _timm() -> dict[str, Backbone]:
    """Networks torchvision lacks; the accuracies are of timm's results-imagenet.csv at 0173a13,
    MobileNet's of its README."""

    def efficientnet(size: str, size_px: int, top1: float, top5: float) -> Backbone:
        architecture = f"tf_efficientnetv2_{size}"
        return families.timm_mobile(
            architecture,
            groups=6,
            top=True,
            published=from_timm(architecture, "in1k", top1, top5),
            size_px=size_px,
        )

    def resnet(depth: int, top1: float | None, top5: float | None) -> Backbone:
        architecture = f"resnetv2_{depth}"
        return families.timm_stages(
            architecture,
            norm=("norm",),
            published=from_timm(architecture, "a1h_in1k", top1, top5) if top1 else None,
            normalization="half",
            size_px=288 if top1 else 224,
        )

    return {
        "resnet50_v2": resnet(50, 81.398, 95.726),
        "resnet101_v2": resnet(101, 83.002, 96.454),
        "resnet152_v2": resnet(152, None, None),
        "xception": families.xception(
            published=from_timm("legacy_xception", "tf_in1k", 79.040, 94.382, url=XCEPTION_URL),
            normalization="half",
            size_px=299,
        ),
        "inception_resnet_v2": families.inception_resnet_v2(
            published=from_timm("inception_resnet_v2", "tf_in1k", 80.462, 95.308),
            normalization="half",
            size_px=299,
        ),
        "mobilenet_v1": families.timm_mobile(
            "mobilenetv1_100",
            groups=5,
            top=False,
            published=from_timm("mobilenetv1_100", "ra4_e3600_r224_in1k", 76.094, 93.004),
            normalization="half",
            size_px=256,
        ),
        "nasnet_large": families.nasnet_large(
            published=from_timm("nasnetalarge", "tf_in1k", 82.626, 96.042),
            normalization="half",
            size_px=331,
        ),
        "efficientnet_v2_b0": efficientnet("b0", 224, 78.358, 94.014),
        "efficientnet_v2_b1": efficientnet("b1", 240, 79.462, 94.722),
        "efficientnet_v2_b2": efficientnet("b2", 260, 80.194, 95.042),
        "efficientnet_v2_b3": efficientnet("b3", 300, 81.970, 95.788),
        "convnext_xlarge": families.timm_stages(
            "convnext_xlarge",
            norm=(),
            published=from_timm("convnext_xlarge", "fb_in22k_ft_in1k", 87.330, 98.328),
            size_px=288,
        ),
    }


BACKBONES: dict[str, Backbone] = {
    **_torchvision(),
    "lenet5": families.lenet5(),
    **_timm(),
    "nasnet_mobile": families.nasnet_mobile(),
}


def find(name: str) -> Backbone:
    """Return a backbone by its name: one of BACKBONES, or a classifier of timm.

    Raises:
        UserError: for an unknown name, with the names to choose from, and for a network of timm
            whose stages can't be frozen one after the other.
    """
    return BACKBONES[name] if name in BACKBONES else _find_in_timm(name)


@cache
def _find_in_timm(name: str) -> Backbone:
    if (backbone := timm_models.describe(name)) is not None:
        return backbone
    similar = ", ".join(timm_models.similar_names(name))
    raise UserError(
        f"model.backbone is {name!r}: choose from {', '.join(BACKBONES)}, or any classifier of timm"
        f"{similar and f' (such as {similar})'}, or hf-hub:ORGANIZATION/NAME"
    )


def build(name: str, num_classes: int, size_px: int | None = None) -> nn.Module:
    """Build a network on the CPU; `initialization.initialize` then decides its weights.

    Args:
        size_px: of its images, where positions or windows depend on it; default: its own size.

    Raises:
        UserError: as `find`, and for a size that the network can't have.
    """
    backbone = find(name)
    size = {"size_px": size_px or backbone.size_px} if backbone.takes_size else {}
    with torch.random.fork_rng(devices=[]):  # libraries draw weights that will be replaced
        if name not in BACKBONES:  # all but class tokens and positions: the same in every process
            torch.default_generator.manual_seed(0)
        try:
            return backbone.build(num_classes=num_classes, **size)
        except (AssertionError, ValueError, RuntimeError) as error:
            if size_px in (None, backbone.size_px):
                raise
            raise UserError(f"size_px is {size_px}: {name} can't have it ({error})") from None


class _SkipFilling(TorchFunctionMode):
    """Leave out random values, which on the meta device are none and take half a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_):
            return args[0]
        return func(*args, **(kwargs or {}))


def on_meta(name: str, num_classes: int, size_px: int | None = None) -> nn.Module:
    """Build a network in eval mode on the meta device: shapes without memory or computation.

    No parameter requires a gradient: torch's FLOP counter fails on one that a module is called on.
    """
    with without_compiler(), torch.device("meta"), _SkipFilling():
        return build(name, num_classes, size_px).eval().requires_grad_(False)


def set_size(model: nn.Module, name: str, size_px: int) -> None:
    """Make a network that `require_size` accepts take another image size, in place."""
    if find(name).takes_size:
        require(
            hasattr(model, "set_input_size"),
            "size_px",
            size_px,
            f"{name} takes the size of its training only; leave it out",
        )
        model.set_input_size((size_px, size_px))  # pyright: ignore[reportCallIssue]


def require_size(
    name: str, size_px: int, *, field: str = "size_px", training: bool = False
) -> None:
    """Refuse images that are too small for a network, or of no multiple of its patches.

    Args:
        field: its name in the error.
        training: whether an auxiliary head must take them as well.

    Raises:
        UserError: for such images, and as `find`.
    """
    own_px = find(name).size_px
    fits = find(name).takes_size and next(
        (px for px in range(size_px, own_px + 65) if _takes_size(name, px, training)), own_px
    )
    require(
        _takes_size(name, size_px, training),
        field,
        size_px,
        f"{name} does not take it; the next size that it takes is {fits}, its own {own_px}"
        if fits
        else f"too small for {name}; its own size is {own_px}",
    )


@cache
def _takes_size(name: str, size_px: int, training: bool) -> bool:
    try:
        model = on_meta(name, 2, size_px).train(training)
        with without_compiler(), torch.no_grad():
            model(torch.zeros(2, 3, size_px, size_px, device="meta"))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside a DDP wrapper."""
    return model.module if isinstance(model, DistributedDataParallel) else model
