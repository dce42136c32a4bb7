"""Laplace heads, uncertainty and failures of small networks, without forward passes."""

import numpy as np
import pandas as pd
import pytest
import torch
from linear_nets import a_network
from made import make_in
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from stages.errors import DataNotFoundError, InputError
from stages.failures.detect_failures import FITTED, DetectFailures
from stages.introspection.fit_laplace import FitLaplace
from stages.introspection.fit_temperature import FitTemperature
from stages.introspection.head_card import FittedLaplace, head_card
from stages.introspection.laplace import CURVATURES, probit_logits
from stages.introspection.predictors import factors, predictors, sensing_probabilities
from stages.introspection.prior_precision import log_marginal_likelihood
from stages.introspection.train_head import TrainHead
from stages.judging.judged_result import Evaluation, open_evaluation
from stages.reflection.losses import softmax
from stages.scores.known_scores import OF_WEIGHTS
from stages.sensing.stored_layer import stored_layer
from stages.uncertainty.uncertainty import Uncertainty
from store.catalog import FeatureStore
from store.featureset import FeatureSet

TRAIN, TEST = "clouds-train@net", "clouds-test@net"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Two networks, their features of the same rows, and heads of the first."""
    store = FeatureStore(str(tmp_path_factory.mktemp("uncertainty") / "store")).prepare()
    for name, seed in (("net", 0), ("twin", 1)):
        a_network(store, name, seed)
    head = TrainHead(
        features=TRAIN,
        name="h",
        layers=(8,),
        epochs=20,
        weight_decay=0.0,
        batch_size=8,
        seeds=(0, 1),
    )
    make_in(store, head)
    make_in(store, FitTemperature(features=TEST, name="t"))
    for structure in CURVATURES:
        make_in(store, FitLaplace(features=TRAIN, structure=structure, name=structure))
    return store


def judged(store: FeatureStore, **options: object) -> Evaluation:
    stage = Uncertainty(features=TEST, resamples=100, samples=5, **options)
    return open_evaluation(make_in(store, stage).output)


def columns(found: FeatureSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.read("features"), found.read("logits"), found.samples()["label"].to_numpy()


@pytest.mark.parametrize("structure", CURVATURES)
def test_a_laplace_head_is_the_posterior_with_the_best_evidence(
    made: FeatureStore, structure: str
) -> None:
    features, logits, labels = columns(made.open(TRAIN))
    head, model = made.artifact("head", structure), made.open(TRAIN).plan["inputs"]["model"]
    layer = stored_layer(made, "net", model["weights_sha256"])
    assert layer.bias is not None
    assert features @ layer.weight.T + layer.bias == pytest.approx(logits, abs=1e-4)

    curvature = CURVATURES[structure].of([(features, logits)], has_bias=True)
    norm = float((layer.weight**2).sum() + (layer.bias**2).sum())
    p = softmax(logits.astype(np.float64))
    likelihood = float(np.log(p[np.arange(len(labels)), labels]).sum())
    grid = 10 ** np.linspace(-6, 6, 241)
    slow = [log_marginal_likelihood(curvature.eigenvalues, norm, likelihood, x) for x in grid]
    fitted = head_card(head).predictor
    assert isinstance(fitted, FittedLaplace)
    assert np.log10(fitted.prior) == pytest.approx(np.log10(grid[np.argmax(slow)]), abs=0.06)
    assert fitted.evidence >= max(slow) - 1e-6
    assert head.card()["n_parameters"] == layer.weight.size + layer.bias.size

    test_features, test_logits, _ = columns(made.open(TEST))
    variances = curvature.posterior(fitted.prior).variances(test_features)
    expected = softmax(probit_logits(test_logits, variances))
    assert predictors(made, head)[0](test_features, test_logits) == pytest.approx(expected)
    turned, scaled = factors(head)[0](test_features, test_logits)
    assert softmax(scaled) == pytest.approx(expected)
    assert turned is test_features


def test_the_prior_may_be_chosen_by_validation_rows_or_given(made: FeatureStore) -> None:
    chosen = make_in(made, FitLaplace(features=TRAIN, validation=TEST, name="v")).output
    given = make_in(made, FitLaplace(features=TRAIN, prior=3.0, name="g")).output
    features, logits, labels = columns(made.open(TEST))

    def nll(name: str) -> float:
        p = predictors(made, made.artifact("head", name))[0](features, logits)
        return float(-np.log(p[np.arange(len(labels)), labels]).mean())

    assert chosen.card()["prior_from"] == "validation"
    assert chosen.card()["validation_nll"] == pytest.approx(nll("v"), abs=1e-6)
    assert nll("v") <= min(nll("full"), nll("g")) + 1e-6
    assert (given.card()["prior"], given.card()["prior_from"]) == (3.0, "given")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prior": 1.0, "validation": TEST}, "omit one of them"),
        ({"validation": "clouds-test@twin"}, "made with the model 'twin'"),
    ],
)
def test_a_fit_that_makes_no_sense_is_refused(
    made: FeatureStore, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        make_in(made, FitLaplace(features=TRAIN, name="bad", **options))
    assert not made.artifact("head", "bad").is_complete()


HEADS = {"H": "h", "T": "t", "L": "full", "K": "kfac"}


def test_all_kinds_of_predictors_are_compared(made: FeatureStore) -> None:
    ensembles = {"both": "f+twin", "Hs": "H"}
    found = judged(made, heads=HEADS, dropout=(0.2,), ensembles=ensembles)
    average = found.average.pivot(index="predictor", columns="metric", values="mean")
    information = average["mutual_information"]

    assert list(found.card.seeds) == ["f", "H", "T", "L", "K", "dropout 0.2", "both", "Hs"]
    assert information[["f", "H", "T"]].tolist() == [0, 0, 0]
    assert (information[["L", "K", "dropout 0.2", "both", "Hs"]] > 0).all()
    assert (information <= average["entropy"]).all()
    features, logits, labels = columns(made.open(TEST))
    twin = columns(made.open("clouds-test@twin"))
    p = (sensing_probabilities(features, logits) + sensing_probabilities(*twin[:2])) / 2
    slow = -np.log(p[np.arange(len(labels)), labels]).mean()
    assert average["nll"]["both"] == pytest.approx(slow)
    gain = found.average.set_index(["predictor", "metric"]).loc[("both", "mutual_information")]
    assert gain["gain_low"] <= gain["gain"] == gain["mean"] <= gain["gain_high"]
    assert "Laplace approximation" in found.card.statistics["L"]
    assert made.artifact("result", found.artifact.name).plan()["inputs"]["features"][1]


def test_the_mean_over_samples_is_an_option(made: FeatureStore) -> None:
    probit, mean = (judged(made, heads=HEADS, predictive=each) for each in ("probit", "mc"))

    def of(found: Evaluation, metric: str) -> pd.Series:
        rows = found.average[found.average["metric"] == metric].set_index("predictor")
        return rows["mean"][["L", "K"]]

    assert of(probit, "mutual_information").tolist() == of(mean, "mutual_information").tolist()
    assert (of(probit, "nll") != of(mean, "nll")).all()


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"ensembles": {"E": "f"}}, InputError, "expected two or more members, found f"),
        ({"ensembles": {"E": "f+ghost"}}, DataNotFoundError, "'ghost' is no label"),
        ({"ensembles": {"H": "f+H"}}, InputError, "'H' is the label of two contenders"),
        ({"dropout": (0.1, 0.1)}, ValueError, "each dropout rate once"),
        ({"dropout": (1.0,)}, ValueError, "less than 1"),
    ],
)
def test_predictors_that_cannot_be_made_are_refused(
    made: FeatureStore, options: dict[str, object], error: type[Exception], reason: str
) -> None:
    before = {each.name for each in made.artifacts("result")}
    with pytest.raises(error, match=reason):
        judged(made, heads={"H": "h"}, **options)
    assert {each.name for each in made.artifacts("result")} == before


def test_no_verb_passes_an_image_through_a_network(made: FeatureStore) -> None:
    passes: list[str] = []

    def count(module: nn.Module, *_: object) -> None:
        if isinstance(module, nn.Conv2d):
            passes.append(type(module).__name__)

    hook = register_module_forward_hook(count)
    try:
        torch.nn.Conv2d(1, 1, 1)(torch.zeros(1, 1, 1, 1))
        make_in(made, FitLaplace(features=TRAIN, prior=0.5, name="again"))
        judged(made, heads={"L": "again"}, dropout=(0.5,), ensembles={"E": "f+twin"})
        make_in(made, DetectFailures(features=TEST, heads={"H": "h"}, resamples=0))
    finally:
        hook.remove()
    assert passes == ["Conv2d"]  # that of this test


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_scores_that_read_weights_refuse_a_posterior_of_them(made: FeatureStore, name: str) -> None:
    n_results = len(made.artifacts("result"))
    training = TRAIN if name in FITTED else None
    stage = DetectFailures(
        features=TEST, heads={"L": "full"}, confidences=(name,), training=training, resamples=0
    )
    with pytest.raises(InputError, match=f"Laplace approximation.*{name}.*: omit the head"):
        make_in(made, stage)
    assert len(made.artifacts("result")) == n_results
