"""Cuts a network into its frozen prefix, computed once, and the suffix that trials train.

The cut is after the frozen stages' pooling and flattening, where features are smallest, and before
the next layer that trains or draws random numbers. It is made in torch.fx's graph of the forward
pass, whose leaf modules are the stages' modules. The graph shows whether the suffix needs anything
but the prefix's output: such a network is refused.
"""

from collections.abc import Collection, Sequence
from inspect import signature

from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd as Dropout

from cluster.io.errors import UserError
from trainers.networks.backbones import find


class _StageTracer(fx.Tracer):
    """Traces a forward pass down to the modules of the stages."""

    def __init__(self, leaves: Collection[str] = ()) -> None:
        """`leaves`: names of modules. torch.fx gives none where it reads a pickled graph, whose
        modules are all leaves."""
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._leaves or super().is_leaf_module(
            m, module_qualified_name
        )


class Suffix(nn.Module):
    """The network after the cut: features_B... -> the network's output.

    Shares its modules, parameters and train mode with the network.
    """

    def __init__(self, network: nn.Module, backbone_name: str, depth: int) -> None:
        """Cut `network` behind its first `depth` stages.

        Raises:
            UserError: where the suffix needs more than the output of that stage.
        """
        super().__init__()
        self.network = network
        was_training = network.training
        # An auxiliary head is part of the forward pass only in train mode.
        self._graphs = {
            mode: build_suffix(network.train(mode), backbone_name, depth) for mode in (True, False)
        }
        network.train(was_training)

    def forward(self, features: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self._graphs[self.network.training](features)

    def ends_with(self, module: str) -> bool:
        """Whether the output is that of a module, in train and in eval mode."""
        outputs = [graph.graph.output_node().args[0] for graph in self._graphs.values()]
        return all(isinstance(node, fx.Node) and node.target == module for node in outputs)


def build_prefix(network: nn.Module, backbone_name: str, depths: Sequence[int]) -> fx.GraphModule:
    """Return images_BCHW -> a tuple of the features behind each of `depths` stages, in one pass.

    Call it in eval mode, as frozen stages are.

    Raises:
        UserError: where the network can't be cut.
    """
    traced, cuts = _trace(network.eval(), backbone_name, depths)
    (output,) = traced.graph.find_nodes(op="output")
    output.args = (tuple(cuts),)
    return _simplify(traced)


def build_suffix(network: nn.Module, backbone_name: str, depth: int) -> fx.GraphModule:
    """Return the features behind `depth` stages -> the network's output, in its train mode.

    Raises:
        UserError: where the network can't be cut there.
    """
    traced, (cut,) = _trace(network, backbone_name, [depth])
    (images,) = traced.graph.find_nodes(op="placeholder")
    with traced.graph.inserting_after(images):
        features = traced.graph.placeholder("features")
    cut.replace_all_uses_with(features)
    _simplify(traced)
    if images.users:
        stage, _ = find(backbone_name).stages[depth - 1]
        raise UserError(
            f"{backbone_name} can't be cut behind {stage}: what follows needs more than its output"
        )
    traced.graph.erase_node(images)
    traced.recompile()
    return traced


def _simplify(traced: fx.GraphModule) -> fx.GraphModule:
    """Remove nodes that the output does not need, modules with state (BatchNorm) included."""
    traced.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    traced.recompile()
    return traced


def _trace(
    network: nn.Module, backbone_name: str, depths: Sequence[int]
) -> tuple[fx.GraphModule, list[fx.Node]]:
    """Return a network's forward pass as a graph, and the node of each depth's features."""
    backbone = find(backbone_name)
    tracer = _StageTracer(
        {*(module for _, modules in backbone.stages for module in modules), *backbone.heads}
    )
    parameters = signature(network.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    try:
        graph = tracer.trace(network, concrete_args=defaults or None)
        traced = fx.GraphModule(network, graph)
    except Exception as error:  # any error of a forward pass on symbols
        raise UserError(f"{backbone_name} can't be cut: it can't be traced ({error})") from error
    if defaults:  # such as a ViT's attention mask: they are constants, and no inputs
        _simplify(traced)
        for node in traced.graph.find_nodes(op="placeholder")[1:]:
            traced.graph.erase_node(node)
        traced.recompile()
    return traced, [_find_cut(network, traced.graph, backbone_name, depth) for depth in depths]


def _find_cut(network: nn.Module, graph: fx.Graph, backbone_name: str, depth: int) -> fx.Node:
    """Follow the output of a stage's last module to where it is smallest."""
    backbone = find(backbone_name)
    stage, (*_, last) = backbone.stages[depth - 1]
    calls = [n for n in graph.nodes if n.op == "call_module" and n.target == last]
    if len(calls) != 1:
        raise UserError(f"{backbone_name} can't be cut: {last} is called {len(calls)} times")
    node = calls[0]
    while len(node.users) == 1:
        (user,) = node.users
        if user.all_input_nodes != [node] or not _is_fixed(network, user):
            break
        node = user
    if node is calls[0] and stage in backbone.uncuttable:
        raise UserError(
            f"{backbone_name} can't be cut behind {stage}: its output is not one tensor"
        )
    return node


def _is_fixed(network: nn.Module, node: fx.Node) -> bool:
    """Whether a step of the forward pass neither trains nor draws random numbers."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        draws = any(isinstance(part, Dropout) for part in module.modules())
        return not draws and not any(True for _ in module.parameters())
    return node.op in ("call_function", "call_method") and "dropout" not in str(node.target)


def behind(tensors: dict[str, Tensor], backbone_name: str, depth: int) -> dict[str, Tensor]:
    """Return the tensors of a state dict after the first `depth` stages, heads included."""
    stage_of = find(backbone_name).stage_of
    return {name: tensor for name, tensor in tensors.items() if stage_of(name) >= depth}


def before(tensors: dict[str, Tensor], backbone_name: str, depth: int) -> dict[str, Tensor]:
    """Return the tensors of a state dict in the first `depth` stages."""
    stage_of = find(backbone_name).stage_of
    return {name: tensor for name, tensor in tensors.items() if stage_of(name) < depth}
