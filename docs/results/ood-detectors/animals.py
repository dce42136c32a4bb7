"""Write pictures of animals that no class of CIFAR-10 has, for near out-of-distribution tests.

    apt-get download tuxpaint-stamps-default
    dpkg-deb -x tuxpaint-stamps-default_*.deb stamps
    python animals.py stamps animals

They are photographs that were cut out; here each lies in the middle of a white square.
"""

import argparse
from pathlib import Path

from PIL import Image

LEFT_OUT = ("amphibians", "birds", "cartoon", "cats", "deer", "dogs", "equines", "toys")
"""Parts of paths: classes of CIFAR-10 or relatives of them, drawings and toys."""


def main() -> None:
    """Write one file for each animal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="the unpacked package")
    parser.add_argument("out", type=Path, help="folder to write to")
    args = parser.parse_args()
    root = args.package / "usr/share/tuxpaint/stamps/animals"
    args.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(root.rglob("*.png")):
        name = path.relative_to(root)
        if not set(name.parts) & set(LEFT_OUT):
            square(Image.open(path).convert("RGBA")).save(args.out / "_".join(name.parts))


def square(image: Image.Image) -> Image.Image:
    """The animal without its transparent borders, on a white square."""
    animal = image.crop(image.getchannel("A").getbbox())
    canvas = Image.new("RGB", (max(animal.size),) * 2, "white")
    left, top = ((canvas.width - length) // 2 for length in animal.size)
    canvas.paste(animal, (left, top), animal)
    return canvas


if __name__ == "__main__":
    main()
