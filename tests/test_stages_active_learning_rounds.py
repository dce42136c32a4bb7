import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_data import write_npz_set

from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from pipeline.ray_executor import RayExecutor
from stages.active_learning.active_runs import (
    ActiveRuns,
    CurvesCard,
    curves_job,
    lessons_of,
    means_of,
    read_curves,
)
from stages.active_learning.lesson import ENOUGH, Factors, LessonParams, renew, train_h
from stages.active_learning.rounds import LABELLED, ActiveLearning, RoundParams, RunCard
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.sensing.build import build_network
from stages.sensing.initial_weights import initial_weights
from stages.sensing.model import Sensing
from stages.sensing.start import RANDOM, Start
from store.catalog import FeatureStore
from store.errors import DamagedError
from store.seal import sealed

N_POOL, N_TEST = 120, 40
ROUNDS = RoundParams(rounds=3, query=20, start=20)
LESSON = LessonParams(network="cnn2", epochs=3, lr=1e-3, layers=(12, 8))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_npz_set(tmp_path_factory.mktemp("data") / "few", N_POOL, N_TEST)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def runs_on(data, *, strategies=("badge",), kinds=("h",), seeds=(0,), rounds=ROUNDS, lesson=LESSON):
    source, test = (SourceSpec(str(data), split, "", 8) for split in ("train", "test"))
    lessons = lessons_of(lesson, strategies, kinds, seeds)
    return ActiveRuns(lessons, rounds, source, {"clean": test})


def stage_on(data, **choice):
    runs = runs_on(data, **choice)
    return runs.stage(runs.lessons[0], "cpu")


def done(stage, n_rounds=None):
    state = stage.start()
    metrics = [stage.step(state, unit, lambda _: None) for unit in range(n_rounds or stage.n_units)]
    return state, metrics


def make(store, runs, executor=None):
    journal = Journal.of(store.location, ["active-learn"])
    return (
        curves_job(store, runs, lambda: (executor or LocalExecutor(1), "cpu")).run(journal).output
    )


def test_each_round_trains_on_the_rows_queried_before(data):
    state, metrics = done(stage_on(data))

    assert [found["labelled"] for found in metrics] == [20, 40, 60]
    assert len(set(state.rows.tolist())) == 60
    assert np.bincount(state.rounds).tolist() == [20, 20, 20]
    assert np.isnan(state.scores[:20]).all()
    assert (state.scores[20:] > 0).all()


def test_every_image_goes_through_the_network_once_a_round(data, monkeypatch):
    forward, counted = Sensing.forward, []

    def count(self, images):
        counted.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Sensing, "forward", count)
    for strategy in ("bald", "badge"):
        counted.clear()
        done(stage_on(data, strategies=(strategy,)))
        assert sum(counted) == 3 * (N_POOL + N_TEST)


@pytest.mark.parametrize("kinds", [("f",), ("h",)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(data, kinds):
    stage = stage_on(data, kinds=kinds)
    whole, _ = done(stage)
    first, _ = done(stage, 1)

    again = stage_on(data, kinds=kinds)
    resumed = again.load(stage.save(first))
    for unit in (1, 2):
        again.step(resumed, unit, lambda _: None)

    assert again.save(resumed) == stage.save(whole)


def test_f_and_h_start_from_the_same_rows_and_the_same_f(data):
    (f, of_f), (h, of_h) = (done(stage_on(data, kinds=(kind,)), 1) for kind in ("f", "h"))

    assert f.rows[:20].tolist() == h.rows[:20].tolist()
    assert of_f[0]["f on clean"] == of_h[0]["f on clean"]
    assert f.rows[20:].tolist() != h.rows[20:].tolist()


def test_another_seed_starts_from_other_rows(data):
    first, second = (stage_on(data, seeds=(seed,)).start() for seed in (0, 1))

    assert set(first.rows.tolist()) != set(second.rows.tolist())


def test_only_batch_norm_goes_over_into_the_next_round():
    def net(*_):
        class Net(torch.nn.Sequential):
            def __init__(self):
                super().__init__(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
                self.position = torch.nn.Parameter(torch.randn(4))

        return Net()

    class Card:
        network, n_classes = "net", 2

    networks = net(), net()
    before = networks[0][0].weight.clone()
    for network in networks:
        network[1].running_mean += 3
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("stages.active_learning.lesson.build_network", net)
            renew(network, Card, 0)

    one, other = (network.state_dict() for network in networks)
    assert not torch.equal(one["0.weight"], before)
    assert one["1.running_mean"].tolist() == [3, 3]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_round_starts_from_the_given_weights(data, store, tmp_path):
    torch.manual_seed(5)
    theirs = build_network("resnet18", 4).state_dict()
    torch.save(theirs, tmp_path / "w.pt")
    found = initial_weights("resnet18", str(tmp_path / "w.pt"), n_classes=10, image_size=8)
    lesson = replace(LESSON, network="resnet18", epochs=1, initial=Start(found))
    runs = runs_on(data, lesson=lesson, rounds=RoundParams(2, 4, 8), kinds=("f",))
    stage = runs.stage(runs.lessons[0], "cpu")
    state = stage.start()
    stage.step(state, 0, lambda _: None)
    renew(state.network, stage._card, 7, found)
    ours = state.network.state_dict()
    plan, plain = (each.plan("s", {}, {}) for each in (lesson, replace(lesson, initial=RANDOM)))

    assert all(torch.equal(ours[name], theirs[name]) for name in ours if "linear" not in name)
    assert plan == {**plain, "inputs": {"weights": found.sha256}}
    card = RunCard.of(runs.run_of(store, CurvesCard.of(make(store, runs)).lessons[0]))
    assert card.lesson.initial.weights == found


def test_bf16_rounds_what_f_computes_and_is_recorded(data, store):
    def weights(lesson):
        runs = runs_on(data, kinds=("f",), lesson=lesson)
        run = runs.run_of(store, CurvesCard.of(make(store, runs)).lessons[0])
        assert RunCard.of(run).lesson == lesson
        return run.read("weights.safetensors")

    rounded = replace(LESSON, precision="bf16", kind="f")
    params = [each.plan("s", {}, {})["stage"]["params"] for each in (rounded, LESSON)]

    assert weights(rounded) != weights(replace(LESSON, kind="f"))
    assert params[0] == {**params[1], "precision": "bf16", "kind": "f"}


@pytest.mark.parametrize("batch", [128, 59])
def test_training_stops_where_enough_rows_are_right(batch):
    """Accuracy on the rows that were seen: a last batch of one row is left out."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    logits = (4 * np.eye(2)[labels] + 0.1 * rng.normal(size=(60, 2))).astype(np.float32)
    ticks = []
    factors = Factors(np.abs(rng.normal(size=(60, 3))).astype(np.float32), logits)
    params = LessonParams(epochs=400, batch=batch, head_lr=0.05, layers=(6,))

    _, fit = train_h(factors, torch.from_numpy(labels), params, 0, ticks.append)

    assert fit.accuracy >= ENOUGH
    assert fit.epochs == len(ticks) < 400


def test_a_pool_smaller_than_the_query_is_refused_before_anything_is_written(data, tmp_path):
    place = tmp_path / "store"
    runs = runs_on(data, rounds=RoundParams(rounds=3, query=60, start=20))

    with pytest.raises(InputError, match=r"120 labelled images, 3 rounds need 140"):
        make(FeatureStore(str(place)), runs)

    assert not place.exists()


def test_existing_curves_are_read_without_computing(data, store, monkeypatch):
    choice = {"kinds": ("f", "h"), "rounds": RoundParams(rounds=2, query=20, start=20)}
    result = make(store, runs_on(data, strategies=("random", "margin"), seeds=(0, 1), **choice))
    monkeypatch.setattr(ActiveLearning, "step", None)
    again = make(store, runs_on(data, strategies=("margin",), seeds=(1, 0), **choice))

    curves = read_curves(result)
    assert len(curves) == 2 * 2 * 2 * 3  # strategies, seeds, rounds; f, H and the f beside H
    assert len(read_curves(again)) == len(curves) // 2
    means = means_of(curves, ["labelled"])
    assert (means["low"] <= means["mean"]).all()
    assert means["n_seeds"].unique().tolist() == [2]
    table = pq.read_table(_labelled_of(store, result))
    assert table.column_names == ["row", "round", "score"]
    assert max(table["row"].to_pylist()) < N_POOL


def _labelled_of(store, result):
    run = CurvesCard.of(result).runs[0]
    return f"{store.location}/results/{run}/{LABELLED}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("f on clean", "high", "history: expected names and numbers"),
        ("labelled", None, "history: expected names and numbers"),
        ("labelled", 1e40, "the card of .*: labelled: "),
        ("epochs", 1.5, "the card of .*: fits.0.epochs: "),
        ("train_accuracy", ..., "the card of .*: fits.0.accuracy: "),
        ("epochs", ..., "the card of .*: fits: "),
        ("seconds", ..., "the card of .*: seconds.0: "),
    ],
)
def test_the_card_of_a_run_that_was_edited_is_refused(store, key, value, message):
    metrics = {"labelled": 20, "epochs": 1, "train_accuracy": 0.5, "f on clean": 1, "seconds": 1.0}
    metrics |= {key: value}
    history = [{name: fact for name, fact in metrics.items() if fact is not ...}]
    run = store.artifact("result", "run")
    card = {"lesson": {}, "n_pool": 5, "n_tests": {"clean": 2}, "history": history, "files": {}}
    run.storage.write("result.json", sealed(card))

    with pytest.raises((DamagedError, InputError), match=message):
        RunCard.of(run)


@pytest.mark.ray
def test_runs_side_by_side_on_ray_give_the_same_curves(data, store, tmp_path):
    rounds = RoundParams(rounds=2, query=20, start=20)
    runs = runs_on(data, kinds=("f",), seeds=(0, 1), rounds=rounds)
    here = make(store, runs)
    there = make(FeatureStore(str(tmp_path / "other")), runs, RayExecutor(n_workers=2))

    assert read_curves(there).equals(read_curves(here))


def test_a_kill_costs_at_most_the_round_that_it_falls_into(data, tmp_path, monkeypatch):
    store, rounds = tmp_path / "store", RoundParams(rounds=12, query=2, start=20)
    options = {"network": "cnn2", "epochs": 1, "lr": 1e-3, "layers": "12,8", "image-size": 8}
    options |= {"rounds": 12, "query": 2, "start": 20, "strategy": "badge", "model-kind": "h"}
    options |= {"dataset": data, "store": store}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.app", "active-learn", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    deadline, done = time.monotonic() + 200, set()
    while len(done) < 6 and time.monotonic() < deadline:  # the sixth is done ...
        done |= {path.stem for path in store.glob("results/*/checkpoints/*.json")}
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)  # ... and the next one is at work
    process.wait()
    last = max(path.stem for path in store.glob("results/*/checkpoints/*.json"))

    step, n_steps = ActiveLearning.step, 0

    def count(*given):
        nonlocal n_steps
        n_steps += 1
        return step(*given)

    monkeypatch.setattr(ActiveLearning, "step", count)
    runs = runs_on(data, rounds=rounds, lesson=replace(LESSON, epochs=1))
    result = make(FeatureStore(str(store)), runs)

    assert 0 < n_steps == 12 - 1 - int(last) <= 12 - 6
    untouched = make(FeatureStore(str(tmp_path / "other")), runs)
    assert read_curves(result).equals(read_curves(untouched))
