"""Image files of every odd kind: the pixels that they become, or why their row fails."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from stages.data.decoding import PLAIN, Decoding, decoding_of
from stages.data.registry import SourceSpec, open_source
from stages.data.resize import Resize, resize_of
from stages.data.source import Rows, source_facts
from stages.errors import InputError

RGB = (200, 30, 60)
BLUE = (0, 0, 255)
SIZE = (8, 8)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def read(path: Path, decoding: Decoding = PLAIN) -> Rows:
    """The row of a file that is moved into a class folder."""
    place = path.parent / "set" / "test" / "a"
    place.mkdir(parents=True)
    path.rename(place / path.name)
    spec = SourceSpec(str(path.parent / "set"), "test", "", 8, decoding=decoding)
    return spec.open().read(0, 1)


def filled(mode: str, value: object) -> Image.Image:
    return Image.new(mode, SIZE, value)


def palette() -> Image.Image:
    return filled("RGB", RGB).convert("P", palette=Image.Palette.ADAPTIVE)


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("rgba.png", filled("RGBA", (*RGB, 0)), {}, RGB),
        ("rgba.webp", filled("RGBA", (*RGB, 255)), {"lossless": True}, RGB),
        ("la.png", filled("LA", (90, 10)), {}, (90, 90, 90)),
        ("grey.png", filled("L", 90), {}, (90, 90, 90)),
        ("bits.png", filled("1", 1), {}, (255, 255, 255)),
        ("palette.png", palette(), {}, RGB),
        ("transparent.png", palette(), {"transparency": 0}, RGB),
        ("palette.gif", palette(), {}, RGB),
        ("cmyk.jpg", filled("CMYK", (10, 200, 100, 50)), {"quality": 100}, (197, 44, 125)),
        ("cmyk.tif", filled("CMYK", (10, 200, 100, 50)), {}, (197, 44, 125)),
        ("ycbcr.tif", filled("YCbCr", (100, 128, 128)), {}, (100, 100, 100)),
    ],
)
def test_files_of_every_mode_become_rgb(
    tmp_path: Path, name: str, image: Image.Image, options: dict, expected: tuple[int, ...]
) -> None:
    image.save(tmp_path / name, **options)
    rows = read(tmp_path / name)
    assert rows.failed == {}
    assert rows.images[0, 3, 3].tolist() == list(expected)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_the_first_frame_of_an_animation_is_read(tmp_path: Path, name: str) -> None:
    frames = [filled("RGB", RGB), filled("RGB", BLUE)]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert read(tmp_path / name).images[0, 3, 3].tolist() == list(RGB)


@pytest.mark.parametrize(
    ("decoding", "upper", "lower"),
    [(PLAIN, (RGB, BLUE), (RGB, BLUE)), (Decoding(is_upright=True), (RGB, RGB), (BLUE, BLUE))],
)
def test_the_exif_orientation_is_applied_on_request(
    tmp_path: Path, decoding: Decoding, upper: tuple, lower: tuple
) -> None:
    image = Image.new("RGB", SIZE, BLUE)
    image.paste(RGB, (0, 0, 4, 8))  # the left half, which is the upper one once it is turned
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.png", exif=exif)
    (pixels,) = read(tmp_path / "photo.png", decoding).images
    assert pixels[[1, 1], [1, 6]].tolist() == [list(colour) for colour in upper]
    assert pixels[[6, 6], [1, 6]].tolist() == [list(colour) for colour in lower]


@pytest.mark.parametrize(
    ("name", "value", "dtype", "low_high", "expected"),
    [
        ("full.png", 51_400, np.uint16, (0, 65_535), 200),
        ("twelve.tif", 2_048, np.uint16, (0, 4_095), 128),
        ("clipped.tif", 5_000, np.uint16, (0, 4_095), 255),
        ("below.tif", -7, np.int32, (0, 100), 0),
        ("signed.tif", 0, np.int32, (-1_000, 1_000), 128),
        ("float.tif", 0.2, np.float32, (0, 1), 51),
    ],
)
def test_deeper_grey_is_scaled_by_its_range_and_refused_without(
    tmp_path: Path, name: str, value: float, dtype: type, low_high: tuple, expected: int
) -> None:
    Image.fromarray(np.full(SIZE, value, dtype)).save(tmp_path / name)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / name).write_bytes((tmp_path / name).read_bytes())
    rows = read(tmp_path / name, Decoding(value_range=low_high))
    assert rows.failed == {}
    assert rows.images[0, 3, 3].tolist() == [expected] * 3
    refused = read(tmp_path / "plain" / name)
    assert "has more than 8 bits a channel: give its values of black" in refused.failed[0]
    assert not refused.images.any()


def test_values_that_are_not_finite_fail(tmp_path: Path) -> None:
    Image.fromarray(np.full(SIZE, np.nan, np.float32)).save(tmp_path / "a.tif")
    rows = read(tmp_path / "a.tif", Decoding(value_range=(0, 1)))
    assert "values that are not finite" in rows.failed[0]


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_colour_of_16_bits_keeps_its_upper_bits(tmp_path: Path, name: str) -> None:
    deep = np.full((*SIZE, 3), RGB[::-1], np.uint16) * 257  # OpenCV writes blue first
    cv2.imwrite(str(tmp_path / name), deep)
    rows = read(tmp_path / name, Decoding(value_range=(0, 4_095)))  # without effect on colour
    assert rows.images[0, 3, 3].tolist() == list(RGB)


@pytest.mark.parametrize(
    ("name", "kept", "reason"),
    [("a.jpg", 1_500, "truncated"), ("a.png", 5_000, "truncated"), ("a.gif", 0, "identify")],
)
def test_truncated_files_are_failed_rows(tmp_path: Path, name: str, kept: int, reason: str) -> None:
    Image.fromarray(NOISE).save(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:kept])
    rows = read(tmp_path / name)
    assert reason in rows.failed[0]
    assert not rows.images.any()


@pytest.mark.parametrize("decoding", [PLAIN, Decoding(True), Decoding(True, (0, 4_095.5))])
@pytest.mark.parametrize("resize", [None, 9, (9, 10)])
def test_the_rule_in_a_plan_has_the_decoding(decoding: Decoding, resize: object) -> None:
    ours = Resize((8, 8), resize, decoding=decoding).in_layout(stretches=True)
    assert resize_of(ours.rule(None), (8, 8)) == ours
    assert decoding_of(ours.rule((8, 8))) == PLAIN  # arrays are not decoded
    assert (ours.rule(None) == Resize((8, 8), resize).rule(None)) == (decoding == PLAIN)


def test_the_plan_and_the_fingerprint_follow_the_decoding(tmp_path: Path) -> None:
    (tmp_path / "a.png").parent.mkdir(exist_ok=True)
    filled("RGB", RGB).save(tmp_path / "a.png")
    plain = open_source(tmp_path, image_size=8)
    turned = SourceSpec(str(tmp_path), "test", "", 8, decoding=Decoding(True)).open()
    assert turned.fingerprint() != plain.fingerprint()
    assert source_facts(turned)["resize"] == source_facts(plain)["resize"] + ", upright"


@pytest.mark.parametrize("low_high", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_a_range_without_extent_is_refused(low_high: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="expected LOW,HIGH with LOW below HIGH"):
        Decoding(value_range=low_high)
