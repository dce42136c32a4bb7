"""Networks that return more than logits: tuples, dictionaries, objects with ``.logits``."""

from collections.abc import Iterable, Mapping
from functools import partial

from torch import Tensor, nn


def returning_logits(network: nn.Module, n_classes: int | None) -> nn.Module:
    """The same network, which now returns its logits alone.

    The logits are ``output.logits``, ``output["logits"]``, or the first matrix in a tuple, list or
    dictionary that has ``n_classes`` columns, if their number is known. Other outputs stay as they
    are, and so do tuples in training mode, whose further outputs may need losses of their own.
    """
    network.register_forward_hook(partial(_logits_alone, n_classes))
    return network


def _logits_alone(
    n_classes: int | None, module: nn.Module, _inputs: object, output: object
) -> object:
    if isinstance(output, Tensor) or (module.training and isinstance(output, tuple | list)):
        return output
    entries: Iterable[object] = output if isinstance(output, tuple | list) else ()
    named = getattr(output, "logits", None)
    if isinstance(output, Mapping):
        entries, named = output.values(), output.get("logits", named)
    if isinstance(named, Tensor):
        return named
    matrices = (each for each in entries if isinstance(each, Tensor) and each.ndim == 2)
    return next((each for each in matrices if n_classes in (None, each.shape[1])), output)
