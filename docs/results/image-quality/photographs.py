"""Write ten photographs that scikit-image and scikit-learn ship, as PNG files of 192x192 pixels.

python photographs.py photographs
"""

import argparse
from pathlib import Path

from PIL import Image, ImageOps
from skimage import data
from sklearn.datasets import load_sample_images

NAMES = (
    *("astronaut", "chelsea", "coffee", "rocket"),
    *("hubble_deep_field", "retina", "immunohistochemistry", "camera"),
)


def main() -> None:
    """Resize the shorter side to 192 pixels, and cut out the centre."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    images = {name: getattr(data, name)() for name in NAMES}
    more = load_sample_images()  # china and flower
    images |= {
        Path(name).stem: each for name, each in zip(more.filenames, more.images, strict=True)
    }
    for name, pixels in images.items():
        image = Image.fromarray(pixels).convert("RGB")
        ImageOps.fit(image, (192, 192), Image.Resampling.LANCZOS).save(asked.out / f"{name}.png")


if __name__ == "__main__":
    main()
