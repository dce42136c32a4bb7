import numpy as np
import pytest
from PIL import Image

from stages.data.resize import INTERPOLATIONS, Interpolation, Resize, resize_of
from stages.errors import InputError
from stages.sensing.torchvision_ops import import_torchvision


def test_grey_becomes_three_equal_channels() -> None:
    grey = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    rgb = Resize((4, 4)).arrays(grey)
    assert rgb.shape == (2, 4, 4, 3)
    assert all((rgb[..., channel] == grey).all() for channel in range(3))


def test_one_channel_axis_is_grey_too() -> None:
    grey = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    assert (Resize((4, 4)).arrays(grey[..., None]) == Resize((4, 4)).arrays(grey)).all()


def test_images_of_the_right_size_are_an_unchanged_writable_copy() -> None:
    images = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    images.flags.writeable = False
    copy = Resize((4, 4)).arrays(images)
    assert (copy == images).all()
    assert copy.flags.writeable


def test_resizing_equals_pil_bilinear() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    expected = Image.fromarray(images[1]).resize((6, 5), Image.Resampling.BILINEAR)
    assert (Resize((5, 6)).arrays(images)[1] == np.asarray(expected)).all()


def test_shrinking_averages_over_all_pixels() -> None:
    stripes = np.zeros((1, 64, 64), dtype=np.uint8)
    stripes[:, :, ::2] = 200
    shrunk = Resize((8, 8)).arrays(stripes)
    assert abs(int(shrunk[0, 4, 4, 0]) - 100) <= 2


def test_an_empty_range_gives_no_images() -> None:
    assert Resize((4, 4)).arrays(np.zeros((0, 8, 8), dtype=np.uint8)).shape == (0, 4, 4, 3)


def test_the_rule_names_both_sizes() -> None:
    assert Resize((32, 32)).rule((32, 32)) == "none"
    assert Resize((32, 32)).rule((28, 28)) == "bilinear-antialias 28x28->32x32"
    assert Resize((32, 32)).rule(None) == "bilinear-antialias ->32x32 (stretched)"


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "CMYK", "P", "LA"])
def test_files_of_every_eight_bit_mode_become_rgb(mode: str) -> None:
    assert Resize((4, 5)).pixels(Image.new("RGB", (5, 4)).convert(mode)).shape == (4, 5, 3)


def test_sixteen_bit_images_are_refused_rather_than_clipped() -> None:
    with pytest.raises(ValueError, match="more than 8 bits"):
        Resize((4, 4)).pixels(Image.new("I;16", (4, 4)))


SIZES = [(48, 40), (40, 48), (32, 32), (31, 64), (300, 451), (20, 9), (33, 32), (33, 47)]


def _torchvisions(
    image: Image.Image, resize: int | tuple[int, int], size: tuple[int, int], interpolation: str
) -> Image.Image:
    import_torchvision()
    from torchvision import transforms

    cropped: Image.Image = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(size),
        ]
    )(image)
    return cropped


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("resize", "size"),
    [(32, (32, 32)), (36, (32, 32)), (33, (30, 17)), ((40, 37), (32, 32)), ((32, 32), (32, 32))],
)
def test_pixels_equal_those_of_torchvisions_transforms(
    interpolation: Interpolation,
    resize: int | tuple[int, int],
    size: tuple[int, int],
) -> None:
    ours = Resize(size, resize, interpolation)
    for native in SIZES:
        pixels = np.random.default_rng(0).integers(0, 256, (*native, 3), dtype=np.uint8)
        theirs = np.asarray(_torchvisions(Image.fromarray(pixels), resize, size, interpolation))

        np.testing.assert_array_equal(ours.pixels(Image.fromarray(pixels)), theirs)
        np.testing.assert_array_equal(ours.arrays(pixels[None])[0], theirs)


@pytest.mark.parametrize("resize", [None, 32, 36, (40, 37), (32, 32)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_rule_of_a_plan_gives_the_same_pixels_again(
    resize: int | tuple[int, int] | None, interpolation: Interpolation
) -> None:
    ours = Resize((32, 32), resize, interpolation)
    for native in SIZES:
        pixels = np.random.default_rng(0).integers(0, 256, (1, *native, 3), dtype=np.uint8)
        for each in (native, None):
            again = resize_of(ours.rule(each), (32, 32))
            np.testing.assert_array_equal(again.arrays(pixels), ours.arrays(pixels))


@pytest.mark.parametrize("resize", [31, (32, 31), (31, 32)])
def test_a_crop_larger_than_the_resized_image_is_refused(resize: int | tuple[int, int]) -> None:
    with pytest.raises(InputError, match="crop 32x32: expected at most the resized image, which"):
        Resize((32, 32), resize)


def test_the_layout_decides_where_nothing_else_is_given() -> None:
    for stretches, resize in ((True, (32, 20)), (False, 32)):
        assert Resize((32, 20)).in_layout(stretches=stretches).resize == resize
    assert Resize((32, 20), 40).in_layout(stretches=True).resize == 40
