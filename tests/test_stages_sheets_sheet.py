"""Contact sheets as pages and pictures, read back with a parser of HTML and with Pillow."""

import base64
import io
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from PIL import Image

from stages.sheets.sheet import CONSTANT, ZERO, Row, Sheet, Tile, map_tile
from stages.sheets.sheet_page import MAX_SIDE, sheet_html
from stages.sheets.sheet_picture import SIDE, sheet_pngs

RNG = np.random.default_rng(0)
SMALL = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
LARGE = np.full((400, 600, 3), 90, np.uint8)


class Seen(HTMLParser):
    """What a page contains: its pictures, tags, and text."""

    def __init__(self, page):
        super().__init__()
        self.pictures, self.tags, self.texts = [], set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))

    def handle_data(self, data):
        self.texts.append(data)


def sheet(*tiles, **options):
    return Sheet("A title", "About it.", [Row("row 3", ["f: cat .81"], tiles)], **options)


def pixels(picture):
    data = base64.b64decode(picture["src"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_page_shows_the_exact_pixels_of_a_small_picture():
    (picture,) = Seen(sheet_html(sheet(Tile("image", SMALL, "A digit")))).pictures

    assert picture["src"].startswith("data:image/png;")
    assert np.array_equal(pixels(picture), SMALL)
    assert picture["alt"] == "A digit"


def test_a_page_shrinks_large_pictures_and_keeps_their_shape():
    (picture,) = Seen(sheet_html(sheet(Tile("image", LARGE, "A wall")))).pictures

    assert picture["src"].startswith("data:image/jpeg;")
    assert pixels(picture).shape == (MAX_SIDE * 2 // 3, MAX_SIDE, 3)
    assert np.abs(pixels(picture).astype(int) - 90).max() <= 2


def test_a_page_refers_to_nothing_outside_it_and_runs_nothing():
    page = sheet_html(sheet(Tile("image", SMALL, "A digit"), colour_map="viridis"))

    assert not Seen(page).tags & {"script", "link", "iframe", "object"}
    assert re.findall(r"https?:|@import|url\(", page) == []


def test_text_of_files_cannot_become_part_of_the_page():
    hostile = '<script>alert("1")</script>'
    page = sheet_html(
        Sheet(hostile, hostile, [Row(hostile, [hostile], [Tile(hostile, SMALL, hostile)])])
    )

    assert "script" not in Seen(page).tags
    assert Seen(page).texts.count(hostile) == 6  # title twice, about, row, line, heading
    assert Seen(page).pictures[0]["alt"] == hostile


@pytest.mark.parametrize(
    ("values", "mark"), [(np.zeros((4, 4)), ZERO), (np.full((4, 4), 0.3), CONSTANT)]
)
def test_a_map_that_shows_nothing_says_so(values, mark):
    tile = map_tile("Why cat?", SMALL, values)

    assert tile.mark == mark
    assert mark in tile.text
    assert mark in Seen(sheet_html(sheet(tile))).texts


@pytest.mark.parametrize(
    ("place", "words"),
    [((0, 0), "at the top left"), ((3, 3), "in the centre"), ((3, 6), "at the right")],
)
def test_the_text_of_a_map_says_where_it_is_highest(place, words):
    values = np.zeros((7, 7))
    values[place] = 2

    assert map_tile("Why cat?", SMALL, values).text.endswith(f"highest {words}.")


def test_maps_are_scaled_to_their_own_range():
    values = RNG.random((4, 4))

    one, other = (map_tile("", SMALL, each).picture for each in (values, 5 * values + 3))

    assert np.array_equal(one, other)


def test_a_png_has_the_pictures_enlarged_pixel_by_pixel():
    (png,) = sheet_pngs(sheet(Tile("image", SMALL, "")))
    drawn = np.asarray(Image.open(io.BytesIO(png)))
    enlarged = SMALL.repeat(SIDE // 8, axis=0).repeat(SIDE // 8, axis=1)

    differences = cv2.matchTemplate(drawn, enlarged, cv2.TM_SQDIFF)

    assert differences.min() < 1e-3 * np.square(enlarged, dtype=float).sum()


def test_a_long_sheet_becomes_several_pngs():
    rows = [Row(f"row {at}", [], [Tile("image", SMALL, "")]) for at in range(5)]

    assert len(sheet_pngs(Sheet("Five", "", rows), rows=2)) == 3


def test_a_long_word_does_not_leave_its_column():
    word = "rhinotillexomania" * 5
    (plain,), (long,) = (sheet_pngs(sheet(Tile(heading, SMALL, ""))) for heading in ("image", word))
    plain, long = (Image.open(io.BytesIO(png)) for png in (plain, long))

    assert long.width == plain.width
    assert long.height > plain.height


def test_a_sheet_without_rows_has_a_page_and_no_png():
    empty = Sheet("Nothing", "", [])

    assert "Nothing" in Seen(sheet_html(empty)).texts
    assert sheet_pngs(empty) == []
