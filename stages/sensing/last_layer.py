"""Find the linear layer that returns the logits, by intervening on it rather than by its name."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stages.errors import InputError
from stages.sensing.buffers import kept_buffers


@dataclass(slots=True)
class _Trace:
    """What happened in one forward pass."""

    output: object
    linears: dict[str, int] = field(default_factory=dict)  # name -> number of calls
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # name -> output shape
    last_module: str = "nothing"


def find_last_linear(module: nn.Module, example: Tensor, name: str | None = None) -> str:
    """Name of the ``nn.Linear`` whose output is the network's output.

    A layer qualifies if replacing its output with random numbers makes the network return exactly
    these numbers, which shows whatever follows it (a softmax, an in-place ReLU, a second head). The
    module runs in eval mode and is left unchanged.

    Args:
        module: the network.
        example: an input that it accepts, ``[n, 3, H, W]`` float; one or two images are enough.
        name: use this layer, if it qualifies.

    Raises:
        InputError: the network fails, no layer qualifies, several do, or ``name`` does not; the
            message lists what was found.
    """
    if name is not None:
        _check_is_linear(module, name)
    was_training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), kept_buffers(module):
            trace = _first_trace(module, example)
            _check_output(trace)
            last = [linear for linear in trace.linears if _is_last(module, example, trace, linear)]
    finally:
        for part, training in was_training.items():
            part.training = training
    return _chosen(module, trace, last, name)


def _chosen(module: nn.Module, trace: _Trace, last: list[str], name: str | None) -> str:
    if name is not None:
        if name not in last:
            raise InputError(
                f"last layer {name!r}: its output is not the network's output, which must be the "
                f"logits; found {_listed(module, trace)}"
            )
        return name
    if len(last) == 1:
        return last[0]
    if last:
        raise InputError(
            f"more than one linear layer gives the output: {', '.join(map(repr, last))}; "
            "choose one with --last-layer"
        )
    raise InputError(
        "no linear layer gives the network's output; expected a network that ends in nn.Linear "
        f"and returns its logits, found {_listed(module, trace)}; return the logits unchanged"
    )


def _check_is_linear(module: nn.Module, name: str) -> None:
    parts = dict(module.named_modules())
    linears = [path for path, part in parts.items() if isinstance(part, nn.Linear)]
    listed = ", ".join(map(repr, linears)) or "none"
    if name not in parts:
        raise InputError(f"last layer {name!r}: no such layer; linear layers: {listed}")
    if name not in linears:
        kind = type(parts[name]).__name__
        raise InputError(
            f"last layer {name!r}: expected nn.Linear, found {kind}; linear layers: {listed}"
        )


def _check_output(trace: _Trace) -> None:
    output = trace.output
    if not isinstance(output, Tensor):
        raise InputError(
            f"the network returns {type(output).__name__}, expected one tensor of logits "
            "[n, classes]; wrap it in a module that returns the logits alone"
        )
    if output.ndim != 2:
        raise InputError(
            f"the network returns a tensor of shape {tuple(output.shape)}, expected logits "
            "[n, classes]; wrap it in a module that returns the logits alone"
        )


def _first_trace(module: nn.Module, example: Tensor) -> _Trace:
    try:
        return _traced(module, example)
    except Exception as error:
        found = (str(error).strip() or "no reason given").splitlines()[0]
        raise InputError(
            f"the network fails on images of shape {tuple(example.shape)} with "
            f"{type(error).__name__}: {found}; check its number of channels and --image-size"
        ) from error


def _traced(module: nn.Module, example: Tensor) -> _Trace:
    trace = _Trace(output=None)

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(part: nn.Module, _inputs: object, output: object) -> None:
            trace.last_module = f"{name!r} ({type(part).__name__})"
            if isinstance(part, nn.Linear) and isinstance(output, Tensor):
                trace.linears[name] = trace.linears.get(name, 0) + 1
                trace.shapes[name] = tuple(output.shape)

        return hook

    # A linear layer may have submodules that compute its weight (weight norm, spectral norm).
    leaves = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) or not any(part.children())
    ]
    handles = [part.register_forward_hook(note(name)) for name, part in leaves]
    try:
        trace.output = module(example)
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _is_last(module: nn.Module, example: Tensor, trace: _Trace, name: str) -> bool:
    """Whether replacing the layer's output makes the network return the replacement unchanged."""
    assert isinstance(trace.output, Tensor)  # checked by _check_output
    if trace.linears[name] != 1 or trace.shapes[name] != tuple(trace.output.shape):
        return False
    generator = torch.Generator().manual_seed(0)
    probe = 10 * torch.randn(trace.output.shape, generator=generator)
    probe = probe.to(trace.output)
    # Pass a clone, so that an in-place operation cannot change the tensor we compare with.
    handle = module.get_submodule(name).register_forward_hook(lambda *_: probe.clone())
    try:
        output = module(example)
    finally:
        handle.remove()
    return isinstance(output, Tensor) and torch.equal(output, probe)


def _listed(module: nn.Module, trace: _Trace) -> str:
    found = []
    for name, n_calls in trace.linears.items():
        layer = module.get_submodule(name)
        times = f", called {n_calls} times" if n_calls > 1 else ""
        found.append(f"{name!r} Linear({layer.in_features}, {layer.out_features}){times}")
    linears = "; ".join(found) or "no linear layer"
    return f"{linears}; the last module called is {trace.last_module}"
