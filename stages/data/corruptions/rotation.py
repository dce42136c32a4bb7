"""Rotation about the centre, after CIFAR-10-Rotations.

Source of the angles: the uncertainty experiments of the group (olivesgatech/Ramifications-HLU),
fifteen steps of 12 degrees. How their images were rotated is not stated; this is our reading.
"""

import numpy as np
from PIL import Image

from stages.data.corruptions.pixels import Images


def rotation(images: Images, angle_deg: float) -> Images:
    """Rotate each image counter-clockwise, bilinearly; uncovered corners are black."""
    bilinear = Image.Resampling.BILINEAR
    return np.stack(
        [np.asarray(Image.fromarray(image).rotate(angle_deg, bilinear)) for image in images]
    )
