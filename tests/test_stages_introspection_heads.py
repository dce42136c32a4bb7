"""The heads of a store, made and used on a small set without images."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from clouds import N_CLASSES, N_ROWS, a_model, clouds
from made import make_in

from pipeline.loop import LoopReport
from stages.errors import DataNotFoundError, InputError
from stages.introspection.contenders import choose_head
from stages.introspection.fit_neighbours import FitNeighbours
from stages.introspection.fit_temperature import FitTemperature
from stages.introspection.head import predict_logits
from stages.introspection.head_card import TrainedNetwork, head_card
from stages.introspection.predictors import open_head, predictors, sensing_probabilities
from stages.introspection.preparation import check_model
from stages.introspection.train_head import TrainHead
from stages.reflection.losses import softmax
from stages.sensing.train_params import held_out_rows
from store.catalog import FeatureStore
from store.errors import DamagedError, NotFoundError, PlanMismatchError
from store.featureset import FeatureSet

OPTIONS = {"layers": (8,), "epochs": 30, "weight_decay": 0.0, "batch_size": 16, "seeds": (0, 3)}


@pytest.fixture
def found(store: FeatureStore) -> FeatureSet:
    return clouds(store)


def head_of(found: FeatureSet, name: str = "h", **options: Any) -> TrainHead:
    return TrainHead(features=found.name, name=name, **{**OPTIONS, **options})


def trained(store: FeatureStore, found: FeatureSet, name: str = "h", **options: Any) -> LoopReport:
    report = make_in(store, head_of(found, name, **options)).report
    assert isinstance(report, LoopReport)
    return report


def fit_temperature(store: FeatureStore, found: FeatureSet) -> dict[str, Any]:
    return make_in(store, FitTemperature(features=found.name, name="t")).output.card()


def fit_neighbours(store: FeatureStore, found: FeatureSet, **options: Any) -> dict[str, Any]:
    stage = FitNeighbours(features=found.name, name="n", **options)
    return make_in(store, stage).output.card()


def arrays(found: FeatureSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = found.samples()["label"].to_numpy(np.int64)
    return found.read("features"), found.read("logits"), labels


def test_the_card_of_trained_heads_describes_them(store: FeatureStore, found: FeatureSet) -> None:
    card = trained(store, found).card
    assert (card["predictor"], card["reads"], card["seeds"]) == ("mlp", "reflection", [0, 3])
    assert (card["train_rows"], card["excluded_rows"], card["rows"]) == (N_ROWS - 1, 1, "all")
    assert (card["features"], card["model_weights_sha256"]) == (found.name, "w1")
    assert len(card["train_accuracy"]) == len(card["train_loss"]) == 2


@pytest.mark.parametrize("reads", ["reflection", "features", "features+logits"])
def test_every_seed_predicts_as_its_card_says(
    store: FeatureStore, found: FeatureSet, reads: str
) -> None:
    card = trained(store, found, reads=reads).card
    features, logits, labels = arrays(found)
    said = predictors(store, store.artifact("head", "h"))
    assert list(said) == [0, 3]
    for predict, accuracy in zip(said.values(), card["train_accuracy"], strict=True):
        probabilities = predict(features, logits)
        assert probabilities.shape == (N_ROWS, N_CLASSES)
        assert np.isnan(probabilities[5]).all()
        is_right = np.delete(probabilities.argmax(axis=1) == labels, 5)
        assert is_right.mean() == pytest.approx(accuracy)


def test_a_second_call_trains_nothing(store: FeatureStore, found: FeatureSet) -> None:
    first = trained(store, found)
    again = trained(store, found)
    assert (first.n_units_run, again.n_units_run) == (30, 0)
    assert again.card == first.card


@pytest.mark.parametrize("change", [{"seeds": (0,)}, {"precision": "bf16"}, {"batch_size": 8}])
def test_other_parameters_under_the_same_name_are_refused(
    store: FeatureStore, found: FeatureSet, change: dict[str, object]
) -> None:
    trained(store, found)
    with pytest.raises(PlanMismatchError, match=next(iter(change)).replace("size", "rows")):
        trained(store, found, **change)


def test_held_out_rows_are_all_a_head_is_trained_on(store: FeatureStore, found: FeatureSet) -> None:
    a_model(store, {"held_out": 120, "seed": 1})
    card = trained(store, found, rows="held-out").card
    rows = held_out_rows(N_ROWS, 120, 1)
    largest = np.delete(found.read("logits"), 5, axis=0).max(axis=1)
    assert len(rows) == 120
    assert card["train_rows"] == 120 - (5 in rows)
    kept = found.read("logits")[rows[rows != 5]]
    assert card["spec"]["M"] == pytest.approx(kept.max(axis=1).mean(), rel=1e-6)
    assert card["spec"]["M"] != pytest.approx(largest.mean(), rel=1e-3)


def test_held_out_rows_are_another_plan(found: FeatureSet) -> None:
    assert head_of(found).plan(found) != head_of(found, rows="held-out").plan(found)


@pytest.mark.parametrize(
    ("recipe", "source", "message"),
    [
        ({"seed": 0}, "clouds-train", "held no row out"),
        ({"seed": 0, "held_out": 9}, "others", "is not of the images that model 'net' was trained"),
    ],
)
def test_rows_that_were_not_held_out_are_refused(
    store: FeatureStore, found: FeatureSet, recipe: dict[str, int], source: str, message: str
) -> None:
    a_model(store, recipe, source)
    with pytest.raises(InputError, match=message):
        trained(store, found, rows="held-out")


def test_a_head_of_the_best_epoch_says_on_what_it_was_chosen(
    store: FeatureStore, found: FeatureSet
) -> None:
    test = clouds(store, "clouds-test")
    card = trained(store, found, select_on=test.name).card
    chosen = head_card(store.artifact("head", "h")).predictor
    assert isinstance(chosen, TrainedNetwork)
    assert (chosen.selected_on, chosen.best_epoch) == (test.name, tuple(card["best_epoch"]))
    features, logits, labels = arrays(test)
    said = predictors(store, store.artifact("head", "h"))
    for predict, accuracy in zip(said.values(), card["selection_accuracy"], strict=True):
        is_right = np.delete(predict(features, logits).argmax(axis=1) == labels, 5)
        assert is_right.mean() == pytest.approx(accuracy)
    assert all(0 < epoch <= 30 for epoch in card["best_epoch"])


def test_other_options_of_the_input_are_other_plans(found: FeatureSet) -> None:
    plans = [head_of(found, **options).plan(found) for options in (
        {}, {"bias_gradient": True}, {"scaling": "global"}, {"scaling": "feature"}
    )]  # fmt: skip
    assert all(plans.count(plan) == 1 for plan in plans)
    assert head_of(found).plan(found, found) not in plans


def test_an_epoch_cannot_be_chosen_on_features_of_another_network(
    store: FeatureStore, found: FeatureSet
) -> None:
    other = clouds(store, "clouds-test", weights="w2")
    with pytest.raises(InputError, match="expected features of one network"):
        trained(store, found, select_on=other.name)
    assert not store.artifact("head", "h").is_complete()


@pytest.mark.parametrize("scaling", ["global", "feature"])
def test_a_fitted_scaling_predicts_as_its_card_says(
    store: FeatureStore, found: FeatureSet, scaling: str
) -> None:
    card = trained(store, found, scaling=scaling, bias_gradient=True).card
    assert (card["spec"]["scaling"], card["spec"]["bias_gradient"]) == (scaling, True)
    features, logits, labels = arrays(found)
    said = predictors(store, store.artifact("head", "h"))
    for predict, accuracy in zip(said.values(), card["train_accuracy"], strict=True):
        is_right = np.delete(predict(features, logits).argmax(axis=1) == labels, 5)
        assert is_right.mean() == pytest.approx(accuracy)


def test_temperature_is_kept_and_predicts(store: FeatureStore, found: FeatureSet) -> None:
    card = fit_temperature(store, found)
    features, logits, _ = arrays(found)
    probabilities = predictors(store, store.artifact("head", "t"))[0](features, logits)
    expected = softmax(logits.astype(np.float64) / card["temperature"])
    np.testing.assert_allclose(probabilities, expected, atol=1e-12)
    assert (card["predictor"], card["reads"], card["seeds"]) == ("temperature", "logits", [0])
    assert card["nll_after"] < card["nll_before"]
    assert fit_temperature(store, found) == card


def test_temperature_needs_labels(store: FeatureStore) -> None:
    unlabelled = clouds(store, "clouds-x", is_labelled=False)
    with pytest.raises(InputError, match="use a split that has labels"):
        fit_temperature(store, unlabelled)
    assert not store.artifacts("head")


@pytest.mark.parametrize(("reads", "scaling"), [("features", "none"), ("reflection", "minmax")])
def test_neighbours_keep_no_features_and_vote(
    store: FeatureStore, found: FeatureSet, reads: str, scaling: str
) -> None:
    card = fit_neighbours(store, found, k=1, reads=reads)
    features, logits, labels = arrays(found)
    probabilities = predictors(store, store.artifact("head", "n"))[0](features, logits)
    is_right = np.delete(probabilities.argmax(axis=1) == labels, 5)
    assert is_right.mean() > 0.95  # some rows are equal
    assert np.isnan(probabilities[5]).all()
    assert card["files"] == {}
    assert (card["predictor"], card["reads"], card["seeds"]) == ("neighbours", reads, [0])
    assert (card["spec"]["k"], card["spec"]["scaling"]) == (1, scaling)


def test_neighbours_need_their_training_features(store: FeatureStore, found: FeatureSet) -> None:
    fit_neighbours(store, found)
    found.shard_set.storage.remove("plan.json")
    with pytest.raises(DamagedError, match=r"clouds-train@net-.*/plan.json is missing"):
        predictors(store, store.artifact("head", "n"))
    shutil.rmtree(found.shard_set.storage.location)
    with pytest.raises(NotFoundError, match="no feature set 'clouds-train@net-"):
        predictors(store, store.artifact("head", "n"))


def test_predictors_of_all_kinds_say_the_same_in_threads(
    store: FeatureStore, found: FeatureSet
) -> None:
    trained(store, found)
    fit_temperature(store, found)
    fit_neighbours(store, found, reads="reflection")
    features, logits, _ = arrays(found)
    for name in ("h", "t", "n"):
        predict = predictors(store, store.artifact("head", name))[0]
        expected = predict(features, logits)
        with ThreadPoolExecutor(4) as pool:
            said = list(pool.map(lambda _, p=predict: p(features, logits), range(8)))
        assert all(np.array_equal(each, expected, equal_nan=True) for each in said)


def test_a_head_is_found_by_its_plan_whatever_its_name(
    store: FeatureStore, found: FeatureSet
) -> None:
    plan = head_of(found).plan(found)
    trained(store, found, "zebra")
    fit_temperature(store, found)
    assert [head.name for head in store.made_by("head", plan)] == ["zebra"]
    assert [
        head.name for head in store.made_by("head", FitTemperature(features=found.name).plan(found))
    ] == ["t"]


@pytest.mark.parametrize("options", [{}, {"reads": "features", "layers": ()}, {"rank": 2}])
def test_a_tempered_head_divides_the_logits_of_each_seed_by_its_best_temperature(
    store: FeatureStore, found: FeatureSet, options: dict[str, Any]
) -> None:
    trained(store, found, **options)
    features, logits, labels = arrays(found)
    tempered = make_in(store, FitTemperature(features=found.name, head="h")).output
    assert tempered.name == "h-tempered"
    said = predictors(store, tempered)
    kept = np.arange(N_ROWS) != 5  # a row of NaN
    card = tempered.card()

    def nll(h: np.ndarray, value: float) -> float:
        p = softmax(h[kept].astype(np.float64) / value)
        return float(-np.log(p[np.arange(len(p)), labels[kept]]).mean())

    for at, seed in enumerate((0, 3)):
        best = card["temperatures"][at]
        own = predict_logits(open_head(store.artifact("head", "h"), seed), features, logits)
        expected = softmax(own.astype(np.float64) / best)
        np.testing.assert_allclose(said[seed](features, logits), expected, atol=1e-6)
        assert nll(own, best) < min(nll(own, 1.001 * best), nll(own, best / 1.001))
        assert card["nll_before"][at] == pytest.approx(nll(own, 1.0))
        assert card["nll_after"][at] == pytest.approx(nll(own, best))


def test_a_tempered_head_keeps_what_its_card_says_of_the_training(
    store: FeatureStore, found: FeatureSet
) -> None:
    before = trained(store, found).card
    other = clouds(store, "others")
    after = make_in(store, FitTemperature(features=other.name, head="h", name="t")).output.card()
    same = before.keys() - {"train_loss", "history", "plan", "files", "contents"}
    assert same >= {"features", "spec", "params", "seeds", "train_accuracy", "train_rows"}
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert not {"train_loss", "history"} & after.keys()
    assert after["tempered_on"] == other.name


def test_only_a_trained_head_of_the_same_network_gets_temperatures(
    store: FeatureStore, found: FeatureSet
) -> None:
    trained(store, found)
    fit_neighbours(store, found)
    make_in(store, FitTemperature(features=found.name, head="h"))
    of_another = clouds(store, "others", weights="w2")
    for name, features, message in (
        ("h-tempered", found, "expected a head without a temperature, found one .* on clouds"),
        ("n", found, "expected a trained network, found neighbours"),
        ("h", of_another, "belongs to model"),
    ):
        with pytest.raises(InputError, match=message):
            make_in(store, FitTemperature(features=features.name, head=name, name="x"))
    assert not store.artifact("head", "x").is_complete()


def test_the_only_head_of_a_model_is_chosen(store: FeatureStore, found: FeatureSet) -> None:
    with pytest.raises(DataNotFoundError, match="train one with `intro-pipe train-head"):
        choose_head(store, found, None)
    fit_temperature(store, found)
    assert choose_head(store, found, None).name == "t"
    fit_neighbours(store, found)
    with pytest.raises(InputError, match="choose one of n, t with --head"):
        choose_head(store, found, None)
    assert choose_head(store, found, "n").name == "n"


def test_heads_of_all_kinds_belong_to_one_model(store: FeatureStore, found: FeatureSet) -> None:
    trained(store, found)
    fit_temperature(store, found)
    fit_neighbours(store, found)
    other = clouds(store, weights="w2")
    for name in ("h", "t", "n"):
        check_model(found, store.artifact("head", name))
        with pytest.raises(InputError, match=f"head '{name}' belongs to model 'net'"):
            choose_head(store, other, name)


def test_open_head_returns_the_requested_seed(store: FeatureStore, found: FeatureSet) -> None:
    trained(store, found)
    artifact = store.artifact("head", "h")
    first, third = (open_head(artifact, seed).linears[0].weight for seed in (None, 3))
    assert not open_head(artifact).training
    assert not first.equal(third)
    with pytest.raises(InputError, match=r"expected a seed of \[0, 3\], found 1"):
        open_head(artifact, 1)


def test_open_head_is_for_networks(store: FeatureStore, found: FeatureSet) -> None:
    fit_temperature(store, found)
    with pytest.raises(InputError, match="expected a trained network, found temperature"):
        open_head(store.artifact("head", "t"))


def test_sensing_probabilities_are_those_of_f() -> None:
    logits = np.array([[1.0, 2.0, 3.0]], np.float32)
    found = sensing_probabilities(np.zeros((1, 4), np.float32), logits)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, softmax(logits.astype(np.float64)))


def test_a_head_of_the_first_version_is_refused_in_a_line(
    store: FeatureStore, found: FeatureSet
) -> None:
    old = store.artifact("head", "old")
    old.claim({"seed": 0})
    card = {"model_weights_sha256": "w1", "spec": {}, "params": {"seed": 0}}
    old.write({}, card, plan={"seed": 0})
    for use in (
        lambda: choose_head(store, found, "old"),
        lambda: predictors(store, old),
        lambda: open_head(old),
    ):
        with pytest.raises(InputError, match=r"head 'old' was trained by intro-pipe 0\.1"):
            use()
