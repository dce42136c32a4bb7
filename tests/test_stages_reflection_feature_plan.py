"""The typed view of a feature set's plan: what it reads, what it tolerates, what it refuses."""

from typing import Any

import pytest

from stages.errors import InputError
from stages.introspection.preparation import models_differ
from stages.reflection.feature_plan import FeaturePlan, ModelFacts, SourceFacts

MODEL = {
    "name": "net",
    "network": "cnn2",
    "n_classes": 2,
    "class_names": ["cat", "dog"],
    "image_size": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "last_layer": "fc",
    "feature_dim": 8,
    "M": 4.0,
    "weights_sha256": "ab",
    "extra": {},
}
SOURCE = {
    "name": "pets",
    "split": "test",
    "family": "pets",
    "class_names": ["cat", "dog"],
    "resize": "squash",
    "fingerprint": "f1",
    "n_rows": 9,
}
ODIN = {"kind": "odin", "epsilon": 0.001}


def plan_of(**params: Any) -> dict[str, Any]:
    stage = {"name": "extract", "version": 1, "params": {"precision": "bf16", **params}}
    return {"stage": stage, "inputs": {"source": SOURCE, "model": MODEL}}


def test_a_plan_is_read_as_types() -> None:
    found = FeaturePlan.of(plan_of(perturbations=[ODIN]))

    assert found.source == SourceFacts("pets", "test", "pets", "f1", ("cat", "dog"), "squash")
    assert (found.model.name, found.model.n_classes, found.model.M) == ("net", 2, 4.0)
    assert found.model.mean == (0.5, 0.5, 0.5)
    assert (found.precision, found.perturbations, found.is_moved_by_odin) == ("bf16", (ODIN,), True)


@pytest.mark.parametrize(
    "plan",
    [{}, {"inputs": {}}, {"inputs": {"source": {"class_names": None}, "model": {"M": None}}}],
)
def test_what_a_plan_does_not_record_has_a_default(plan: dict[str, Any]) -> None:
    assert FeaturePlan.of(plan) == FeaturePlan(SourceFacts(), ModelFacts(), None, ())


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"inputs": 5}, "not in our format"),
        ({"inputs": {"model": ["x"]}}, "not in our format"),
        ({"stage": []}, "not in our format"),
        ({"stage": {"params": {"perturbations": 5}}}, "plan of the features: perturbations"),
        ({"inputs": {"model": {"n_classes": "ten"}}}, "plan of the features: model.n_classes"),
        ({"inputs": {"source": {"name": [1]}}}, "plan of the features: source.name"),
    ],
)
def test_a_plan_of_another_format_is_one_line(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        FeaturePlan.of(plan)
    assert "\n" not in str(caught.value)


def test_models_are_compared_by_how_they_prepare_images() -> None:
    model = FeaturePlan.of(plan_of()).model
    other = ModelFacts(name="other", image_size=64, last_layer="fc", mean=(0.5, 0.5, 0.5))

    assert models_differ(model, model) == []
    assert models_differ(model, other) == [
        "image_size: 32, found 64",
        "std: [0.2, 0.2, 0.2], found nothing",
    ]


def test_a_plan_of_maps_names_a_layer_and_has_no_gradients() -> None:
    plan = {"stage": {"params": {"layer": "layer3"}}, "inputs": {}}
    assert FeaturePlan.of(plan).gradients is None
