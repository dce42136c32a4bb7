"""The stage conformal: what it calibrates on, what it judges, and that it reads the store alone."""

import json
import sys

import numpy as np
import pytest
from cells import N_CLASSES, UNREAD, cells, small_head
from made import make_in
from pydantic import ValidationError

from cli.app import main
from stages.conformal.conformal import Conformal
from stages.conformal.conformal_result import HELD_OUT, Conformity, open_conformity
from stages.conformal.conformity import Shape, class_scores, threshold_of
from stages.errors import InputError
from stages.introspection.fit_temperature import FitTemperature
from stages.metrics.row_draws import row_draws
from stages.report.report import Report
from store.catalog import FeatureStore

CLEAN, MOVED = "clean-test@net", "shapes-test@net"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    store = FeatureStore(str(tmp_path_factory.mktemp("store"))).prepare()
    found = cells(store, "clean", n_rows=120, has_cells=False)
    cells(store)
    small_head(store, found, seeds=(0, 7))
    make_in(store, FitTemperature(features=found.name, name="t"))
    return store


def made(store: FeatureStore, **fields: object) -> Conformity:
    stage = Conformal(**{"calibration": CLEAN, "heads": (), **fields})
    return open_conformity(make_in(store, stage).output)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_a_result_is_that_of_a_loop_over_all_rows(store: FeatureStore, method: str) -> None:
    found = made(store, features=MOVED, methods=(method,), alpha=0.2, seed=3)
    own, other = store.open(CLEAN), store.open(MOVED)

    def scores(which: str, stream: int) -> tuple[np.ndarray, np.ndarray]:
        p = softmax(store.open(which).read("logits"))
        draws = row_draws(3, 0, len(p), stream=stream)
        return class_scores(method, p, draws, Shape()), store.open(which).samples()["label"]

    ours, labels = scores(CLEAN, 1)
    half = row_draws(3, 0, own.n_rows) < 0.5
    half[UNREAD] = False
    rows = np.flatnonzero(half)
    limit = threshold_of(ours[rows, labels[rows]], 0.2)
    assert found.thresholds["threshold"].tolist() == [limit]
    assert found.card.calibration_rows == len(rows)
    theirs, truth = scores(MOVED, 2)
    samples = other.samples()
    moved = found.by_group[found.by_group["set"] == MOVED]
    assert len(moved) == 6
    for row in moved.to_dict(orient="records"):
        fits = (samples["corruption"] == row["corruption"]) & (
            samples["severity"] == row["severity"]
        )
        here = [at for at in np.flatnonzero(fits) if at != UNREAD]
        sets = [set(np.flatnonzero(theirs[at] <= limit)) for at in here]
        assert row["n_rows"] == len(here)
        assert row["coverage"] == pytest.approx(
            np.mean([truth[at] in each for at, each in zip(here, sets, strict=True)])
        )
        assert row["size"] == pytest.approx(np.mean([len(each) for each in sets]))
        assert row["empty"] == pytest.approx(np.mean([not each for each in sets]))


def test_the_held_out_rows_are_those_that_did_not_calibrate(store: FeatureStore) -> None:
    found = made(store, methods=("lac",))
    (row,) = found.average.to_dict(orient="records")
    assert row["set"] == HELD_OUT
    assert row["n_rows"] + found.card.calibration_rows == 120 - 1  # one was not read
    assert row["low"] <= 0.9 <= row["high"]


def test_heads_of_every_kind_and_all_seeds_are_judged(store: FeatureStore) -> None:
    found = made(store, heads=["H=h", "T=t"], features=MOVED)
    seeds = found.by_group.groupby("predictor", sort=False)["seed"].unique().map(list)
    assert seeds.to_dict() == {"f": [0], "H": [0, 7], "T": [0]}
    over_seeds = found.by_class[found.by_class["set"] == MOVED].groupby(["predictor", "method"])
    assert (over_seeds["n_rows"].sum() == 83 * over_seeds["seed"].nunique()).all()


def test_too_few_rows_give_sets_of_all_classes_and_say_so(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    found = made(store, alpha=0.001, methods=("lac", "aps"))
    assert np.isinf(found.thresholds["threshold"]).all()
    assert found.average["size"].tolist() == [N_CLASSES] * 2
    assert found.average["coverage"].tolist() == [1.0, 1.0]
    assert found.card.unbounded == {"f": ("lac", "aps")}
    facts, err = said(store, capsys, "--alpha", "0.001", "--method", "lac,aps", "--head", "none")
    assert facts["unbounded"] == {"f": ["lac", "aps"]}
    assert "f: too few calibration rows for lac, aps: its sets hold every class" in err


def test_a_score_or_column_that_is_named_twice_counts_once(store: FeatureStore) -> None:
    once = made(store, methods=("lac",), by=("severity",), features=MOVED, by_class=True)
    twice = made(store, methods=("lac", "lac"), by=("severity",) * 2, features=MOVED, by_class=True)
    assert twice.artifact.name == once.artifact.name


def test_the_calibration_set_is_not_judged_as_another_one(store: FeatureStore) -> None:
    with pytest.raises(InputError, match="--features is the calibration set"):
        made(store, features=CLEAN)


def test_each_class_can_have_its_own_threshold(store: FeatureStore) -> None:
    found = made(store, by_class=True, methods=("lac",), share=0.8)
    assert found.thresholds["label"].tolist() == [0, 1, 2]
    assert found.thresholds["n_rows"].sum() == found.card.calibration_rows
    assert found.average["low"].isna().all()


def test_what_cannot_be_judged_is_refused_before_anything_is_written(store: FeatureStore) -> None:
    cells(store, "blank", has_labels=False)
    cells(store, "other", weights="w2")
    before = store.artifacts("result")
    for fields, message in (
        ({"share": 1.0}, "--share 1 leaves no rows to judge"),
        ({"by": ("level",)}, "unknown column 'level' in --by"),
        ({"features": "other-test@net"}, "expected features of one network"),
        ({"features": "blank-test@net"}, "expected labelled rows, found none among 84"),
        ({"calibration": "blank-test@net"}, "expected labelled rows, found none among 84"),
    ):
        with pytest.raises(InputError, match=message):
            made(store, **fields)
    assert store.artifacts("result") == before
    with pytest.raises(ValidationError, match="alpha"):
        Conformal(calibration=CLEAN, alpha=1.0)


def said(
    store: FeatureStore, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[dict[str, object], str]:
    command = ["conformal", "--calibration", CLEAN, *words, "--store", store.location, "--json"]
    sys.argv = ["intro-pipe", *command]
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert ended.value.code == 0
    return json.loads(captured.out), captured.err


def test_the_command_prints_coverage_by_set_and_severity(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.argv = ["intro-pipe", "conformal", "--calibration", CLEAN, "--features", MOVED]
    sys.argv += ["--head", "H=h", "--method", "lac", "--store", store.location]
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("set ")] == ["gap", "3"]
    assert sum(line.startswith(MOVED) for line in lines) == 4


def test_the_page_has_the_figures_that_fit(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, names = {}, []
    for fields in ({"features": MOVED}, {}):
        found = made(store, heads=["H=h"], methods=("lac", "saps"), **fields)
        sys.argv = ["intro-pipe", "report", found.artifact.name, "--store", store.location]
        sys.argv.append("--json")
        with pytest.raises(SystemExit) as ended:
            main()
        shown = json.loads(capsys.readouterr().out)
        assert ended.value.code == 0
        figures[len(fields)] = shown["figures"]
        names.append(found.artifact.name)
        assert any(line.startswith("On held-out rows, sets cover") for line in shown["shows"])
    assert figures[0] == ["coverage-by-class"]
    assert figures[1] == ["coverage-by-level", "set-size-by-level", "coverage-by-class"]
    labelled = Report(results=[f"{label}={name}" for label, name in zip("ab", names, strict=True)])
    page = make_in(store, labelled).output.read("report.md").decode()
    assert "- a: On held-out rows, sets cover" in page
    assert "- b: On held-out rows, sets cover" in page
