"""The network that active learning trained becomes a model of the store."""

from pathlib import Path

import numpy as np
import pytest
from made import make_in
from PIL import Image
from small_data import digits, write_npz_set

from stages.active_learning import rounds
from stages.active_learning.active_learn import ActiveLearn
from stages.active_learning.keep_model import KeepModel
from stages.active_learning.lesson import Factors
from stages.errors import InputError
from stages.reflection.extract import Extract
from stages.sensing.models import model_card
from store.catalog import FeatureStore
from store.errors import NotFoundError

SMALL = {"network": "cnn2", "image_size": 8, "epochs": 2}
ROUNDS = {"rounds": 2, "query": 10, "start": 10}
N_POOL = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark, photographs without labels, and labels of some of these."""
    folder = tmp_path_factory.mktemp("learned")
    write_npz_set(folder / "few", N_POOL, 20)
    images, labels = digits(12)
    (folder / "photos").mkdir()
    for row, image in enumerate(images):
        Image.fromarray(image).save(folder / "photos" / f"{row:02d}.png")
    lines = [f"{row:02d}.png,{'odd' if labels[row] % 2 else 'even'}" for row in range(6)]
    (folder / "labels.csv").write_text("\n".join(["sample_id,label", *lines]))
    return folder


@pytest.fixture(scope="module")
def store(place: Path) -> FeatureStore:
    return FeatureStore(str(place / "store"))


def test_its_features_and_logits_are_those_of_the_last_round(
    place: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Factors] = []
    compute = rounds.factors_of
    monkeypatch.setattr(
        rounds, "factors_of", lambda *given: seen.append(compute(*given)) or seen[-1]
    )
    few = str(place / "few")
    curves = make_in(store, ActiveLearn(dataset=few, strategies=("margin",), **SMALL, **ROUNDS))
    n_before = len(seen)
    kept = make_in(store, KeepModel(result=curves.name, name="learned"))
    features = make_in(store, Extract(dataset=few, model="learned", split="train")).output

    of_pool = [each for each in seen if len(each.logits) == N_POOL]
    assert len(of_pool) == ROUNDS["rounds"]
    assert len(seen) == n_before
    assert np.array_equal(features.read("features"), of_pool[-1].features)
    assert np.array_equal(features.read("logits"), of_pool[-1].logits)
    assert model_card(kept.output).class_names == tuple("0123456789")


def test_a_request_for_labels_has_a_network_once_two_classes_are_labelled(
    place: Path, store: FeatureStore
) -> None:
    ask = {"dataset": str(place / "photos"), "ask": 3, **SMALL}
    drawn = make_in(store, ActiveLearn(**ask, out=str(place / "first")))
    with pytest.raises(InputError, match="no labels of two classes yet"):
        make_in(store, KeepModel(result=drawn.name))

    labels = (str(place / "labels.csv"),)
    chosen = make_in(store, ActiveLearn(**ask, labels=labels, out=str(place / "second")))
    model = make_in(store, KeepModel(result=chosen.name))
    assert model.name == chosen.name
    assert model_card(model.output).class_names == ("even", "odd")


def test_a_result_without_one_network_is_refused(place: Path, store: FeatureStore) -> None:
    one_round = {**SMALL, "epochs": 1, "rounds": 1, "start": 10, "strategies": ("random",)}
    several = make_in(store, ActiveLearn(dataset=str(place / "few"), seeds=(0, 1), **one_round))
    with pytest.raises(InputError, match=r"2 runs, each with a network .* few-active-random-f-1-"):
        make_in(store, KeepModel(result=several.name))

    for run in several.output.card()["runs"]:
        assert make_in(store, KeepModel(result=run)).name == run
    with pytest.raises(NotFoundError):
        make_in(store, KeepModel(result="nothing"))
