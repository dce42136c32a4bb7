"""Write four photographs that scikit-image ships, as PNG files of 192x192 pixels.

python photographs.py photographs
"""

import argparse
from pathlib import Path

from PIL import Image, ImageOps
from skimage import data

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def main() -> None:
    """Resize the shorter side to 192 pixels, and cut out the centre."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    for name in NAMES:
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        ImageOps.fit(image, (192, 192), Image.Resampling.LANCZOS).save(asked.out / f"{name}.png")


if __name__ == "__main__":
    main()
