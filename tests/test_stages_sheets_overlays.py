"""Colours and overlays, compared with torch, OpenCV and the colour space CIELAB."""

import cv2
import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from stages.sheets.colour_maps import COLOUR_MAPS
from stages.sheets.overlays import coloured, dimmed, overlay, resized

PERCEPTUAL = [name for name in COLOUR_MAPS if name != "jet"]
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((7, 7), (224, 224)), ((2, 5), (9, 11)), ((1, 1), (4, 4)), ((8, 8), (3, 5))],
)
def test_maps_are_resized_as_torch_does_it_without_aligned_corners(shape, wanted):
    values = RNG.random(shape)

    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], size=wanted, mode="bilinear", align_corners=False
    )

    assert np.abs(resized(values, *wanted) - expected[0, 0].numpy()).max() < 1e-6


@pytest.mark.parametrize("name", PERCEPTUAL)
def test_lightness_rises_evenly_along_a_perceptual_colour_map(name):
    lightness = rgb2lab(coloured(np.linspace(0, 1, 256), name))[:, 0]
    steps = np.diff(lightness[::16])

    assert steps.min() > 0.5 * steps.mean()


def test_lightness_falls_along_jet():
    lightness = rgb2lab(coloured(np.linspace(0, 1, 256), "jet"))[:, 0]

    assert np.diff(lightness[::16]).min() < -5


def test_the_overlay_in_jet_is_that_of_the_paper():
    values = RNG.random((20, 30))

    heat = cv2.cvtColor(
        cv2.applyColorMap(np.rint(255 * values).astype(np.uint8), cv2.COLORMAP_JET),
        cv2.COLOR_BGR2RGB,
    )
    total = heat / 255 + IMAGE / 255

    assert np.abs(overlay(IMAGE, values, "jet") - 255 * total / total.max()).max() <= 0.51


def test_an_overlay_has_the_hues_of_the_map_alone():
    grey = IMAGE[..., :1].repeat(3, axis=2)

    assert np.array_equal(
        overlay(grey, np.zeros((2, 2))),
        np.rint(0.62 * coloured(np.zeros((20, 30)), "viridis") + 0.38 * grey).astype(np.uint8),
    )


@pytest.mark.parametrize("colour_map", COLOUR_MAPS)
@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_images_can_be_overlaid(colour_map, level):
    image = np.full((5, 4, 3), level, np.uint8)

    shown = overlay(image, RNG.random((2, 2)), colour_map)

    assert shown.shape == image.shape
    assert shown.dtype == np.uint8


def test_a_dimmed_image_is_grey_with_half_the_contrast():
    shown = dimmed(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))

    assert shown.tolist() == [[[64] * 3, [192] * 3]]
