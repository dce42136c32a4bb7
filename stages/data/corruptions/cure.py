"""Exposure, after CURE-OR: a camera that took too much or too little light.

Source of the levels: Temel et al., "CURE-OR", ICMLA 2018, whose read-me gives the ends; the five
levels are spaced evenly between them. CIFAR-10-CURE itself was never released.
"""

import numpy as np
from PIL import Image, ImageEnhance

from stages.data.corruptions.pixels import Images


def exposure(images: Images, factor: float) -> Images:
    """Multiply every value by ``factor`` and clip, as Pillow's brightness enhancer does."""
    # The enhancer works on each value alone, so that the block can pass as one tall picture.
    tall = Image.fromarray(images.reshape(-1, *images.shape[2:]))
    return np.asarray(ImageEnhance.Brightness(tall).enhance(factor)).reshape(images.shape)
