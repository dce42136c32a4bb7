"""The method for the parameters of a training."""

from dataclasses import replace
from functools import partial

from stages.sensing.attacked import Attacked
from stages.sensing.methods.adversarial import adversarial
from stages.sensing.methods.augmix import augmix
from stages.sensing.methods.distorted import noise
from stages.sensing.methods.method import Method, cross_entropy
from stages.sensing.methods.method_params import Adversarial, AugMix, Noise, SimClr
from stages.sensing.methods.simclr import simclr
from stages.sensing.train_params import TrainParams


def method_of(params: TrainParams, device: str, attacked: Attacked | None) -> Method:
    """The method of a training; random numbers come from its seed.

    Args:
        params: the parameters of the training.
        device: device of the training.
        attacked: the model that a method attacks, if it does.
    """
    found = _method_of(params, device, attacked)
    if params.label_smoothing:
        return replace(found, loss=partial(cross_entropy, smoothing=params.label_smoothing))
    return found


def _method_of(params: TrainParams, device: str, attacked: Attacked | None) -> Method:
    method = params.method
    if isinstance(method, Adversarial):
        return adversarial(method, attacked, device, params.precision)
    if isinstance(method, Noise):
        return noise(method, params.seed)
    if isinstance(method, AugMix):
        return augmix(method)
    if isinstance(method, SimClr):
        return simclr(method)
    return Method()
