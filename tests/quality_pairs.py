"""Small data sets of image quality in their published layouts, and photographs of noise."""

from pathlib import Path

import numpy as np
from PIL import Image

Names = list[str]


def photograph(seed: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Smooth noise, ``uint8 [H, W, 3]``, which has structure at several scales."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(*size, 3))
    smooth = sum(gaussian_filter(noise, (s, s, 0)) * s for s in (1, 3, 8))
    return np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def noisy(image: np.ndarray, level: int, seed: int = 0) -> np.ndarray:
    """The image with noise that grows with the level."""
    noise = np.random.default_rng([seed, level]).normal(scale=8 * level, size=image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_tid2013(folder: Path, n_references: int = 2, n_levels: int = 5) -> Path:
    """TID2013: upper-case references but the last, lower-case images, mixed case in the list."""
    rows = []
    for index in range(1, n_references + 1):
        image = photograph(index)
        is_last = index == n_references
        name = f"i{index:02d}.bmp" if is_last else f"I{index:02d}.BMP"
        save(folder / "reference_images" / name, image)
        for level in range(1, n_levels + 1):
            save(folder / "distorted_images" / f"i{index:02d}_01_{level}.bmp", noisy(image, level))
            rows.append((6 - level + 0.1 * index, f"I{index:02d}_01_{level}.bmp"))
    (folder / "mos_with_names.txt").write_text("".join(f"{m:.5f} {n}\n" for m, n in rows))
    (folder / "mos.txt").write_text("".join(f"{mos:.5f}\n" for mos, _ in rows))
    (folder / "mos_std.txt").write_text("0.13000\n" * len(rows))
    return folder


def write_live_md(folder: Path) -> Path:
    """Both parts of LIVE-MD with two references, three images and four subjects each."""
    from scipy.io import savemat

    for part, place in (("Part 1", "blurjpeg"), ("Part 2", "blurnoise")):
        references, images = ["a.bmp", "b.bmp"], ["a_1.bmp", "b_1.bmp", "b_2.bmp"]
        for at, name in enumerate(references):
            save(folder / part / place / name, photograph(at))
        for name in images:
            save(folder / part / place / name, noisy(photograph("ab".index(name[0])), int(name[2])))
        lists = {"distimgs": cells(images), "refimgs": cells(references)}
        savemat(folder / part / "Imagelists.mat", {**lists, "ref4dist": np.array([[1], [2], [2]])})
        scores = np.array([[10.0, 20, 30], [12, 24, 36], [14, 28, 42], [16, 32, 48]])
        savemat(
            folder / part / "Scores.mat",
            {"DMOSscores": scores.mean(axis=0)[None], "dist_diffscores": scores},
        )
    return folder


def cells(texts: Names) -> np.ndarray:
    """A cell array of MATLAB, one text per row."""
    found = np.empty((len(texts), 1), object)
    found[:, 0] = texts
    return found


def write_csiq(folder: Path) -> Path:
    """CSIQ: folders by distortion, and a workbook with a heading above the table."""
    from openpyxl import Workbook

    image = photograph(3)
    save(folder / "src_imgs" / "1600.png", image)
    save(folder / "dst_imgs" / "awgn" / "1600.AWGN.1.png", noisy(image, 1))
    save(folder / "dst_imgs" / "jpeg2000" / "1600.jpeg2000.2.png", noisy(image, 2))
    book = Workbook()
    sheet = book.create_sheet("all_by_image")
    sheet.append([None, None, None, "DMOS of all images"])
    sheet.append([None] * 3 + ["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"])
    sheet.append([None] * 3 + [1600, 1, "noise", 1, 0.061, 0.062])
    sheet.append([None] * 3 + [1600, 3, "jpeg 2000", 2, 0.1, 0.5])
    book.save(folder / "csiq.DMOS.xlsx")
    return folder


def write_kadid10k(folder: Path) -> Path:
    """KADID-10k: one folder of images, and a table of means and variances."""
    image = photograph(4)
    save(folder / "images" / "I01.png", image)
    for level in (1, 2):
        save(folder / "images" / f"I01_07_{level:02d}.png", noisy(image, level))
    (folder / "dmos.csv").write_text(
        "dist_img,ref_img,dmos,var\nI01_07_01.png,I01.png,4.57,0.49\nI01_07_02.png,I01.png,3,0.25\n"
    )
    return folder
