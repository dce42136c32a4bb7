"""Predictions for image files equal those from stored features and of the exported program."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made import extract, make_in
from PIL import Image
from small_data import CLASSES, train_small, write_image_folder
from torch import Tensor, nn

from pipeline.journal import Journal
from stages.data.listing import in_words
from stages.data.registry import SourceSpec
from stages.errors import DataNotFoundError, InputError
from stages.introspection.fit_laplace import FitLaplace
from stages.introspection.fit_neighbours import FitNeighbours
from stages.introspection.fit_temperature import FitTemperature
from stages.introspection.head import Head
from stages.introspection.head_spec import HeadSpec
from stages.introspection.predictors import predictors
from stages.introspection.train_head import TrainHead
from stages.prediction.introspective import (
    FACTS_FILE,
    Introspective,
    export,
    open_f,
    open_introspective,
)
from stages.prediction.predict import images_in, predict
from stages.reflection.extraction import Extraction
from stages.sensing.model import Sensing, describe
from stages.sensing.models import choose_model, weights_path
from store.catalog import FeatureStore
from store.featureset import FeatureSet

N_IMAGES = 24
NAMES = sorted(CLASSES)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as files in ``images``; a store with a model, its features, and heads of all kinds."""
    folder = tmp_path_factory.mktemp("home")
    write_image_folder(folder / "images", N_IMAGES)
    for path in sorted((folder / "images" / "test").rglob("*.png"))[:6]:
        Image.open(path).resize((45, 37)).save(path)  # sizes that have to be brought to the model's
    store = FeatureStore(str(folder / "store")).prepare()
    train_small(store, folder / "images")
    train_small(store, folder / "images", name="other", seed=1)
    found = extracted(folder, "train")
    for reads in ("reflection", "features", "features+logits"):
        head = TrainHead(
            features=found.name,
            name=f"h-{reads}",
            layers=(8,),
            reads=reads,
            epochs=20,
            weight_decay=0.0,
            batch_size=8,
            seeds=(0, 7),
        )
        make_in(store, head)
    make_in(store, FitTemperature(features=found.name, name="temperature"))
    make_in(store, FitNeighbours(features=found.name, name="neighbours", k=3))
    for structure in ("full", "kfac"):
        make_in(store, FitLaplace(features=found.name, structure=structure, name=structure))
    return folder


def journal(store: FeatureStore) -> Journal:
    return Journal.of(store.location, ["test"])


def store_of(home: Path) -> FeatureStore:
    return FeatureStore(str(home / "store"))


def extracted(home: Path, split: str) -> FeatureSet:
    store, source = store_of(home), SourceSpec(str(home / "images"), split, "")
    card = choose_model(store, "images", "cnn2")
    stage = Extraction(replace(source, image_size=card.input), card, weights_path(store, "cnn2"))
    return extract(store, stage)


def test_f_alone_predicts_as_beside_a_head(home: Path) -> None:
    files, _ = images_in([home / "images" / "test"])
    alone = predict(open_f(store_of(home), "cnn2"), files)
    beside = predict(open_introspective(store_of(home), "temperature"), files)

    pd.testing.assert_frame_equal(alone, beside.drop(columns=["T_label", "T_confidence"]))


HEADS = ["h-reflection", "h-features", "h-features+logits", "temperature", "full", "kfac"]


@pytest.mark.parametrize("head", HEADS)
def test_predictions_equal_those_of_the_stored_features(home: Path, head: str) -> None:
    store, found = store_of(home), extracted(home, "test")
    samples = found.samples()
    files = [home / "images" / name for name in samples["sample_id"]]
    introspective = open_introspective(store, head)
    frame, label = predict(introspective, files), introspective.label
    features, logits = found.read("features"), found.read("logits")
    expected = next(iter(predictors(store, store.artifact("head", head)).values()))
    of_h = expected(features, logits)
    assert frame["status"].tolist() == ["ok"] * N_IMAGES
    assert frame["f_label"].tolist() == [NAMES[label] for label in samples["prediction"]]
    assert frame[f"{label}_label"].tolist() == [NAMES[at] for at in of_h.argmax(axis=1)]
    np.testing.assert_allclose(frame["f_confidence"], samples["confidence"], atol=1e-5)
    np.testing.assert_allclose(frame[f"{label}_confidence"], of_h.max(axis=1), atol=1e-5)


def test_pixels_and_batches_as_in_extraction_give_the_same_bits(home: Path) -> None:
    samples = extracted(home, "test").samples()
    files = [home / "images" / name for name in samples["sample_id"]]
    frame = predict(open_introspective(store_of(home), "h-reflection"), files)
    np.testing.assert_array_equal(frame["f_confidence"], samples["confidence"])


def test_the_requested_seed_predicts(home: Path) -> None:
    store, files = store_of(home), images_in([home / "images" / "test"])[0]
    seeds = predictors(store, store.artifact("head", "h-reflection"))
    found = extracted(home, "test")
    order = [str(home / "images" / name) for name in found.samples()["sample_id"]]
    for seed, of_seed in seeds.items():
        frame = predict(open_introspective(store, "h-reflection", seed=seed), files)
        expected = of_seed(found.read("features"), found.read("logits")).max(axis=1)
        of_file = dict(zip(order, expected, strict=True))
        wanted = [of_file[image] for image in frame["image"]]
        np.testing.assert_allclose(frame["H_confidence"], wanted, atol=1e-5)


def test_predictions_do_not_depend_on_the_batch(home: Path) -> None:
    introspective = open_introspective(store_of(home), "h-reflection")
    files = images_in([home / "images" / "test"])[0]
    one, all_at_once = (predict(introspective, files, batch_rows=n) for n in (1, 100))
    assert one["H_label"].tolist() == all_at_once["H_label"].tolist()
    np.testing.assert_allclose(one["H_confidence"], all_at_once["H_confidence"], atol=1e-5)


def test_a_file_that_is_not_an_image_is_a_failed_row(home: Path, tmp_path: Path) -> None:
    text = tmp_path / "a: note.png"
    text.write_text("not an image")
    good = images_in([home / "images" / "test"])[0][0]
    frame = predict(open_introspective(store_of(home), "h-reflection"), [good, text, good])
    assert frame["status"][1].startswith("cannot identify image file")
    assert frame["H_label"].isna().tolist() == [False, True, False]
    assert np.isnan(frame["f_confidence"][1])
    assert frame["status"].tolist()[::2] == ["ok", "ok"]
    assert frame["H_confidence"][0] == pytest.approx(frame["H_confidence"][2], abs=1e-6)


def test_folders_are_searched_for_images_by_name(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a.jpg", "b/notes.txt", ".hidden/x.png", "b/.y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    files, left_out = images_in([tmp_path])
    assert files == [tmp_path / "a.jpg", tmp_path / "b/2.PNG"]
    assert in_words(left_out) == (
        f"2 hidden ({tmp_path}/.hidden/, {tmp_path}/b/.y.png), "
        f"1 not images by name ({tmp_path}/b/notes.txt)"
    )
    assert images_in([tmp_path / "b/notes.txt"]) == ([tmp_path / "b/notes.txt"], ())


@pytest.mark.parametrize("place", ["nothing", "empty", "~no-such-user"])
def test_a_place_without_images_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataNotFoundError, match=place):
        images_in([place if place.startswith("~") else tmp_path / place])


def test_a_head_of_another_model_is_refused(home: Path) -> None:
    with pytest.raises(InputError, match="belongs to model 'cnn2'"):
        open_introspective(store_of(home), "h-reflection", model="other")


def test_neighbours_cannot_be_a_module(home: Path) -> None:
    with pytest.raises(InputError, match="reads its training set"):
        open_introspective(store_of(home), "neighbours")


@pytest.mark.parametrize(("head", "seed"), [("h-reflection", 3), ("temperature", 3)])
def test_a_seed_that_a_head_does_not_have_is_refused(home: Path, head: str, seed: int) -> None:
    with pytest.raises(InputError, match="seed"):
        open_introspective(store_of(home), head, seed=seed)


@pytest.mark.parametrize("head", ["h-reflection", "temperature"])
def test_the_exported_program_gives_the_same_logits(home: Path, head: str, tmp_path: Path) -> None:
    introspective = open_introspective(store_of(home), head)
    assert export(introspective, tmp_path / "both.pt2") < 1e-5
    files = {FACTS_FILE: ""}
    program = torch.export.load(tmp_path / "both.pt2", extra_files=files).module()
    for n_images in (1, 4, 9):
        images = torch.randint(0, 256, (n_images, 32, 32, 3), dtype=torch.uint8)
        for ours, theirs in zip(introspective(images), program(images), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    facts = json.loads(files[FACTS_FILE])
    assert facts["head"] == head
    assert facts["card"]["class_names"] == NAMES
    assert [path.name for path in tmp_path.iterdir()] == ["both.pt2"]


class Moody(nn.Module):
    """A network whose path depends on the values that go through it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean(dim=(2, 3))
        logits: Tensor = self.last(means if means.sum() > 0 else -means)
        return logits


def test_a_network_that_decides_by_values_predicts_and_is_not_exported(
    home: Path, tmp_path: Path
) -> None:
    card = describe(
        Moody(), name="moody", network_name="cnn2", class_names=(), image_size=8, family="images"
    )
    head = Head(HeadSpec(n_classes=3, feature_dim=3, layers=(), M=1.0))
    introspective = Introspective(Sensing(Moody(), card), head, {})
    files = images_in([home / "images" / "test"])[0]
    assert predict(introspective, files)["status"].eq("ok").all()
    with pytest.raises(InputError, match="cannot be exported") as refused:
        export(introspective, tmp_path / "moody.pt2")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
