"""Verbs that work from stored factors send nothing through the network; torch counts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made import make_in
from small_data import write_npz_set
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from stages.introspection.fit_neighbours import FitNeighbours
from stages.introspection.fit_temperature import FitTemperature
from stages.reflection.extract import Extract
from stages.scores.asked_scores import ASKED, asked_scores
from stages.sensing.train_sensing import TrainSensing
from stages.verbs import MODULES, stage_of
from store.catalog import FeatureStore

TRAIN, TEST = "shapes-train@cnn2", "shapes-test@cnn2"

OF_IMAGES = {
    *("corrupt", "extract", "train-sensing", "import-model", "active-learn", "keep-model"),
    *("explain", "draw-maps", "evaluate-maps", "iqa", "train-quality", "run", "reproduce"),
    *("ood", "report"),  # ood extracts; a report reads results
}
"""Verbs whose input is images, or the output of other verbs. Any other verb is tested here."""

FIELDS: dict[str, dict[str, Any]] = {
    "conformal": {"calibration": TRAIN, "features": TEST},
    "estimate-accuracy": {"source": TRAIN},
    "fit-neighbours": {"name": "near-2"},
    "fit-temperature": {"name": "warm-2"},
    "detect-failures": {"confidences": ("msp", "knn", "vim"), "training": TRAIN},
    "prune": {"test": TEST, "keep": (0.5,), "seeds": (0,)},
    "score": {"scores": ASKED, "training": TRAIN, "heads": ["T=warm"]},
    "train-head": {
        "features": TRAIN,
        "reads": "features+logits",
        "layers": (32,),
        "epochs": 60,
        "batch_size": 8,
        "weight_decay": 0.0,
    },
}
"""Options without a default, or with one that takes long."""

DEFAULTS = {"features": TEST, "training": TRAIN, "heads": ["T=warm"], "resamples": 2, "head": None}
"""Options of a verb that has them."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store with a convolutional network, features of both splits, and two heads."""
    folder = tmp_path_factory.mktemp("home")
    data = write_npz_set(folder / "data" / "shapes", 200, 40)
    store = FeatureStore(str(folder / "store")).prepare()
    network = TrainSensing(dataset=str(data), preset="quick", name="cnn2", epochs=5)
    make_in(store, network)
    for split in ("train", "test"):
        make_in(store, Extract(dataset=str(data), split=split, model="cnn2"), folder / "data")
    make_in(store, FitTemperature(features=TRAIN, name="warm"))
    make_in(store, FitNeighbours(features=TRAIN, name="near", k=3))
    return store


def data_of(home: FeatureStore) -> Path:
    """The data root."""
    return Path(home.location).parent / "data"


@pytest.fixture
def passes() -> Iterator[list[str]]:
    """The convolutions that ran."""
    seen: list[str] = []

    def note(module: nn.Module, _: object) -> None:
        if isinstance(module, nn.Conv2d):
            seen.append(str(module))

    handle = register_module_forward_pre_hook(note)
    yield seen
    handle.remove()


@pytest.mark.parametrize("verb", [verb for verb in MODULES if verb not in OF_IMAGES])
def test_a_verb_makes_its_output_without_a_forward_pass(
    home: FeatureStore, passes: list[str], verb: str
) -> None:
    stage = stage_of(verb)
    known = {name: value for name, value in DEFAULTS.items() if name in stage.model_fields}
    made = make_in(home, stage(**{**known, **FIELDS.get(verb, {})}), data_of(home))
    assert made.output is not None
    assert passes == []


def test_scores_and_predictions_make_none_either(home: FeatureStore, passes: list[str]) -> None:
    found = home.open(TEST)
    asked_scores(home, found, ASKED, home.open(TRAIN))
    assert passes == []


def test_a_forward_pass_is_counted(home: FeatureStore, passes: list[str]) -> None:
    make_in(home, Extract(dataset="shapes", split="test", model="cnn2", limit=8), data_of(home))
    assert passes != []
