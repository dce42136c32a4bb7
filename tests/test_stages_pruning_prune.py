"""Prune a small training set: scores, subsets, accuracies, the table of means, files, page."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from clouds import N_CLASSES, N_ROWS, clouds
from conftest import Command
from made import make_in

from stages.errors import InputError
from stages.introspection.head_params import HeadParams
from stages.pruning.prune import Prune
from stages.pruning.pruned import (
    ALL,
    BY_SEED,
    KEPT,
    MEANS,
    RANDOM,
    Labelled,
    Plan,
    accuracies,
    n_kept,
    subsets,
)
from stages.scores.training_value import TRAINING_VALUES
from store.artifacts import Artifact
from store.catalog import FeatureStore

SHARES = (0.1, 0.5)
OPTIONS: dict[str, Any] = {"keep": SHARES, "epochs": 2, "seeds": (0, 3)}
UNREAD = 5


def made_in(store: FeatureStore, **options: Any) -> Artifact:
    train, test = clouds(store), clouds(store, "clouds-test")
    given = {"features": train.name, "test": test.name, **OPTIONS, **options}
    found: Artifact = make_in(store, Prune(**given)).output
    return found


def test_scores_agree_with_a_loop_over_rows() -> None:
    rng = np.random.default_rng(0)
    f, z = rng.normal(size=(9, 4)), 3 * rng.normal(size=(9, 3))
    labels = rng.integers(0, 3, 9)
    for row, label in enumerate(labels):
        p = np.exp(z[row]) / np.exp(z[row]).sum()
        delta = p - np.eye(3)[label]
        others = [p[each] for each in range(3) if each != label]
        slow = {
            "el2n": np.sqrt(sum(delta**2)),
            "grand": np.linalg.norm(np.outer(delta, [*f[row], 1])),
            "margin": max(others) - p[label],
        }
        for name, kind in TRAINING_VALUES.items():
            assert kind.score(f, z, labels)[row] == pytest.approx(slow[name])


def test_one_class_has_no_other() -> None:
    f, z, labels = np.ones((2, 3)), np.zeros((2, 1)), np.zeros(2, np.int64)
    assert TRAINING_VALUES["margin"].score(f, z, labels).tolist() == [-1, -1]
    assert TRAINING_VALUES["el2n"].score(f, z, labels).tolist() == [0, 0]


@pytest.mark.parametrize("order", ["hardest", "easiest"])
def test_subsets_are_the_ends_of_a_score_and_random_draws(store: FeatureStore, order: str) -> None:
    rows = Labelled.of(clouds(store))
    plan = Plan(("grand",), SHARES, order, HeadParams(epochs=1, seeds=(0, 3)))
    found = {(name, share, seeds): at for name, share, seeds, at in subsets(rows, plan)}
    scores = TRAINING_VALUES["grand"].score(rows.features, rows.logits, rows.labels)
    for share in SHARES:
        kept = found["grand", share, (0, 3)]
        left = np.setdiff1d(np.arange(len(rows)), kept)
        assert len(kept) == n_kept(share, len(rows)) == round(share * (N_ROWS - 1))
        if order == "hardest":
            assert scores[kept].min() >= scores[left].max()
        else:
            assert scores[kept].max() <= scores[left].min()
        one, other = (found[RANDOM, share, (seed,)] for seed in (0, 3))
        assert len(one) == len(other) == len(kept)
        assert not np.array_equal(one, other)
        assert len(np.unique(one)) == len(one)
    assert len(found[ALL, 1.0, (0, 3)]) == len(rows)


def test_accuracies_are_of_every_training_and_gains_are_by_seed(store: FeatureStore) -> None:
    found = made_in(store, by=("el2n", "margin"))
    by_seed = found.read_frame(BY_SEED)
    assert len(by_seed) == 2 * (1 + 3 * len(SHARES))
    train, test = (
        Labelled.of(store.open(name)) for name in ("clouds-train@net", "clouds-test@net")
    )
    params = HeadParams(epochs=2, weight_decay=5e-4, seeds=(0, 3))
    plan = Plan(("el2n", "margin"), SHARES, "hardest", params)
    for name, share, seeds, at in subsets(train, plan):
        mine = by_seed[(by_seed["score"] == name) & (by_seed["keep"] == share)].set_index("seed")
        for seed, accuracy in accuracies(train, test, at, params, seeds, lambda _: None).items():
            assert mine.loc[seed, "accuracy"] == accuracy
    for _, row in found.read_frame(MEANS).iterrows():
        is_keep = by_seed["keep"] == row["keep"]
        ours, theirs = (
            by_seed[is_keep & (by_seed["score"] == name)].set_index("seed")["accuracy"]
            for name in (row["score"], RANDOM)
        )
        assert row["accuracy"] == pytest.approx(ours.mean())
        assert row["gain"] == pytest.approx((ours - theirs).mean(), nan_ok=True)
        assert row["n_classes"] <= N_CLASSES


def test_kept_rows_are_written_for_other_trainings(store: FeatureStore, tmp_path: Path) -> None:
    found = made_in(store, by=("el2n",), out=str(tmp_path / "kept"))
    kept = found.read_frame(KEPT)
    assert UNREAD not in set(kept["row"])
    written = pd.read_csv(tmp_path / "kept" / "el2n-0.5.csv")
    half = kept[(kept["keep"] == 0.5) & (kept["score"] == "el2n")]
    assert written["row"].tolist() == half["row"].tolist()
    labels = store.open("clouds-train@net").samples()["label"]
    assert written["label"].tolist() == labels[written["row"]].tolist()
    chance = pd.read_csv(tmp_path / "kept" / "random-0.5.csv")["row"].tolist()
    rows = Labelled.of(store.open("clouds-train@net"))
    plan = Plan(("el2n",), SHARES, "hardest", HeadParams(epochs=1, seeds=(0, 3)))
    drawn = {(name, share, seeds): at for name, share, seeds, at in subsets(rows, plan)}
    assert chance == rows.rows[drawn[RANDOM, 0.5, (0,)]].tolist()


def test_the_page_has_a_table_and_curves(
    store: FeatureStore, tmp_path: Path, intro_pipe: Command
) -> None:
    made_in(store, name="pruned")
    intro_pipe(f"report pruned --out {tmp_path}/page --store {store.location}")
    page = (tmp_path / "page" / "report.html").read_text()
    table = pd.read_csv(tmp_path / "page" / "table.csv")
    assert "random subsets of the same size is between" in page
    assert page.count("<svg") >= 1
    assert set(table["score"]) == {ALL, RANDOM, *TRAINING_VALUES}


def test_the_page_distinguishes_small_shares_and_results(
    store: FeatureStore, tmp_path: Path, intro_pipe: Command
) -> None:
    for name, keep in (("one", (0.011, 0.012)), ("two", (0.5,))):
        made_in(store, name=name, by=("el2n",), keep=keep)
    intro_pipe(f"report one two --out {tmp_path}/page --store {store.location}")
    text = (tmp_path / "page" / "report.md").read_text()
    assert "| 1.1% | 1.2% | 50% | 100% |" in text
    assert "- two: clouds-train@net" in text
    assert text.count("is between") == 1


def test_unlabelled_and_foreign_rows_are_refused(store: FeatureStore) -> None:
    train = clouds(store)
    bare = clouds(store, "bare-test", is_labelled=False)
    other = clouds(store, "other-test", weights="w2")
    shifted = clouds(store, "shifted-test", first_label=1)
    before = store.artifacts("result")
    cases = (
        (bare, "expected labelled rows"),
        (other, "--test other-test"),
        (shifted, "expected labels of the network's 3 classes, found 3"),
    )
    for test, text in cases:
        with pytest.raises(InputError, match=text):
            make_in(store, Prune(features=train.name, test=test.name, **OPTIONS))
    with pytest.raises(InputError, match="is a file, expected a folder"):
        make_in(store, Prune(features=train.name, test=train.name, out=__file__, **OPTIONS))
    assert store.artifacts("result") == before
