"""Curated rows of small sets: scores beside slow loops, failed and unlabelled rows, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from clouds import clouds
from conftest import Command
from made import make_in
from numpy.typing import NDArray
from small_data import train_small, write_npz_set

from stages.curation.curate import Curate
from stages.curation.curation_result import (
    CLASSES,
    JOINT,
    NEIGHBOURS,
    RANKED,
    CurationCard,
    suspected_pairs,
)
from stages.curation.near_rows import nearest_rows, unit_vectors
from stages.curation.refits import refitted_probabilities, stratified_folds
from stages.errors import InputError
from stages.introspection.reading import Reading
from stages.out_folder import PAGE
from stages.reflection.extract import Extract
from stages.reflection.losses import softmax
from stages.reflection.rank_one import last_layer_gradient
from store.artifacts import Artifact
from store.catalog import FeatureStore

RNG = np.random.default_rng(0)


def curated(store: FeatureStore, name: str = "clouds-train", **options: Any) -> Artifact:
    """The result for a set of clouds, without a sheet: clouds have no images."""
    found = make_in(store, Curate(features=f"{name}@net", **{"top": 0, **options})).output
    assert isinstance(found, Artifact)
    return found


def rows_of(result: Artifact) -> pd.DataFrame:
    return result.read_frame(RANKED).set_index("row").sort_index()


# Refits


def test_folds_share_every_class_evenly() -> None:
    labels = np.array([0] * 7 + [1] * 5 + [2])

    folds = stratified_folds(labels, 3, seed=1)

    assert sorted(np.bincount(folds)) == [4, 4, 5]
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=3)
        assert counts.max() - counts.min() <= 1
    assert (folds != stratified_folds(labels, 3, seed=2)).any()


def test_probabilities_are_those_of_a_layer_fitted_by_autograd() -> None:
    labels = np.arange(60) % 3
    features = (RNG.normal(size=(60, 4)) + np.eye(3, 4)[labels]).astype(np.float32)

    p = refitted_probabilities(features, labels, 3, n_folds=2, seed=0)

    folds = stratified_folds(labels, 2, seed=0)
    x, y = torch.from_numpy(features[folds == 0]).double(), torch.from_numpy(labels[folds == 0])
    mean, deviation = x.mean(0), x.std(0, correction=0)
    layer = torch.nn.Linear(4, 3).double()
    steps = torch.optim.LBFGS(layer.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        steps.zero_grad()
        z = layer((x - mean) / deviation)
        value = torch.nn.functional.cross_entropy(z, y, reduction="sum")
        value = value + layer.weight.square().sum() / 2
        value.backward()
        return value

    steps.step(loss)
    queries = torch.from_numpy(features[folds == 1]).double()
    expected = layer((queries - mean) / deviation).softmax(1).detach().numpy()
    np.testing.assert_allclose(p[folds == 1], expected, atol=2e-3)


def test_a_class_that_no_other_fold_has_is_impossible() -> None:
    labels = np.array([0] * 5 + [1] * 5 + [2])
    features = RNG.normal(size=(11, 2)).astype(np.float32)

    p = refitted_probabilities(features, labels, 4, n_folds=3, seed=0)

    assert p[10, 2] == 0
    assert (p[:, 3] == 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)


def test_rows_of_one_class_are_certain() -> None:
    features = RNG.normal(size=(6, 2)).astype(np.float32)

    p = refitted_probabilities(features, np.ones(6, np.int64), 2, n_folds=2, seed=0)

    assert p.tolist() == [[0, 1]] * 6


def test_a_feature_without_variance_in_the_fitted_rows_is_ignored() -> None:
    labels = np.arange(600) % 3
    features = (RNG.normal(size=(600, 4)) + np.eye(3, 4)[labels]).astype(np.float32)
    folds = stratified_folds(labels, 3, seed=0)
    constant = np.where(folds == 0, 0.5, 0.1).astype(np.float32)  # float32 cannot hold 0.1

    p = refitted_probabilities(np.column_stack([features, constant]), labels, 3, n_folds=3, seed=0)

    expected = refitted_probabilities(features, labels, 3, n_folds=3, seed=0)
    np.testing.assert_allclose(p[folds == 0], expected[folds == 0], atol=1e-4)


# Nearest rows


@pytest.mark.parametrize("is_same_set", [True, False])
@pytest.mark.parametrize("reads", ["features", "reflection"])
def test_nearest_rows_are_those_of_dense_cosines(reads: str, is_same_set: bool) -> None:
    n, m, k = 700, 700 if is_same_set else 300, 3
    f, z = np.abs(RNG.normal(size=(n, 6))), RNG.normal(size=(n, 4))
    g, y = (f, z) if is_same_set else (np.abs(RNG.normal(size=(m, 6))), RNG.normal(size=(m, 4)))
    reading = Reading(4, 6, reads, M=2.0 if reads == "reflection" else None, scaling="none")

    near = nearest_rows(
        unit_vectors(reading, f, z), unit_vectors(reading, g, y), k, is_same_set=is_same_set
    )

    ours, theirs = (f, g) if reads == "features" else (dense(f, z), dense(g, y))
    cosines = unit(ours) @ unit(theirs).T
    if is_same_set:
        np.fill_diagonal(cosines, -np.inf)
    np.testing.assert_allclose(near.cosines, -np.sort(-cosines, axis=1)[:, :k], atol=1e-6)
    assert (near.rows[:, 0] == cosines.argmax(axis=1)).mean() > 0.99


def dense(features: NDArray[np.float64], logits: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = last_layer_gradient(features, logits, M=2.0).dense()
    return found


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1, lengths)


def test_equal_rows_are_neighbours_in_their_order() -> None:
    f = np.array([[1, 0], [0, 1], [1, 0], [2, 0], [0, 0]], np.float32)
    vectors = unit_vectors(Reading(2, 2, "features", scaling="none"), f, np.zeros((5, 2)))

    near = nearest_rows(vectors, vectors, 9, is_same_set=True)

    assert near.rows.shape == (5, 4)  # all others
    assert near.rows[:4, :2].tolist() == [[2, 3], [0, 2], [0, 3], [0, 2]]
    assert near.cosines[0].tolist() == [1, 1, 0, 0]
    assert near.cosines[4].tolist() == [0] * 4  # a row of zeros is near to none


# The stage


def test_scores_of_f_are_those_of_a_loop(store: FeatureStore) -> None:
    found = clouds(store)
    rows = rows_of(curated(store, probabilities="stored", space="none"))
    labels, f = found.samples()["label"].to_numpy(), found.read("features").astype(np.float64)
    p = softmax(found.read("logits").astype(np.float64))
    for row in (0, 7, 299):
        delta = p[row] - np.eye(3)[labels[row]]
        gradient = np.outer(delta, [*f[row], 1])
        others = np.delete(p[row], labels[row])
        assert rows["el2n"][row] == pytest.approx(np.sqrt((delta**2).sum()))
        assert rows["grand"][row] == pytest.approx(np.sqrt((gradient**2).sum()))
        assert rows["margin"][row] == pytest.approx(others.max() - p[row, labels[row]])
        assert rows["self_confidence"][row] == pytest.approx(p[row, labels[row]], abs=1e-6)
        assert rows["suggested"][row] == p[row].argmax()


def test_every_row_is_ranked_and_failed_rows_come_last(store: FeatureStore) -> None:
    clouds(store)
    result = curated(store)
    ranked, card = result.read_frame(RANKED), CurationCard.of(result)

    assert sorted(ranked["row"]) == list(range(300))
    assert ranked["self_confidence"].dropna().is_monotonic_increasing
    last = ranked.iloc[-1]
    assert (last["row"], last["suggested"], last["nearest_row"]) == (5, -1, -1)
    assert not last["is_label_issue"]
    assert last[["self_confidence", "el2n", "similarity"]].isna().all()
    assert (card.rows, card.labelled) == (300, 299)
    assert card.issues == ranked["is_label_issue"].sum() > 0
    classes = result.read_frame(CLASSES)
    assert classes["n_rows"].sum() == 299
    assert classes["n_issues"].sum() == card.issues
    joint = result.read_frame(JOINT)
    assert joint.groupby("label")["n_expected"].sum().tolist() == classes["n_rows"].tolist()
    pairs = suspected_pairs(joint, 2)
    assert len(pairs) == 2
    assert (pairs["label"] != pairs["class"]).all()


@pytest.mark.parametrize("by", ["el2n", "grand", "similarity"])
def test_high_scores_come_first_and_ties_stay_in_order(store: FeatureStore, by: str) -> None:
    clouds(store)
    ranked = curated(store, by=by).read_frame(RANKED)

    assert ranked[by].dropna().is_monotonic_decreasing
    assert (ranked.groupby(by, sort=False)["row"].diff().dropna() > 0).all()


def test_nearest_rows_may_be_those_of_another_set(store: FeatureStore) -> None:
    train, test = clouds(store), clouds(store, "clouds-test")
    result = curated(store, "clouds-test", against=train.name, space="reflection", loss="ce")
    rows, table = rows_of(result), result.read_frame(NEIGHBOURS)

    ours, theirs = (
        last_layer_gradient(each.read("features"), each.read("logits"), loss="ce").dense()
        for each in (test, train)
    )
    cosines = np.nan_to_num(unit(ours) @ unit(theirs).T, nan=-2)
    kept = np.arange(300) != 5
    np.testing.assert_allclose(rows["similarity"][kept], cosines.max(axis=1)[kept], atol=1e-6)
    assert len(table) == 5 * 299
    assert 5 not in set(table["nearest_row"])
    labels = train.samples()["label"]
    assert (rows["nearest_label"][kept] == labels[rows["nearest_row"][kept]].to_numpy()).all()


def test_rows_without_labels_are_ranked_by_similarity_alone(store: FeatureStore) -> None:
    clouds(store, is_labelled=False)

    with pytest.raises(InputError, match="expected labelled rows, found none among 300"):
        curated(store)
    result = curated(store, by="similarity")

    assert CurationCard.of(result).labelled == 0
    assert result.read_frame(RANKED)["self_confidence"].isna().all()
    assert result.read_frame(CLASSES)["n_rows"].sum() == 0


def test_the_same_options_are_not_computed_again(store: FeatureStore) -> None:
    clouds(store)
    first = curated(store, probabilities="stored", space="none", seed=1, neighbours=2)
    again = curated(store, probabilities="stored", space="none", folds=7)

    assert first.name == again.name


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"by": "similarity", "space": "none"}, "--by similarity needs a --space"),
        ({"loss": "ce"}, "--loss has no effect without --space reflection"),
        ({"escape_formulas": True}, "add --out FOLDER"),
        ({"against": "others-train@net"}, "--against others-train@net-.*made with the model"),
        ({"folds": 400}, "--folds 400: expected at least as many labelled rows .* found 299"),
        ({"out": __file__}, "is a file, expected a folder"),
    ],
)
def test_what_cannot_be_curated_is_refused(
    store: FeatureStore, options: dict[str, Any], reason: str
) -> None:
    clouds(store)
    clouds(store, "others-train", weights="w2")
    with pytest.raises((ValueError, LookupError), match=reason):
        curated(store, **options)
    assert not list(store.artifacts("result"))  # not even one that is begun


# The command


def test_numbers_that_rows_lack_are_empty_on_the_page(
    store: FeatureStore, tmp_path: Path, intro_pipe: Command
) -> None:
    clouds(store, is_labelled=False)
    both = [curated(store, by="similarity", neighbours=n).name for n in (1, 2)]

    for _ in range(2):  # the second copy replaces the first
        intro_pipe(f"report {' '.join(both)} --out {tmp_path}/page --store {store.location}")

    lines = (tmp_path / "page" / "report.md").read_text().splitlines()
    assert any(line.startswith("| 4 |") for line in lines)
    assert not [line for line in lines if line.startswith("|") and "nan" in line]


def test_figures_of_several_results_are_numbered(
    store: FeatureStore, tmp_path: Path, intro_pipe: Command
) -> None:
    clouds(store)
    both = [curated(store, space="none", seed=seed).name for seed in (0, 1)]

    for _ in range(2):
        intro_pipe(f"report {' '.join(both)} --out {tmp_path}/page --store {store.location}")
    intro_pipe(f"report {both[0]} --out {tmp_path}/page --store {store.location}")

    assert len(list((tmp_path / "page" / "figures").iterdir())) == 3


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    data = write_npz_set(folder / "data" / "shapes", 200, 40)
    store = FeatureStore(str(folder / "store"))
    train_small(store, data)
    for split in ("train", "test"):
        make_in(store, Extract(dataset=str(data), split=split, model="cnn2"))
    return folder


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command) -> Command:
    monkeypatch.setenv("INTRO_PIPE_STORE", str(home / "store"))
    monkeypatch.setenv("INTRO_PIPE_DATA", str(home / "data"))
    return intro_pipe


def test_the_sheet_and_the_list_show_the_first_rows(home: Path, run: Command) -> None:
    words = "curate --features shapes-train@cnn2 --top 7 --folds 2"
    out, note = run(f"{words} --out {home / 'out'}")

    assert "of 200 labelled rows" in out
    assert "on these images" in note
    top = pd.read_csv(home / "out" / "top.csv")
    ranked = pd.read_parquet(home / "out" / RANKED)
    assert top["sample_id"].tolist() == ranked["sample_id"].tolist()[:7]
    page = (home / "out" / PAGE).read_text()
    assert page.count("<img") == 14
    assert "Nearest in f" in page
    assert (home / "out" / "sheet-1.png").read_bytes()[:4] == b"\x89PNG"
    run(f"export shapes-train@cnn2 --samples {home / 'out' / 'top.csv'} --out {home / 'rows.csv'}")
    assert len(pd.read_csv(home / "rows.csv")) == 7


def test_a_pair_of_nearest_rows_is_shown_once(home: Path, run: Command) -> None:
    words = "curate --features shapes-train@cnn2 --by similarity --top 20 --folds 2"
    run(f"{words} --out {home / 'pairs'}")

    top = pd.read_csv(home / "pairs" / "top.csv")
    pairs = {tuple(sorted(pair)) for pair in top[["row", "nearest_row"]].to_numpy().tolist()}
    assert len(pairs) == len(top) == 20


def test_leaks_between_splits_are_shown_with_both_images(home: Path, run: Command) -> None:
    words = "curate --features shapes-test@cnn2 --against shapes-train@cnn2 --by similarity"
    out, _ = run(f"{words} --top 3 --folds 2 --out {home / 'leaks'}")

    assert "similarity" in out
    assert (home / "leaks" / PAGE).read_text().count("<img") == 6


def test_the_page_shows_classes_pairs_and_rows(run: Command, home: Path) -> None:
    out, _ = run("curate --features shapes-train@cnn2 --folds 2 --name page --top 0")
    assert out.count("train/") == 10  # rows are listed without a sheet, too
    out, _ = run(f"report page --out {home / 'report'}")

    assert "of 200 labelled rows" in out
    text = (home / "report" / "report.md").read_text()
    html = (home / "report" / "report.html").read_text()
    assert "mathdefault" not in html  # ticks of a logarithmic axis are plain numbers
    for part in ("Suspected label errors by class", "Confused classes", "First rows", "memorised"):
        assert part in text
    figures = sorted(path.stem for path in (home / "report" / "figures").iterdir())
    assert figures == ["confident-joint", "issues-by-class", "score-distribution"]
    assert "no metrics to choose" in run("report page --metrics ece", code=2)[1]
    assert "no figure 'by-epoch'" in run("report page --figures by-epoch", code=2)[1]
