"""The one rule that divides any network of timm into stages.

Stages are the groups of timm's `group_matcher(coarse=True)`: the stem, then the blocks in the order
of the forward pass. What follows the last block belongs to it; parameters of the network itself
(class token, positions, registers) belong to the group that timm names, the stem. The head is
the classifier, and LayerNorm directly before it where it sees pooled features.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainers.networks.families import Backbone, Stage
from trainers.networks.layout import is_channels_last

NUM_CLASSES = 5
"""Of the network that is divided; one of any other number has the same stages."""
UNMATCHED = "?"  # a name that no group matches


class Refused(Exception):
    """Says why a network can't be divided into stages."""


class _Calls:
    """The modules of a forward pass in the order in which they end."""

    def __init__(self, network: nn.Module) -> None:
        self.names: list[str] = []
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Any] = {}
        self._hooks = [
            module.register_forward_hook(partial(self._note, name))
            for name, module in network.named_modules()
            if name
        ]

    def _note(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.names.append(name)
        if inputs and isinstance(inputs[0], Tensor):
            self.inputs[name] = inputs[0]
        self.outputs[name] = output

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def divide(network: Any, size_px: int) -> Backbone:
    """Divide a network on the meta device into stages and head.

    Raises:
        Refused: naming the reason.
    """
    calls = _pass_images(network, size_px)
    stage_of, classifiers = _group(network)
    head = max(stage_of.values())
    parts = _find_head_parts(network, stage_of, calls, classifiers)
    stage_of |= {tensor: head for tensor in stage_of if tensor.startswith(_prefixes(parts))}
    modules, tensors = _cover(network, stage_of, calls, (*classifiers, *parts))
    stage, without_tensors = 0, {name for name, own in modules.items() if own is None}
    for name in (name for name in calls.names if name in modules):
        own = modules[name]
        if own is None:  # it belongs to what comes before
            modules[name] = stage if stage < head - 1 else head
        elif own < stage and name not in without_tensors:
            raise Refused(
                f"{name} of stage {own} is computed after a part of stage {stage}, counted from 0"
            )
        elif name not in without_tensors:
            stage = own
    members = [[n for n, own in modules.items() if own == number] for number in range(head + 1)]
    stages = _name_stages([_by_last_call(names, calls.names) for names in members[:head]])
    outputs = {name: calls.outputs[of_stage[-1]] for name, of_stage in stages}
    return Backbone(
        build=nn.Identity,
        source="timm",
        stages=stages,
        head=classifiers[0],
        head_parts=(*classifiers[1:], *parts),
        tensors=tensors,
        channels_last=frozenset(n for n, output in outputs.items() if is_channels_last(output)),
        uncuttable=frozenset(n for n, output in outputs.items() if not isinstance(output, Tensor)),
    )


def _pass_images(network: Any, size_px: int) -> _Calls:
    """Pass two images forward and backward in train mode, as a training does."""
    calls = _Calls(network)
    images_BCHW = torch.zeros(2, 3, size_px, size_px, device="meta")
    try:
        logits_BK = network.train()(images_BCHW)
        if not isinstance(logits_BK, Tensor) or logits_BK.shape != (2, NUM_CLASSES):
            raise Refused("its output in train mode is not one tensor of logits")
        logits_BK.sum().backward()
    except (RuntimeError, TypeError, NotImplementedError, AttributeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(f"a pass of two images fails ({reason})") from None
    finally:
        calls.remove()
    unused = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        raise Refused(f"{unused[0]} has no part in its output")
    return calls


def _group(network: Any) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the stage of each tensor, the head's one more, and the classifiers."""
    from timm.models._manipulate import group_with_matcher  # group_parameters leaves buffers out

    if not hasattr(network, "group_matcher"):
        raise Refused("timm does not group its parameters")
    try:
        matcher = network.group_matcher(coarse=True)
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise Refused(f"timm does not group its blocks ({error})") from None
    names = list(network.state_dict())
    named = ((name, name) for name in (*names, UNMATCHED))
    stage_of: dict[str, int] = dict(group_with_matcher(named, matcher, reverse=True))
    after_last = stage_of.pop(UNMATCHED)
    for name, stage in stage_of.items():
        if stage == after_last:
            stage_of[name] = after_last - 1
    classifier = network.pretrained_cfg.get("classifier") or ()
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    heads = _prefixes(classifiers)
    if not heads or not all(any(name.startswith(head) for name in names) for head in heads):
        raise Refused("timm does not name its classifier")
    used = sorted({stage for name, stage in stage_of.items() if not name.startswith(heads)})
    numbers = {stage: number for number, stage in enumerate(used)}
    return {
        name: len(used) if name.startswith(heads) else numbers[stage]
        for name, stage in stage_of.items()
    }, classifiers


def _find_head_parts(
    network: Any, stage_of: Mapping[str, int], calls: _Calls, classifiers: tuple[str, ...]
) -> tuple[str, ...]:
    """Return each LayerNorm that is directly before the first classifier and sees pooled features,
    and what is computed after that classifier."""
    modules, _ = _cover(network, stage_of, calls, classifiers)
    order = [name for name in calls.names if modules.get(name) is not None]
    start = next(at for at, name in enumerate(order) if name in classifiers)
    parts = [name for name in dict.fromkeys(order[start:]) if name not in classifiers]
    for name in reversed(order[:start]):
        module, seen = network.get_submodule(name), calls.inputs.get(name)
        is_norm = isinstance(module, nn.LayerNorm) or "RmsNorm" in type(module).__name__
        if not is_norm or seen is None or seen.numel() != len(seen) * max(seen.shape[1:]):
            break
        parts.append(name)
    return tuple(parts)


def _prefixes(modules: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in modules)


def _cover(
    network: nn.Module, stage_of: Mapping[str, int], calls: _Calls, heads: tuple[str, ...]
) -> tuple[dict[str, int | None], dict[str, int]]:
    """Return the largest called modules that are in one stage (None: without tensors), the head in
    its parts `heads`; and the stages of tensors that no such module has."""
    modules: dict[str, int | None] = {}
    tensors: dict[str, int] = {}
    called, inside = set(calls.names), _prefixes(heads)

    def visit(module: nn.Module, path: str) -> None:
        prefix = f"{path}." if path else ""
        stages = {stage_of[name] for name in stage_of if name.startswith(prefix)}
        children = list(module.named_children())
        holds_head = any(head.startswith(prefix) for head in inside) and path not in heads
        if path and len(stages) < 2 and not holds_head and (path in called or not children):
            if stages or path in called:
                modules[path] = stages.pop() if stages else None
            return
        for name in (*module._parameters, *module._buffers):
            if f"{prefix}{name}" in stage_of:
                tensors[f"{prefix}{name}"] = stage_of[f"{prefix}{name}"]
        for name, child in children:
            visit(child, f"{prefix}{name}")

    visit(network, "")
    return modules, tensors


def _by_last_call(names: list[str], calls: list[str]) -> tuple[str, ...]:
    last = {name: at for at, name in enumerate(calls)}
    ordered = sorted(names, key=lambda name: last.get(name, -1))
    if not ordered or ordered[-1] not in last:
        raise Refused(f"no module of {names or 'a group'} is called in a pass")
    return tuple(ordered)


def _name_stages(members: list[tuple[str, ...]]) -> tuple[Stage, ...]:
    """Name the stages: stem, then block1 and so on (of a plain ViT), or stage1 and so on."""
    kind = "block" if members[-1][0].startswith("blocks.") else "stage"
    names = ("stem", *(f"{kind}{number}" for number in range(1, len(members))))
    return tuple(zip(names, members, strict=True))
