import numpy as np
import pytest
from PIL import Image

from stages.data.resize import resize_rule, rgb_array, rgb_pixels


def test_grey_becomes_three_equal_channels() -> None:
    grey = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    rgb = rgb_array(grey, (4, 4))
    assert rgb.shape == (2, 4, 4, 3)
    assert all((rgb[..., channel] == grey).all() for channel in range(3))


def test_one_channel_axis_is_grey_too() -> None:
    grey = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    assert (rgb_array(grey[..., None], (4, 4)) == rgb_array(grey, (4, 4))).all()


def test_images_of_the_right_size_are_an_unchanged_writable_copy() -> None:
    images = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    images.flags.writeable = False
    copy = rgb_array(images, (4, 4))
    assert (copy == images).all()
    assert copy.flags.writeable


def test_resizing_equals_pil_bilinear() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    expected = Image.fromarray(images[1]).resize((6, 5), Image.Resampling.BILINEAR)
    assert (rgb_array(images, (5, 6))[1] == np.asarray(expected)).all()


def test_shrinking_averages_over_all_pixels() -> None:
    stripes = np.zeros((1, 64, 64), dtype=np.uint8)
    stripes[:, :, ::2] = 200
    shrunk = rgb_array(stripes, (8, 8))
    assert abs(int(shrunk[0, 4, 4, 0]) - 100) <= 2


def test_an_empty_range_gives_no_images() -> None:
    assert rgb_array(np.zeros((0, 8, 8), dtype=np.uint8), (4, 4)).shape == (0, 4, 4, 3)


def test_the_rule_names_both_sizes() -> None:
    assert resize_rule((32, 32), (32, 32)) == "none"
    assert resize_rule((28, 28), (32, 32)) == "bilinear-antialias 28x28->32x32"
    assert resize_rule(None, (32, 32)) == "bilinear-antialias ->32x32 (stretched)"


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "CMYK", "P", "LA"])
def test_files_of_every_eight_bit_mode_become_rgb(mode: str) -> None:
    assert rgb_pixels(Image.new("RGB", (5, 4)).convert(mode), (4, 5)).shape == (4, 5, 3)


def test_sixteen_bit_images_are_refused_rather_than_clipped() -> None:
    with pytest.raises(ValueError, match="more than 8 bits"):
        rgb_pixels(Image.new("I;16", (4, 4)), (4, 4))
