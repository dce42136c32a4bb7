"""Weather: snow, frost, fog and spatter on the lens."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stages.data.corruptions.blur import applied, both_axes, smeared
from stages.data.corruptions.draws import Generators, normals
from stages.data.corruptions.frost import frost_photographs
from stages.data.corruptions.pixels import Images, bytes_from_unit, unit_from_bytes
from stages.data.corruptions.plasma import plasma_fractal

PALE_TURQUOISE = np.array([175, 238, 238]) / 255
MUD_BROWN = np.array([63, 42, 20]) / 255


def fog(images: Images, generators: Generators, thickness: float, decay: float) -> Images:
    """Add a plasma fractal and rescale so that the brightest value is unchanged."""
    x = unit_from_bytes(images)
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    misty = x + thickness * plasma_fractal(generators, decay, images.shape[1:3])[..., None]
    return bytes_from_unit(misty * brightest / (brightest + thickness))


def frost(
    images: Images, generators: Generators, keep: float, weight: float, scale: float = 0.2
) -> Images:
    """Blend with a random crop of one of five photographs: ``keep * x + weight * frost``.

    The photographs are resized by ``scale``, and enlarged further if they are smaller than the
    image.
    """
    photographs = frost_photographs(scale, images.shape[1:3])
    crops = np.stack([_crop(photographs, images.shape[1:3], each) for each in generators])
    return np.clip(keep * images + weight * crops, 0, 255).astype(np.uint8)


def snow(
    images: Images,
    generators: Generators,
    mean: float,
    sigma: float,
    zoom: float,
    threshold: float,
    blur: tuple[int, float],
    keep: float,
) -> Images:
    """Whiten the image and add flakes that fall from two sides.

    Flakes are normal noise, zoomed, thresholded and smeared at an angle between -135 and -45
    degrees; the same layer rotated by 180 degrees is added as well. ``blur`` is the radius and the
    sigma of the smear.
    """
    size = images.shape[1:3]
    noise = mean + sigma * normals(generators, size)
    flakes = applied(both_axes(zoom, size), noise[..., None])[..., 0]
    flakes[flakes < threshold] = 0
    angles = [generator.uniform(-135, -45) for generator in generators]
    layer = unit_from_bytes(
        np.stack(
            [
                smeared(flake, *blur, angle)
                for flake, angle in zip(bytes_from_unit(flakes), angles, strict=True)
            ]
        )
    )[..., None]
    x = unit_from_bytes(images).astype(np.float32)
    grey = cv2.cvtColor(x.reshape(-1, size[1], 3), cv2.COLOR_RGB2GRAY).reshape(*x.shape[:3], 1)
    whitened = keep * x + (1 - keep) * np.maximum(x, grey * 1.5 + 0.5)
    return bytes_from_unit(whitened + layer + layer[:, ::-1, ::-1])


def spatter(
    images: Images,
    generators: Generators,
    mean: float,
    sigma: float,
    blur_sigma: float,
    threshold: float,
    strength: float,
    is_mud: bool,
) -> Images:
    """Add drops on the lens: water, which brightens the image, or mud, which covers it.

    The drops are where smoothed normal noise exceeds ``threshold``. ``strength`` is the opacity of
    water, and the width in pixels of the rim of mud.
    """
    noise = mean + sigma * normals(generators, images.shape[1:3])
    liquid = ndimage.gaussian_filter(noise, (0, blur_sigma, blur_sigma), mode="nearest")
    liquid[liquid < threshold] = 0
    x = unit_from_bytes(images)
    if is_mud:
        # float32, as in the released data: the cut-off at 0.8 must affect the same pixels.
        drops = (liquid > threshold).astype(np.float32)
        cover = ndimage.gaussian_filter(drops, (0, strength, strength), mode="nearest")
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return bytes_from_unit(x * (1 - cover) + MUD_BROWN * cover)
    water = np.stack([_water(drops) for drops in (liquid * 255).astype(np.uint8)])
    return bytes_from_unit(x + strength * water[..., None] * PALE_TURQUOISE)


def _water(liquid: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness of water, ``[H, W]`` in ``[0, 1]``: drops, embossed along their edges."""
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
    relief = cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, emboss)
    shine: NDArray[np.float32] = liquid * cv2.blur(relief, (3, 3)).astype(np.float32)
    brightest = shine.max()
    # The released code divides by zero if there are no drops; here the image then stays clean.
    return shine / brightest if brightest > 0 else shine


def _crop(
    photographs: Sequence[Images], size: tuple[int, ...], generator: np.random.Generator
) -> Images:
    """A random part of one of the photographs."""
    photograph = photographs[int(generator.integers(len(photographs)))]
    top = int(generator.integers(photograph.shape[0] - size[0]))
    left = int(generator.integers(photograph.shape[1] - size[1]))
    return photograph[top : top + size[0], left : left + size[1]]
