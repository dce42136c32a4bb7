"""The method for the parameters of a training."""

from stages.sensing.methods.augmix import augmix
from stages.sensing.methods.distorted import noise
from stages.sensing.methods.method import Method
from stages.sensing.methods.method_params import AugMix, MethodParams, Noise


def method_of(params: MethodParams, seed: int) -> Method:
    """The method with these parameters; random numbers come from the seed."""
    if isinstance(params, Noise):
        return noise(params, seed)
    if isinstance(params, AugMix):
        return augmix(params)
    return Method()
