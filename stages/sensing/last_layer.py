"""Find the layers that give the logits, by intervening on them rather than by their names."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from stages.errors import InputError
from stages.sensing.buffers import kept_buffers
from stages.sensing.logit_layers import TOGETHER, averaged, is_logit_layer

MOST_LISTED = 5
"""Layers that a message lists."""


@dataclass(slots=True)
class _Trace:
    """What happened in one forward pass."""

    output: object
    calls: dict[str, int] = field(default_factory=dict)  # name of a layer -> number of calls
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # name -> output shape
    modules: list[str] = field(default_factory=list)  # all that were called, in this order

    @property
    def candidates(self) -> list[str]:
        """Layers with an output for each logit, alone or at each place of the image."""
        assert isinstance(self.output, Tensor)  # checked by _check_output
        wanted = tuple(self.output.shape)
        return [
            name
            for name, shape in self.shapes.items()
            if self.calls[name] == 1 and shape[:2] == wanted and len(shape) in (2, 4)
        ]


def find_last_layer(module: nn.Module, example: Tensor, name: str | None = None) -> str:
    """Name of the layer whose output is the network's logits.

    A layer qualifies if replacing its output with random numbers makes the network return exactly
    these numbers, which shows whatever follows it (a softmax, an in-place ReLU, a second head). The
    numbers of a 1x1 convolution are averaged over the image. If no single layer qualifies, but the
    network returns the mean of several, their names are returned, joined by ``+``. The module runs
    in eval mode and is left unchanged.

    Args:
        module: the network.
        example: an input that it accepts, ``[n, channels, H, W]`` float; one or two images are
            enough.
        name: use this layer, if it qualifies.

    Raises:
        InputError: the network fails, no layer qualifies, several do, or ``name`` does not; the
            message lists what was found.
    """
    if name is not None:
        _check_kind(module, name)
    was_training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), kept_buffers(module):
            trace = _first_trace(module, example)
            _check_output(trace)
            last = [each for each in trace.candidates if _are_last(module, example, trace, [each])]
            factors = {} if last else _factors(module, example, trace)
            if len(factors) > 1 and _are_last(module, example, trace, [*factors]):
                last = [TOGETHER.join(factors)]
    finally:
        for part, training in was_training.items():
            part.training = training
    return _chosen(module, trace, last, factors, name)


def _chosen(
    module: nn.Module,
    trace: _Trace,
    last: list[str],
    factors: Mapping[str, float],
    name: str | None,
) -> str:
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
    scaled = [f"{factor:.4g} times the output of {each!r}" for each, factor in factors.items()]
    found = _listed(module, trace) + (f"; the output is {' plus '.join(scaled)}" * bool(scaled))
    raise InputError(
        "no linear layer gives the network's output; expected a network that ends in nn.Linear "
        "(or a 1x1 convolution and an average) and returns its logits z = W f + b, found "
        f"{found}; return the logits unchanged, and scale or normalise f before the layer"
    )


def _check_kind(module: nn.Module, names: str) -> None:
    parts = dict(module.named_modules())
    linears = [path for path, part in parts.items() if isinstance(part, nn.Linear)]
    listed = ", ".join(map(repr, linears)) or "none"
    for name in names.split(TOGETHER):
        if name not in parts:
            raise InputError(f"last layer {name!r}: no such layer; linear layers: {listed}")
        if not is_logit_layer(parts[name]):
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
            trace.modules.append(f"{name!r} ({type(part).__name__})")
            if is_logit_layer(part) and isinstance(output, Tensor):
                trace.calls[name] = trace.calls.get(name, 0) + 1
                trace.shapes[name] = tuple(output.shape)

        return hook

    # A linear layer may have submodules that compute its weight (weight norm, spectral norm).
    leaves = [
        (name, part)
        for name, part in module.named_modules()
        if is_logit_layer(part) or not any(part.children())
    ]
    handles = [part.register_forward_hook(note(name)) for name, part in leaves]
    try:
        trace.output = module(example)
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _are_last(module: nn.Module, example: Tensor, trace: _Trace, names: Sequence[str]) -> bool:
    """Whether replacing the outputs of layers makes the network return the mean of these."""
    probes = {name: _probe(trace, name, seed) for seed, name in enumerate(names)}
    output = _with(module, example, probes)
    expected = torch.stack([averaged(probe) for probe in probes.values()]).mean(0)
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return False
    is_one = len(names) == 1 and len(trace.shapes[names[0]]) == 2  # nothing is averaged
    rounding = 0 if is_one else 64 * torch.finfo(output.dtype).eps * float(expected.abs().max())
    return float((output - expected).abs().max()) <= rounding


def _factors(module: nn.Module, example: Tensor, trace: _Trace) -> dict[str, float]:
    """Layers whose output is added to the network's output, and the factor of each."""
    found: dict[str, float] = {}
    for name in trace.candidates:
        first, second = (_probe(trace, name, seed) for seed in (0, 1))
        outputs = [_with(module, example, {name: probe}) for probe in (first, second)]
        if not all(isinstance(each, Tensor) for each in outputs):
            continue
        change, expected = outputs[0] - outputs[1], averaged(first - second)
        factor = float((change * expected).sum() / (expected * expected).sum())
        if factor and (change - factor * expected).abs().max() <= 1e-3 * change.abs().max():
            found[name] = factor
    return found


def _probe(trace: _Trace, name: str, seed: int) -> Tensor:
    assert isinstance(trace.output, Tensor)  # checked by _check_output
    generator = torch.Generator().manual_seed(seed)
    return (10 * torch.randn(trace.shapes[name], generator=generator)).to(trace.output)


def _with(module: nn.Module, example: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
    """The network's output if layers have these outputs."""

    def replaced(output: Tensor, *_: object) -> Tensor:
        return output.clone()  # an in-place operation must not change what is compared with

    with ExitStack() as hooks:
        for name, output in outputs.items():
            layer = module.get_submodule(name)
            handle = layer.register_forward_hook(partial(replaced, output))
            hooks.callback(handle.remove)
        found: Tensor = module(example)
    return found


def _listed(module: nn.Module, trace: _Trace) -> str:
    found = []
    for name, n_calls in trace.calls.items():
        layer = module.get_submodule(name)
        times = f", called {n_calls} times" if n_calls > 1 else ""
        if isinstance(layer, nn.Linear):
            found.append(f"{name!r} Linear({layer.in_features}, {layer.out_features}){times}")
        elif isinstance(layer, nn.Conv2d) and name in trace.candidates:
            found.append(f"{name!r} Conv2d({layer.in_channels}, {layer.out_channels}){times}")
    layers = "; ".join(found[-MOST_LISTED:]) or "no linear layer"
    more = f"{len(found) - MOST_LISTED} others; " if len(found) > MOST_LISTED else ""
    after = ", ".join(trace.modules[-3:]) or "nothing"
    return f"{more}{layers}; the last modules called are {after}"
