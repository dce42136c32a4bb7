"""Whether a data set's labels mean the classes of a network: by name, not only by number."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made import make_in
from test_stages_data_classes import NUMBERS, write_folders

from stages.data.cifar import CLASS_NAMES
from stages.data.registry import open_source
from stages.data.source import ReaderSource
from stages.errors import InputError
from stages.sensing.card import ModelCard
from stages.sensing.class_check import check_classes, other_label, output_note
from stages.sensing.import_model import ImportModel
from stages.sensing.published import check_published_order, published_files
from stages.sensing.published import published as published_with
from stages.sensing.torchvision_ops import import_torchvision
from store.catalog import FeatureStore

DIGITS = tuple(str(digit) for digit in range(10))


def card_of(
    names: tuple[str, ...], family: str = "mine", n_classes: int | None = None
) -> ModelCard:
    return ModelCard(
        name="net",
        network="cnn2",
        n_classes=n_classes or len(names),
        class_names=names,
        image_size=8,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        last_layer="fc",
        feature_dim=4,
        family=family,
        M=None,
        weights_sha256="",
    )


def folders(place: Path, *names: str) -> ReaderSource:
    return open_source(write_folders(place / "photos", names))


def array(place: Path, n_classes: int, **more: list[str]) -> ReaderSource:
    images = np.zeros((n_classes, 8, 8), np.uint8)
    np.savez(place / "few.npz", images=images, labels=np.arange(n_classes), **more)
    return open_source(place / "few.npz")


def digits_c(place: Path) -> ReaderSource:
    """A corrupted copy of digits, as CIFAR-10-C is laid out; nothing names its classes."""
    folder = place / "digits-c"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(np.arange(10, dtype=np.uint8), 5))
    np.save(folder / "fog.npy", np.zeros((50, 32, 32, 3), np.uint8))
    return open_source(folder)


# Other classes


@pytest.mark.parametrize(
    "open_it",
    [
        lambda place: open_source("digits"),
        digits_c,
        lambda place: folders(place, *DIGITS),
        lambda place: array(place, 10, class_names=list(DIGITS)),
        lambda place: array(place, 10, class_names=[f"{name}s" for name in CLASS_NAMES]),
        lambda place: folders(place, *(name.title() for name in CLASS_NAMES)),
    ],
)
def test_other_names_are_refused_though_their_number_fits(tmp_path: Path, open_it) -> None:
    message = r"'net' has 10 classes \(airplane, automobile, bird, cat, \.\.\.\), .* has 10 "
    with pytest.raises(InputError, match=message) as refused:
        check_classes(open_it(tmp_path), card_of(CLASS_NAMES, "cifar10"))

    assert "choose another --model" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_named_classes_are_refused_for_a_model_of_digits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(0, 1, 2, 3, \.\.\.\), photos has 10 \(airplane"):
        check_classes(folders(tmp_path, *sorted(CLASS_NAMES)), card_of(DIGITS, "digits"))


def test_a_part_of_the_classes_needs_all_of_their_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --classes FILE with all of the model's classes"):
        check_classes(folders(tmp_path, "ant", "cat"), card_of(("ant", "bee", "cat")))


def test_more_numbers_than_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"7 classes .* has 10"):
        check_classes(array(tmp_path, 10), card_of(tuple("abcdefg")))


# Another order


def test_another_order_is_refused_with_the_first_classes_that_differ(tmp_path: Path) -> None:
    source = folders(tmp_path, *NUMBERS)

    with pytest.raises(InputError) as refused:
        check_classes(source, card_of(NUMBERS))

    assert str(refused.value) == (
        "model 'net' has the classes of photos in another order (1: '2', not '10'; 2: '3', not "
        "'11'; 3: '4', not '12'; and 8 more): give the model's order with --classes FILE, or, if "
        "that order is wrong, import the network again under another name"
    )


def test_the_order_of_the_model_fits(tmp_path: Path) -> None:
    folders(tmp_path, *NUMBERS)

    check_classes(open_source(tmp_path / "photos", classes=NUMBERS), card_of(NUMBERS))


# What fits


@pytest.mark.parametrize(
    ("open_it", "card"),
    [
        (lambda place: open_source("digits"), card_of(DIGITS, "digits")),
        (lambda place: open_source("digits"), card_of(DIGITS, "mnist")),
        (digits_c, card_of(DIGITS, "digits")),
        (lambda place: array(place, 10), card_of(CLASS_NAMES, "cifar10")),
        (lambda place: array(place, 9), card_of(CLASS_NAMES, "cifar10")),
        (lambda place: array(place, 9), card_of(DIGITS, "few")),
        (lambda place: folders(place, *DIGITS[:8]), card_of(DIGITS, "digits")),
        (lambda place: folders(place, "a", "b"), card_of(("0", "1"), "few")),
        (lambda place: folders(place, "a", "b"), card_of((), n_classes=2)),
        (lambda place: open_source("uniform-noise"), card_of(CLASS_NAMES, "cifar10")),
    ],
)
def test_equal_names_numbers_and_images_without_labels_fit(
    tmp_path: Path, open_it, card: ModelCard
) -> None:
    check_classes(open_it(tmp_path), card)


def test_numbers_of_an_old_model_are_names_if_its_family_is_known(
    tmp_path: Path,
) -> None:
    source = folders(tmp_path, *(f"class {digit}" for digit in DIGITS))

    check_classes(source, card_of(DIGITS, "few"))
    with pytest.raises(InputError, match="has 10 classes"):
        check_classes(source, card_of(DIGITS, "svhn"))


# Messages


@pytest.mark.parametrize(
    ("names", "is_new", "expected"),
    [(("ant", "bee"), True, "(0 ant, 1 bee)"), (("0", "1"), False, "(0 0, 1 1)")],
)
def test_an_assumed_order_is_noted(
    tmp_path: Path, names: tuple[str, ...], is_new: bool, expected: str
) -> None:
    note = output_note(folders(tmp_path, "ant", "bee"), card_of(names), is_new=is_new)

    assert note is not None
    assert expected in note


def test_nothing_is_noted_if_the_model_has_the_names_of_the_data_set(tmp_path: Path) -> None:
    found = folders(tmp_path, "ant", "bee")
    assert output_note(found, card_of(("ant", "bee")), is_new=False) is None


def test_numbers_are_noted_with_the_names_of_the_model(tmp_path: Path) -> None:
    note = output_note(array(tmp_path, 3), card_of(("ant", "bee", "cat")), is_new=False)

    assert note is not None
    assert "the classes of few (0 ant, 1 bee, 2 cat)" in note


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        ("ab", "ab", None),
        ("ab", "ba", "label 0 is 'a', found 'b'"),
        ("abc", "ab", "3 classes, found 2"),
        ("ab", "01", None),
        ("", "ab", None),
    ],
)
def test_the_first_label_that_differs_is_named(
    names: str, others: str, expected: str | None
) -> None:
    assert other_label([*names], [*others]) == expected


# Published weights


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that torchvision would have published for alexnet, with four classes."""
    content = b"weights"
    start = hashlib.sha256(content).hexdigest()[:8]
    (tmp_path / "renamed.pth").write_bytes(content)
    categories = ["tench", "crane", "dam", "crane"]
    mine, other = (
        SimpleNamespace(url=f"https://host/alexnet-{name}.pth", meta=meta, transforms=object)
        for name, meta in ((start, {"categories": categories}), ("00000000", {"categories": ["x"]}))
    )
    models = import_torchvision().models
    monkeypatch.setattr(models, "get_model_weights", lambda name: [other, mine])
    return tmp_path / "renamed.pth"


def test_a_published_file_is_known_by_its_content(published: Path, tmp_path: Path) -> None:
    (tmp_path / "own.pth").write_bytes(b"others")

    for network in ("torchvision:alexnet", "torchvision:alexnet,dropout=0.1"):
        found = published_with(network, published)
        assert found is not None
        assert found.class_names == ("tench", "crane", "dam", "crane")
        assert found.preprocessing is None
    assert published_with("torchvision:alexnet", tmp_path / "own.pth") is None
    assert published_with("torchvision:alexnet", tmp_path / "missing.pth") is None
    assert published_with("mine.py:alexnet", published) is None


def test_the_weights_of_every_architecture_are_named_by_their_content() -> None:
    models = import_torchvision().models

    urls = [each.url for name in models.list_models() for each in models.get_model_weights(name)]

    assert len(urls) > 100
    assert [url for url in urls if not re.search(r"[-_][0-9a-f]{8,}\.pth$", url)] == []


def test_own_weights_of_any_architecture_are_not_published(tmp_path: Path) -> None:
    (tmp_path / "own.pth").write_bytes(b"others")

    for name in ("nothing", "raft_small", "vgg16"):  # some files of these name no classes
        assert published_with(f"torchvision:{name}", tmp_path / "own.pth") is None


def test_the_preprocessing_of_every_classifier_is_known() -> None:
    models = import_torchvision().models
    classifiers = models.list_models(module=models)
    found = [each for name in classifiers for each in published_files(name).values()]

    assert len(found) > 100
    assert [each for each in found if each.preprocessing is None] == []


def test_classes_of_published_weights_have_their_labels(tmp_path: Path) -> None:
    categories = ("tench", "crane", "dam", "crane")
    source = folders(tmp_path, "crane", "dam", "n01440764", "tench")

    with pytest.raises(InputError) as refused:
        check_published_order(source, categories, "a.pth")
    assert str(refused.value) == (
        "a.pth: the published weights have class 'crane' at output 1, photos has it at label 0 (3 "
        "of 4 classes differ): give the classes in the order of the weights with --classes FILE"
    )
    order = ("tench", "n01440764", "dam", "crane")
    check_published_order(open_source(tmp_path / "photos", classes=order), categories, "a.pth")
    check_published_order(source, (), "a.pth")


def test_published_weights_are_checked_before_they_are_read(
    published: Path, tmp_path: Path
) -> None:
    write_folders(tmp_path / "photos", ("crane", "tench"))
    photos = str(tmp_path / "photos")
    stage = ImportModel(network="torchvision:alexnet", weights=str(published), dataset=photos)

    with pytest.raises(InputError, match="'crane' at output 1, photos has it at label 0"):
        make_in(FeatureStore(str(tmp_path / "store")), stage)
