"""Exposure after CURE-OR: images that are over- or underexposed.

Source of the levels: Temel et al., "CURE-OR", ICMLA 2018, whose read-me gives the extremes; the
five levels are evenly spaced between them. CIFAR-10-CURE itself was never released.
"""

import numpy as np
from PIL import Image, ImageEnhance

from stages.data.corruptions.pixels import Images


def exposure(images: Images, factor: float) -> Images:
    """Multiply every value by ``factor`` and clip, as Pillow's brightness enhancer does."""
    # The enhancer treats each value independently, so the block can be passed as one tall image.
    tall = Image.fromarray(images.reshape(-1, *images.shape[2:]))
    return np.asarray(ImageEnhance.Brightness(tall).enhance(factor)).reshape(images.shape)
