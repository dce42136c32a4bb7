"""Heads that read more than one part: their input, their training, and where they are used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import extract, make_in
from safetensors.torch import load
from small_data import write_npz_set
from test_stages_reflection_extraction import model
from torch import nn

from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.evaluation.evaluate import Evaluate
from stages.introspection.best_epoch import Selection
from stages.introspection.head import Head, load_head, predict_probabilities
from stages.introspection.head_params import HeadParams
from stages.introspection.head_parts import FurtherArrays, StoredGradients, canonical_reads
from stages.introspection.head_spec import HeadSpec
from stages.introspection.head_target import HeadTarget
from stages.introspection.head_training import HeadTraining
from stages.introspection.predictors import open_head, predictors
from stages.introspection.preparation import check_preparation
from stages.introspection.reading import READS, Reading
from stages.introspection.train_head import TrainHead
from stages.judging.judged_result import open_evaluation
from stages.prediction.introspective import open_introspective
from stages.reflection.extraction import Extraction
from stages.reflection.named_layer import NamedLayer
from stages.reflection.rank_one import last_layer_gradient
from stages.sensing.map_layers import MapLayer
from stages.uncertainty.uncertainty import Uncertainty
from store.catalog import FeatureStore
from store.featureset import FeatureSet

N, D, K = 60, 5, 3
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, K, N)
F = (np.abs(RNG.normal(size=(N, D))) + np.eye(K, D)[LABELS]).astype(np.float32)
Z = (F[:, :K] * 2).astype(np.float32)
FURTHER = {
    "statistics": (RNG.normal(size=(N, 4)) * [1e-3, 1, 50, 0] + 7).astype(np.float32),
    "gradients": RNG.normal(size=(N, 2)).astype(np.float32),
}
STORED = FurtherArrays((MapLayer("a", 2),), StoredGradients("b", "bce", 2, 2))
MIXED = "reflection+logits+statistics+gradients"


def test_parts_have_one_order() -> None:
    assert canonical_reads("gradients+statistics+reflection") == "reflection+statistics+gradients"
    assert [canonical_reads(reads) for reads in READS] == list(READS)


@pytest.mark.parametrize("reads", ["", "pixels", "features+features", "features,logits", "+"])
def test_other_parts_are_refused(reads: str) -> None:
    with pytest.raises(ValueError, match="expected some of reflection, features, logits, stat"):
        canonical_reads(reads)


def test_an_input_is_the_scaled_reflection_then_the_stored_parts() -> None:
    reading = Reading(K, D, MIXED, M=2.0, scaling="maxabs", further=STORED)
    r_x = last_layer_gradient(F, Z, loss="mse-m", M=2.0).scaled("maxabs").dense()
    expected = np.concatenate([r_x, Z, FURTHER["statistics"], FURTHER["gradients"]], axis=1)
    np.testing.assert_array_equal(reading.inputs(F, Z, FURTHER).dense(), expected)
    assert reading.size == expected.shape[1]


def test_an_array_of_another_length_is_refused() -> None:
    reading = Reading(K, D, "statistics", further=STORED)
    with pytest.raises(InputError, match=r"statistics \[n, 4\], found none"):
        reading.inputs(F, Z, {})
    with pytest.raises(InputError, match=r"statistics \[n, 4\], found \[60, 2\]"):
        reading.inputs(F, Z, {"statistics": FURTHER["gradients"]})


@pytest.mark.parametrize("reads", [MIXED, "statistics", "features+statistics"])
def test_specs_survive_json_and_those_of_others_are_unchanged(reads: str) -> None:
    further = replace(STORED, gradients=STORED.gradients if "gradients" in reads else None)
    spec = HeadSpec(K, D, (4,), reads, further=further)
    assert HeadSpec.from_dict(spec.to_dict()) == spec
    assert "further" not in HeadSpec(K, D).to_dict()


def test_long_inputs_of_several_parts_are_refused() -> None:
    with pytest.raises(InputError, match="at most 131,072 in an input of several parts"):
        HeadSpec(1000, 2048, reads="reflection+logits")


@pytest.mark.parametrize("layers", [(), (6,)])
@pytest.mark.parametrize("reads", [MIXED, "features+statistics"])
def test_training_is_plain_sgd_on_standardised_parts(reads: str, layers: tuple[int, ...]) -> None:
    further = replace(STORED, gradients=STORED.gradients if "gradients" in reads else None)
    arrays = {name: FURTHER[name] for name in further.names}
    spec = HeadSpec(K, D, layers, reads, further=further)
    params = HeadParams(epochs=3, weight_decay=1e-3, batch_rows=20, milestones=(), seeds=(0, 4))
    stage = HeadTraining(F, Z, LABELS, spec, params, further=arrays)
    state = stage.start()
    for unit in range(3):
        stage.step(state, unit, lambda _: None)

    inputs = stage.full_spec.reading.inputs(F, Z, arrays)
    columns = inputs.columns.astype(np.float64)
    std = columns.std(axis=0)
    columns = (columns - columns.mean(axis=0)) / np.where(std > 1e-4, std, 1)
    rows = np.concatenate([inputs.vectors.dense(), columns], axis=1).astype(np.float32)
    for index, seed in enumerate(params.seeds):
        torch.manual_seed(seed)
        linears = Head(stage.full_spec).linears
        network = nn.Sequential(*[part for each in linears for part in (each, nn.Sigmoid())][:-1])
        optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-3)
        for unit in range(3):
            order = np.random.default_rng([seed, unit]).permutation(N)
            for batch in np.split(order, 3):
                optimizer.zero_grad()
                logits = network(torch.from_numpy(rows[batch]))
                nn.CrossEntropyLoss()(logits, torch.from_numpy(LABELS[batch])).backward()
                optimizer.step()
        expected = network(torch.from_numpy(rows)).softmax(dim=1).detach()
        head = load_head(stage.full_spec, stage.weights(state), index)
        found = predict_probabilities(head, F, Z, arrays)
        np.testing.assert_allclose(found, expected, atol=2e-4)
    assert stage.save(stage.load(stage.save(state))) == stage.save(state)
    first = load(stage.weights(state))["linears.0.weight"]
    assert bool(torch.isfinite(first).all())


def test_the_best_epoch_is_chosen_by_all_parts() -> None:
    selection = Selection("test", F, Z, LABELS, FURTHER)
    spec = HeadSpec(K, D, (6,), MIXED, further=STORED)
    params = HeadParams(epochs=4, batch_rows=20)
    stage = HeadTraining(F, Z, LABELS, spec, params, selection=selection, further=FURTHER)
    state = stage.start()
    found = [stage.step(state, unit, lambda _: None)["selection"] for unit in range(4)]
    _, facts = stage.finish(state)
    assert facts["best_epoch"] == [1 + int(np.argmax(found))]
    assert facts["train_accuracy"] == facts["selection_accuracy"] == [max(found)]


@pytest.fixture
def found(store: FeatureStore, tmp_path: Path) -> FeatureSet:
    folder = write_npz_set(tmp_path / "digits-npz", 20, 43)
    card, weights = model(folder)
    stage = Extraction(SourceSpec(str(folder), "test", ""), card, weights, shard_rows=15)
    made = replace(stage, maps=(MapLayer("conv2", 32),), layer=NamedLayer("conv1", "bce", 6))
    artifact = store.artifact("model", card.name)
    artifact.claim({"inputs": {}})
    files = {"weights.safetensors": Path(weights).read_bytes()}
    artifact.write(files, {"card": card.to_dict(), **card.to_dict()}, plan={"inputs": {}})
    extract(store, stage)  # a set without the arrays
    return extract(store, made)


def trained(store: FeatureStore, found: FeatureSet, reads: str, name: str = "h") -> TrainHead:
    options = {"layers": (8,), "epochs": 12, "weight_decay": 0.0, "batch_size": 8}
    stage = TrainHead(features=found.name, name=name, reads=reads, seeds=(0, 2), **options)
    make_in(store, stage)
    return stage


def plain_of(store: FeatureStore) -> FeatureSet:
    return next(each for each in store.feature_sets() if len(each.schema.arrays) == 2)


def test_a_head_of_several_parts_is_judged_by_its_own_probabilities(
    store: FeatureStore, found: FeatureSet
) -> None:
    trained(store, found, "statistics+reflection+gradients")
    stage = Evaluate(features=found.name, heads={"H": "h"}, resamples=0)
    by_group = open_evaluation(make_in(store, stage).output).by_group
    arrays = {name: found.read(name) for name in ("statistics", "gradients")}
    for seed in (0, 2):
        head = open_head(store.artifact("head", "h"), seed)
        assert head.spec.reads == "reflection+statistics+gradients"
        p = predict_probabilities(head, found.read("features"), found.read("logits"), arrays)
        own = by_group[(by_group["predictor"] == "H") & (by_group["seed"] == seed)]
        labels = found.samples()["label"].to_numpy()
        assert own["accuracy"].item() == pytest.approx((p.argmax(axis=1) == labels).mean())


def test_an_ensemble_has_the_mean_of_f_and_such_a_head(
    store: FeatureStore, found: FeatureSet
) -> None:
    trained(store, found, "statistics")
    stage = Uncertainty(
        features=found.name, heads={"H": "h"}, ensembles={"both": "f+H"}, resamples=0
    )
    table = open_evaluation(make_in(store, stage).output).by_group
    assert set(table["predictor"]) == {"f", "H", "both"}


def test_predict_computes_the_statistics_of_new_images(
    store: FeatureStore, found: FeatureSet, tmp_path: Path
) -> None:
    trained(store, found, "reflection+statistics")
    module = open_introspective(store, "h")
    images = SourceSpec(str(tmp_path / "digits-npz"), "test", "").open().read(0, 43).images
    _, logits = module(torch.from_numpy(images))
    head = open_head(store.artifact("head", "h"))
    stored = {"statistics": found.read("statistics")}
    expected = predict_probabilities(head, found.read("features"), found.read("logits"), stored)
    np.testing.assert_allclose(logits.softmax(dim=1), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ("reflection+statistics", "has no array statistics; extract it with --statistics auto"),
        ("gradients", "has no array gradients; extract it with --layer LAYER --project 512"),
    ],
)
def test_a_set_without_the_array_is_refused(
    store: FeatureStore, found: FeatureSet, reads: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        trained(store, plain_of(store), reads)


def test_a_head_is_refused_where_its_arrays_are_not_read(
    store: FeatureStore, found: FeatureSet
) -> None:
    trained(store, found, "gradients")
    trained(store, found, "features+statistics", "s")
    head, other = (store.artifact("head", name) for name in ("h", "s"))
    with pytest.raises(InputError, match="reads gradients, which this command does not read"):
        predictors(store, head)
    with pytest.raises(InputError, match="reads gradients, which this command does not read"):
        HeadTarget(store.location, "h").to_dict()
    with pytest.raises(InputError, match="reads gradients of conv1, which predict does not"):
        open_introspective(store, "h")
    with pytest.raises(InputError, match="reads gradients, which this command does not read"):
        check_preparation(store, plain_of(store), head)
    check_preparation(store, found, head, reads_further=True)
    with pytest.raises(InputError, match="--layer conv1 --layer-loss bce --project 6"):
        check_preparation(store, plain_of(store), head, reads_further=True)
    with pytest.raises(InputError, match="has those of no layer: extract it with --statistics co"):
        check_preparation(store, plain_of(store), other, reads_further=True)
