"""UNIQUE and its introspective readings, against loops, autograd and MATLAB's definitions."""

import cmath
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from quality_pairs import noisy, photograph
from scipy import stats
from scipy.io import savemat

from stages.errors import InputError
from stages.quality import autoencoder, matlab
from stages.quality.autoencoder import (
    Autoencoder,
    Penalties,
    cost_and_gradient,
    initial,
    trained,
)
from stages.quality.autoencoder_files import content_of, decoded_weights, encoded, read_weights
from stages.quality.patches import (
    PATCH_VALUES,
    centred,
    halved,
    patches_of,
    whitened_patches,
    whitening,
    ygcr,
)
from stages.quality.unique import (
    decoder_gradient,
    paper_w1,
    plain_w2,
    sharpness_weights,
    surprisal_w2,
    unique,
)

PATCHES = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    small = initial(PATCH_VALUES, 12, np.random.default_rng(0))
    biases = np.random.default_rng(1).normal(scale=0.5, size=12)
    return Autoencoder(4 * small.w1, biases - 2, small.w2, small.b2)


@pytest.fixture(scope="module")
def patches() -> PATCHES:
    image = photograph(0, (80, 96))
    return whitened_patches(image), whitened_patches(noisy(image, 3))


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.5."""
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def slowly_halved_rows(image: np.ndarray) -> np.ndarray:
    n = -(-len(image) // 2)
    out = np.empty((n, *image.shape[1:]), np.uint8)
    for row in range(n):
        total = np.zeros(image.shape[1:])
        for source in range(2 * row - 3, 2 * row + 5):
            weight = cubic((source - (2 * row + 0.5)) / 2) / 2
            mirrored = -1 - source if source < 0 else source
            mirrored = 2 * len(image) - 1 - mirrored if mirrored >= len(image) else mirrored
            total += weight * image[mirrored]
        out[row] = np.clip(np.floor(total + 0.5), 0, 255)
    return out


@pytest.mark.parametrize("size", [(16, 24), (17, 31)])
def test_halving_is_that_of_a_loop_over_the_kernel(size: tuple[int, int]) -> None:
    image = photograph(2, size)
    slow = slowly_halved_rows(slowly_halved_rows(image).swapaxes(0, 1)).swapaxes(0, 1)
    np.testing.assert_array_equal(halved(image), slow)


def test_halving_differs_from_pillows_by_a_grey_level_or_two() -> None:
    image = photograph(3, (64, 48))
    pillow = np.asarray(Image.fromarray(image).resize((24, 32), Image.Resampling.BICUBIC))
    assert np.abs(halved(image).astype(int) - pillow)[4:-4, 4:-4].max() <= 2


def test_colours_have_the_studio_range_of_bt601() -> None:
    # MATLAB: rgb2ycbcr(uint8(cat(3, 255, 0, 0))) is 81, 90, 240.
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert ygcr(colours).tolist() == [[[81, 0, 240], [145, 255, 34], [41, 0, 110]]]


def test_patches_are_column_major_and_in_the_order_of_rows_of_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (19, 26, 3), np.uint8)
    slow = []
    for top in (0, 8):
        for left in (0, 8, 16):
            patch = image[top : top + 8, left : left + 8]
            slow.append(
                [patch[y, x, c] / 255 for c in range(3) for x in range(8) for y in range(8)]
            )
    np.testing.assert_allclose(patches_of(image), np.array(slow).T)


def test_whitening_is_that_of_the_definition() -> None:
    found = centred(patches_of(photograph(1, (64, 64))))
    u, s, _ = np.linalg.svd(found @ found.T / found.shape[1])
    np.testing.assert_allclose(whitening(found), u @ np.diag(1 / np.sqrt(s + 0.1)) @ u.T, atol=1e-9)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((64, 64, 3), 9, np.uint8), "all its patches are equal"),
        (photograph(0, (12, 64)), "6x32 pixels at half size, expected at least 8x8"),
        (photograph(0, (16, 16)), "all its patches are equal"),
    ],
)
def test_an_image_without_structure_or_patches_is_refused(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whitened_patches(image)


# The autoencoder


@pytest.mark.parametrize("block", [7, 4096])
def test_cost_and_gradient_are_those_of_autograd(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoder, "BLOCK_PATCHES", block)
    rng = np.random.default_rng(3)
    start = initial(20, 6, rng)
    start = Autoencoder(start.w1, rng.normal(size=6), start.w2, rng.normal(size=20))
    read = rng.normal(size=(20, 31))
    penalties = Penalties(0.1, 2.0, 0.03)
    w = {name: torch.tensor(each, requires_grad=True) for name, each in start.arrays().items()}
    x = torch.tensor(read)
    hidden = torch.sigmoid(w["w1"] @ x + w["b1"][:, None])
    error = w["w2"] @ hidden + w["b2"][:, None] - x
    mean = hidden.mean(dim=1)
    divergence = 0.1 * torch.log(0.1 / mean) + 0.9 * torch.log(0.9 / (1 - mean))
    decay = 0.03 / 2 * (w["w1"].square().sum() + w["w2"].square().sum())
    expected = error.square().sum() / (2 * 31) + 2.0 * divergence.sum() + decay
    expected.backward()

    cost, gradient = cost_and_gradient(start, read, penalties)

    assert cost == pytest.approx(expected.item(), rel=1e-12)
    for name, each in gradient.arrays().items():
        np.testing.assert_allclose(each, w[name].grad.numpy(), atol=1e-12)


def test_training_lowers_the_cost_and_is_the_same_again() -> None:
    rng = np.random.default_rng(4)
    read = rng.normal(size=(20, 4)) @ rng.normal(size=(4, 200))
    start = initial(20, 8, np.random.default_rng(0))
    ticks: list[int] = []
    found, cost = trained(start, read, Penalties(0.3, 0.1, 1e-4), 30, lambda: ticks.append(1))
    again, _ = trained(start, read, Penalties(0.3, 0.1, 1e-4), 30)

    assert cost < 0.5 * cost_and_gradient(start, read, Penalties(0.3, 0.1, 1e-4))[0]
    assert cost == cost_and_gradient(found, read, Penalties(0.3, 0.1, 1e-4))[0]
    assert content_of(found) == content_of(again)
    assert 0 < len(ticks) <= 30


def test_initial_weights_lie_in_their_range() -> None:
    found = initial(PATCH_VALUES, 400, np.random.default_rng(0))
    reach = np.sqrt(6 / (400 + 192 + 1))
    assert 0.99 * reach < np.abs(found.w1).max() <= reach
    assert not found.b1.any()
    assert not found.b2.any()


# Files


def test_weights_survive_a_file(model: Autoencoder, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(encoded(model))
    assert content_of(read_weights(tmp_path / "w.safetensors")) == content_of(model)


def test_the_matlab_file_is_read_in_column_major_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(size=(400, 192)), rng.normal(size=(192, 400))
    b1, b2 = rng.normal(size=400), rng.normal(size=192)
    theta = np.concatenate([w1.ravel("F"), w2.ravel("F"), b1, b2])
    savemat(tmp_path / "w.mat", {"W": w1, "b": b1[:, None], "optTheta": theta[:, None]})
    found = read_weights(tmp_path / "w.mat")
    for name, each in {"w1": w1, "w2": w2, "b1": b1, "b2": b2}.items():
        np.testing.assert_array_equal(getattr(found, name), each)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"W": np.zeros((400, 192))}, "found no optTheta but W"),
        ({"optTheta": np.zeros((9, 1))}, r"optTheta is \[9, 1\] float64, expected a vector"),
        ({"optTheta": np.full((154_192, 1), np.nan)}, "not finite"),
        (None, "expected a MATLAB file with optTheta"),
    ],
)
def test_another_matlab_file_is_refused(
    tmp_path: Path, content: dict[str, np.ndarray] | None, message: str
) -> None:
    path = tmp_path / "w.mat"
    path.write_bytes(b"nothing") if content is None else savemat(path, content)
    with pytest.raises(InputError, match=message):
        read_weights(path)


def test_a_matlab_file_that_unpacks_to_much_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.mat"
    savemat(path, {"optTheta": np.zeros((154_192, 1))}, do_compression=True)
    assert not read_weights(path).w1.any()
    monkeypatch.setattr(matlab, "MOST_BYTES", 2**20)  # 1.2 MB, which compress to a few kB
    with pytest.raises(InputError, match="an array unpacks to more than 1,048,576 bytes"):
        read_weights(path)


def test_a_matlab_file_with_an_array_twice_or_of_matlab_7_3_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.mat"
    savemat(path, {"optTheta": np.zeros((2, 1))})
    data = path.read_bytes()
    path.write_bytes(data + data[128:])
    with pytest.raises(InputError, match="found optTheta twice"):
        read_weights(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512))
    with pytest.raises(InputError, match="save it in MATLAB with -v7"):
        read_weights(path)


def test_weights_without_units_or_with_huge_values_are_refused(model: Autoencoder) -> None:
    none = Autoencoder(model.w1[:0], model.b1[:0], model.w2[:, :0], model.b2)
    with pytest.raises(InputError, match=r"w1 is \[0, 192\] float64, expected \[hidden units, 192"):
        decoded_weights(encoded(none), "weights x")
    huge = Autoencoder(model.w1 * 1e300, model.b1, model.w2, model.b2)
    with pytest.raises(InputError, match="w1 has values that are not finite or exceed 1,000,000"):
        decoded_weights(encoded(huge), "weights x")


def test_weights_of_other_shapes_are_refused(model: Autoencoder) -> None:
    wrong = Autoencoder(model.w1[:, :9], model.b1, model.w2, model.b2)
    with pytest.raises(InputError, match=r"w1 is \[12, 9\] float64, expected \[12, 192\]"):
        decoded_weights(encoded(wrong), "weights x")
    with pytest.raises(InputError, match="not a complete safetensors file"):
        decoded_weights(encoded(model)[:50], "weights x")


# The measures


def suppressed_hidden(model: Autoencoder, patch: np.ndarray) -> list[float]:
    found = [1 / (1 + np.exp(-(w @ patch + b))) for w, b in zip(model.w1, model.b1, strict=True)]
    return [0.0 if value < 0.025 else value for value in found]


def test_unique_is_a_loop_over_patches_and_units(model: Autoencoder, patches: PATCHES) -> None:
    slow = [
        [value for patch in each.T for value in suppressed_hidden(model, patch)] for each in patches
    ]
    assert 0 in slow[0]  # some are suppressed: ties
    assert unique(model, *patches) == pytest.approx(abs(stats.spearmanr(*slow)[0]), rel=1e-12)


def autograd_of(model: Autoencoder, read: np.ndarray, name: str) -> np.ndarray:
    """Gradient of the mean over patches of half the squared error."""
    w = {key: torch.tensor(each, requires_grad=True) for key, each in model.arrays().items()}
    x = torch.tensor(read)
    hidden = torch.sigmoid(w["w1"] @ x + w["b1"][:, None])
    error = w["w2"] @ hidden + w["b2"][:, None] - x
    (error.square().sum() / (2 * read.shape[1])).backward()
    gradient: np.ndarray = w[name].grad.numpy()
    return gradient


def test_the_paper_projects_on_the_first_layers_gradient(
    model: Autoencoder, patches: PATCHES
) -> None:
    gradient = autograd_of(model, patches[0], "w1")
    features = [(gradient @ each).ravel() for each in patches]
    assert paper_w1(model, *patches) == pytest.approx(abs(stats.spearmanr(*features)[0]), rel=1e-9)


def test_the_decoders_gradient_is_that_of_autograd(model: Autoencoder, patches: PATCHES) -> None:
    gradient = autograd_of(model, patches[0], "w2")
    np.testing.assert_allclose(decoder_gradient(model, patches[0]), gradient, atol=1e-12)
    features = [(gradient.T @ each).ravel() for each in patches]
    assert plain_w2(model, *patches) == pytest.approx(abs(stats.spearmanr(*features)[0]), rel=1e-9)


def test_sharp_units_count_twice() -> None:
    gradient = np.random.default_rng(0).uniform(-1, 1, (PATCH_VALUES, 3))  # kurtosis 1.8
    gradient[:64, 1] = 0.01
    gradient[5, 1] = 10  # a single peak over Y
    gradient[100, 2] = 50  # a peak over G
    assert sharpness_weights(gradient).tolist() == [1, 2, 1]


def test_the_surprisal_reading_is_a_loop_over_complex_logits(
    model: Autoencoder, patches: PATCHES
) -> None:
    gradient = autograd_of(model, patches[0], "w2")
    weights = [
        2 if stats.kurtosis(gradient[:64, j], fisher=False, bias=False) > 3 else 1
        for j in range(12)
    ]
    features = []
    for each in patches:
        logits = [[cmath.log(y / (1 - y)) for y in row] for row in (gradient.T @ each).tolist()]
        found = np.array([[w * abs(v) for v in r] for w, r in zip(weights, logits, strict=True)])
        angles = [[w * cmath.phase(v) for v in r] for w, r in zip(weights, logits, strict=True)]
        found = np.concatenate([found, np.array(angles)])
        features.append(np.where(found < 0.025, 0, found).ravel())
    expected = abs(stats.spearmanr(*features)[0])
    assert surprisal_w2(model, *patches) == pytest.approx(expected, rel=1e-9)


def test_equal_images_have_quality_one_and_noise_lowers_it(model: Autoencoder) -> None:
    image = photograph(5, (80, 80))
    read = whitened_patches(image)
    worse = [whitened_patches(noisy(image, level)) for level in (1, 4)]
    for compare in (unique, paper_w1, surprisal_w2, plain_w2):
        values = [compare(model, read, each) for each in (read, *worse)]
        assert values[0] == pytest.approx(1)
        assert values == sorted(values, reverse=True)
