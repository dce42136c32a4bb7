import numpy as np
from sklearn.datasets import load_digits

from stages.data.registry import open_source


def test_the_split_is_fixed_and_covers_all_images() -> None:
    train, test = open_source("digits", "train"), open_source("digits", "test")
    assert (train.n_rows, test.n_rows) == (1_297, 500)


def test_the_test_set_has_fifty_images_of_each_class() -> None:
    labels = open_source("digits", "test").read(0, 500).columns["label"]
    assert np.bincount(labels).tolist() == [50] * 10


def test_the_test_set_is_the_last_fifty_of_each_class_in_order() -> None:
    digits = load_digits()
    last = np.sort(np.concatenate([np.flatnonzero(digits.target == k)[-50:] for k in range(10)]))
    images = open_source("digits", "test", image_size=8).read(0, 500).images
    assert (images[..., 0] == np.rint(digits.images[last] * 255 / 16)).all()


def test_values_reach_from_black_to_white() -> None:
    images = open_source("digits", "train", image_size=8).read(0, 1_297).images
    assert (images.min(), images.max()) == (0, 255)


def test_resizing_is_recorded_as_a_rule() -> None:
    source = open_source("digits")
    assert source.read(3, 7).images.shape == (4, 32, 32, 3)
    assert source.resize == "bilinear-antialias 8x8->32x32"
    assert open_source("digits", image_size=8).resize == "none"


def test_train_and_test_have_other_fingerprints() -> None:
    assert open_source("digits", "train").fingerprint() != open_source("digits").fingerprint()
