"""Activations in place, which torch's CPU kernels compute slowly in bfloat16.

Images/s on two cores of a Xeon with avx512_bf16 and AMX (torch 2.14, 32 images of 224 px):

| network | training: in place | here | inference, BatchNorm folded: in place | here |
|---|---|---|---|---|
| MobileNetV2 | 33.0 | 37.3 | 185 | 247 |
| MobileNetV3 large | 39.1 | 41.3 | 285 | 321 |
| EfficientNet-B0 | 23.5 | 24.3 | 131 | 128 |
| ResNet50 | 17.7 | 18.2 | 77 | 88 |

In training, autograd also copies the input of some of them. In float32 nothing is gained.
"""

import logging
import operator
from collections import defaultdict

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # pyright: ignore[reportPrivateUsage]

logger = logging.getLogger(__name__)

NEW_OUTPUT = (nn.Conv2d, nn.Linear, BatchNorm)
"""Layers whose output is no view of another tensor."""


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True
    """timm's BatchNorm counts the batches of a forward pass, which must not change its buffer."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_layer = isinstance(m, NEW_OUTPUT) and not any(m.children())  # timm's pads by its input
        return is_layer or super().is_leaf_module(m, module_qualified_name)


def avoid_in_place(model: nn.Module) -> None:
    """Let activations write a new tensor, where nothing else reads their input.

    The values are the same. An activation whose input is read by others stays in place, as that is
    part of what the network computes; so do those of a network that torch.fx can't trace.
    """
    if not any(getattr(module, "inplace", False) for module in model.modules()):
        return
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:  # any error of a forward pass on symbols
        logger.info("Activations stay in place: %s", error)
        return
    are_alone: defaultdict[nn.Module, list[bool]] = defaultdict(list)
    for node in traced.graph.find_nodes(op="call_module"):
        module = traced.get_submodule(node.target)
        if getattr(module, "inplace", False):
            are_alone[module].append(_is_read_once(traced, *node.all_input_nodes))
    for module, of_calls in are_alone.items():
        if all(of_calls):
            module.inplace = False  # pyright: ignore[reportArgumentType] torch types no booleans


def _is_read_once(traced: fx.GraphModule, tensor: fx.Node) -> bool:
    """Whether a tensor is a layer's own output, or a sum with one, and has one reader."""
    if len(tensor.users) != 1:
        return False
    if tensor.op == "call_module":
        layer = traced.get_submodule(str(tensor.target))
        if not isinstance(layer, nn.Identity):
            return isinstance(layer, NEW_OUTPUT)
    elif tensor.target is not operator.add:  # of which `+=` writes into its first term
        return tensor.target is F.batch_norm
    first = tensor.args[0]
    return isinstance(first, fx.Node) and _is_read_once(traced, first)
