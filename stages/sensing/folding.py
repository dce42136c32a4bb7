"""A faster copy of a network for evaluation: batch norm in the convolutions, ReLU in place."""

import copy
import operator

from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Dynamic control flow, and arguments that tracing cannot follow, end in one of these.
_UNTRACEABLE = (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, NameError, KeyError)


def folded(network: nn.Module) -> nn.Module:
    """An equivalent copy of ``network`` in eval mode; the copy alone where it cannot be traced.

    A convolution followed by batch norm is ``s (w * x + b - m) + t`` with constants in eval mode:
    one convolution with other weights. Layer names stay the same, those folded away excepted.
    """
    network = copy.deepcopy(network).eval()
    try:
        traced = fx.symbolic_trace(network)
    except _UNTRACEABLE:
        return network
    for node in list(traced.graph.nodes):
        _fold_batch_norm(traced, node)
        _relu_in_place(traced, node)
    traced.graph.lint()
    traced.recompile()
    return traced


def _fold_batch_norm(traced: fx.GraphModule, node: fx.Node) -> None:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return
    norm, conv = _called(traced, node), _called(traced, source)
    # Subclasses, hooks and parametrisations may compute something else with these weights.
    if not _is_plain(norm, nn.BatchNorm2d) or not _is_plain(conv, nn.Conv2d):
        return
    assert isinstance(norm, nn.BatchNorm2d)  # for the type checker: _is_plain has seen both
    assert isinstance(conv, nn.Conv2d)
    # A convolution that is used elsewhere too must stay as it is.
    if not _is_private(traced, source) or norm.running_mean is None:
        return
    parent, _, name = str(source.target).rpartition(".")
    setattr(traced.get_submodule(parent), name, fuse_conv_bn_eval(conv, norm))
    node.replace_all_uses_with(source)
    traced.graph.erase_node(node)


def _relu_in_place(traced: fx.GraphModule, node: fx.Node) -> None:
    """Overwrite what a convolution or a sum made, if nothing else reads it: less to cache."""
    if node.op != "call_function" or node.target is not functional.relu:
        return
    source = node.args[0]
    if not isinstance(source, fx.Node) or len(source.users) != 1:
        return
    # Both make a new array, so that no view of it is about.
    if source.target is operator.add or isinstance(_called(traced, source), nn.Conv2d):
        node.kwargs = {**node.kwargs, "inplace": True}


def _called(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    return type(module) is kind and not (module._forward_hooks or module._forward_pre_hooks)


def _is_private(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node has one reader and its module is called once."""
    n_calls = sum(other.target == node.target for other in traced.graph.nodes)
    return len(node.users) == 1 and n_calls == 1
