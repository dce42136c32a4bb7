"""Write photographs that Debian's package tuxpaint-stamps-default ships, with ImageNet's classes.

    apt-get download tuxpaint-stamps-default
    dpkg-deb -x tuxpaint-stamps-default_*.deb stamps
    python photographs.py stamps photographs

They are objects cut out of photographs; here they lie on white, as JPEG files of their own sizes.
``classes.txt`` lists the names of ImageNet's classes as torchvision has them, in the order of the
labels, and ``photographs.csv`` is a manifest of the files whose class ImageNet has.
"""

import argparse
import csv
from collections import Counter
from pathlib import Path

from PIL import Image

from stages.sensing.torchvision_ops import import_torchvision

SIDE = 100
"""Smaller pictures are left out: they would be enlarged to more than twice their size."""

NAMES = {
    "747": "airliner", "apple_granny_smith": "Granny Smith", "badger": "badger",
    "basketball": "basketball", "bear": "brown bear", "beaver": "beaver", "bee": "bee",
    "binoculars": "binoculars", "bison": "bison", "broccoli": "broccoli",
    "Brown_slug": "slug", "camel": "Arabian camel", "camera_35mm": "reflex camera",
    "candle": "candle", "cello": "cello", "chimp": "chimpanzee", "clownfish": "anemone fish",
    "corn": "corn", "cow": "ox", "dingo": "dingo", "drake": "drake", "dromedary": "Arabian camel",
    "drum_tomtom_floor": "drum", "echidna": "echidna", "elephant": "African elephant",
    "european-bear": "brown bear", "firetruck": "fire engine", "fly": "fly", "fox": "red fox",
    "gander": "goose", "garbagetruck": "garbage truck", "gorilla": "gorilla",
    "grasshopper": "grasshopper", "guitar_classical": "acoustic guitar",
    "guitar_electric": "electric guitar", "hammer": "hammer", "hen": "hen",
    "hippopotamus": "hippopotamus", "iguana": "common iguana", "indycar": "racer",
    "koala": "koala", "lemon": "lemon", "lion": "lion", "lion-2": "lion", "lionfish": "lionfish",
    "lobster": "American lobster", "magpie": "magpie", "mantis": "mantis", "marmot": "marmot",
    "orange_seville": "orange", "orca": "killer whale", "ostrich": "ostrich", "otter": "otter",
    "peacock": "peacock", "pelican": "pelican", "penguin": "king penguin", "pig": "hog",
    "pink_flamingo": "flamingo", "pink_tricycle": "tricycle", "pizza": "pizza", "ram": "ram",
    "rooster": "cock", "sea_lion": "sea lion", "soccer": "soccer ball", "sombrero": "sombrero",
    "sportscar2": "sports car", "squirrel": "fox squirrel", "stethoscope": "stethoscope",
    "stop": "street sign", "stoplight_01_red": "traffic light",
    "stoplight_02_yellow": "traffic light", "stoplight_03_green": "traffic light",
    "Strawberry2": "strawberry", "syringe": "syringe", "t_sock": "sock", "tiger": "tiger",
    "tiger_sumatran": "tiger", "tucan": "toucan", "vulture": "vulture",
    "wheel_tractor": "tractor", "wildboar": "wild boar", "wombat": "wombat", "zebra": "zebra",
}  # fmt: skip
"""File without its suffix -> name of the class."""


def main() -> None:
    """Write the files and the lists."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stamps", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    (asked.out / "images").mkdir(parents=True)
    classes = import_torchvision().models.ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    (asked.out / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    kept = Counter[str]()
    with (asked.out / "photographs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for path in sorted(asked.stamps.rglob("*.png")):
            if "cartoon" in path.parts or path.stem not in NAMES:
                continue
            with Image.open(path) as stamp:
                if max(stamp.size) < SIDE or kept[path.stem]:
                    continue
                on_white = Image.new("RGBA", stamp.size, "white")
                on_white.alpha_composite(stamp.convert("RGBA"))
            kept[path.stem] += 1
            on_white.convert("RGB").save(asked.out / "images" / f"{path.stem}.jpg", quality=95)
            rows.writerow([f"images/{path.stem}.jpg", classes.index(NAMES[path.stem])])
    print(f"{sum(kept.values())} photographs of {len(set(map(NAMES.get, kept)))} classes")


if __name__ == "__main__":
    main()
