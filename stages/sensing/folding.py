"""Make a faster copy of a network for evaluation: folded batch norm, in-place ReLU."""

import copy
import operator

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stages.errors import InputError
from stages.sensing.feature_maps import MapTap
from stages.sensing.last_layer_tap import LastLayerTap

# Dynamic control flow, and arguments that tracing cannot follow, raise one of these.
_UNTRACEABLE = (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, NameError, KeyError)


def folded(network: nn.Module) -> nn.Module:
    """An equivalent, faster copy of ``network`` in eval mode; a plain copy if it cannot be traced.

    A convolution followed by batch norm is ``s (w * x + b - m) + t`` with constants in eval mode,
    which is one convolution with other weights. Names of the remaining layers stay the same.
    """
    return fold(copied(network))


def fold(network: nn.Module) -> nn.Module:
    """Like `folded`, of a network that may be changed."""
    tracer = _Tracer()
    try:
        graph = tracer.trace(network)
        traced = fx.GraphModule(tracer.root, graph, type(network).__name__)
    except _UNTRACEABLE:
        return network
    for node in list(traced.graph.nodes):
        _fold_batch_norm(traced, node)
        _relu_in_place(traced, node)
    traced.graph.lint()
    traced.recompile()
    return traced


class _Tracer(fx.Tracer):
    """Follows everything but torch's own layers and taps, which record what they get."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_tap = isinstance(m, MapTap | LastLayerTap)
        return is_tap or super().is_leaf_module(m, module_qualified_name)


def copied(network: nn.Module) -> nn.Module:
    """A copy in eval mode that shares no parameters with the network.

    Raises:
        InputError: it cannot be copied, for example because it holds a lock or an open file, or
            its ``__deepcopy__`` does not copy a parameter.
    """
    try:
        copied = copy.deepcopy(network)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # each part may define its own way to be copied
        raise InputError(
            f"the network cannot be deep-copied ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}), which evaluation needs; remove what cannot be "
            "copied, or give it a __deepcopy__"
        ) from error
    own = {id(parameter) for parameter in copied.parameters()}
    shared = next((name for name, each in network.named_parameters() if id(each) in own), None)
    if shared is not None:
        raise InputError(
            f"copy.deepcopy does not copy the network's {shared!r}, but evaluation changes the "
            "copy; change __deepcopy__ so that it copies every layer"
        )
    return copied.eval()


def _fold_batch_norm(traced: fx.GraphModule, node: fx.Node) -> None:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return
    norm, conv = _called(traced, node), _called(traced, source)
    # Subclasses, hooks and parametrisations may compute something else with these weights.
    if not _is_plain(norm, nn.BatchNorm2d) or not _is_plain(conv, nn.Conv2d):
        return
    assert isinstance(norm, nn.BatchNorm2d)  # for the type checker; see _is_plain
    assert isinstance(conv, nn.Conv2d)
    # A convolution that is also used elsewhere must stay as it is.
    if not _is_private(traced, source) or norm.running_mean is None:
        return
    parent, _, name = str(source.target).rpartition(".")
    setattr(traced.get_submodule(parent), name, fuse_conv_bn_eval(conv, norm))
    node.replace_all_uses_with(source)
    traced.graph.erase_node(node)


def _relu_in_place(traced: fx.GraphModule, node: fx.Node) -> None:
    """Overwrite the result of a convolution or a sum if nothing else reads it, to save cache."""
    if node.op != "call_function" or node.target is not functional.relu:
        return
    source = node.args[0]
    if not isinstance(source, fx.Node) or len(source.users) != 1:
        return
    # Both create a new array, so there is no view of it.
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
