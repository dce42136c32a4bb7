"""The command export, and its round trip through Label Studio."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from cells import N_CLASSES, UNREAD, cells
from conftest import Command
from made import make_in

from cli.app import commands
from cli.exporting import FORMS
from pipeline.fields import Labelled
from stages.active_learning.labels import read_labels
from stages.curation.curate import Curate
from stages.evaluation.evaluate import Evaluate
from stages.export.export_file import WRITERS
from stages.introspection.fit_neighbours import FitNeighbours
from stages.introspection.fit_temperature import FitTemperature
from stages.scores.asked_scores import asked_scores, columns_of_scores, values_of
from stages.scores.known_scores import PLAIN
from store.catalog import FeatureStore


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A store with a set of 84 rows, one of them failed, and two heads."""
    store = FeatureStore(str(tmp_path_factory.mktemp("home") / "store")).prepare()
    found = cells(store)
    make_in(store, FitTemperature(features=found.name, name="warm"))
    make_in(store, FitNeighbours(features=found.name, name="near", k=3))
    return SimpleNamespace(store=store, set=found)


@pytest.fixture
def run(
    home: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command
) -> Command:
    """Run ``export shapes@net`` with these options in an empty folder."""
    monkeypatch.setenv("INTRO_PIPE_STORE", home.store.location)
    monkeypatch.chdir(tmp_path)
    return lambda words, code=0: intro_pipe(f"export shapes@net {words}", code)


def test_a_table_has_the_predictions_of_f_and_of_a_head(run: Command, tmp_path: Path) -> None:
    said = json.loads(run("--head T=warm --scores energy,energy --out x.csv --json")[0])

    assert said == {"out": "x.csv", "format": "csv", "n_rows": 84, "interface": None}
    found = pd.read_csv(tmp_path / "x.csv")
    assert found["prediction"][UNREAD] == -1
    rest = found.drop(index=UNREAD)
    assert (rest["prediction"] == rest["T_prediction"]).all()
    assert (rest["prediction_name"] == rest["prediction"]).all()  # classes without names
    assert not (rest["confidence"] == rest["T_confidence"]).any()
    assert rest["T_energy"].notna().all()


def test_what_a_curation_found_goes_into_every_format(
    run: Command, tmp_path: Path, home: SimpleNamespace
) -> None:
    made = make_in(home.store, Curate(features=home.set.name, top=0, folds=2, name="odd")).output
    ranked = made.read_frame("ranked.parquet").set_index("row").sort_index()
    words = "--curation odd --images https://host/i --out x --format"
    for form in FORMS:
        run(f"{words} {form}")
        if form in ("csv", "parquet"):
            read = pd.read_csv if form == "csv" else pd.read_parquet
            found = read(tmp_path / "x")
        else:
            tasks = json.loads((tmp_path / "x").read_text())
            samples = tasks["samples"] if form == "fiftyone" else [each["data"] for each in tasks]
            found = pd.DataFrame(samples)
        for name in ("is_label_issue", "self_confidence", "el2n", "similarity"):
            mine = found[name].to_numpy(float)
            np.testing.assert_allclose(mine, ranked[name].to_numpy(float), rtol=1e-12)
        suggested = [each["suggested_name"].drop(UNREAD).astype(float) for each in (found, ranked)]
        assert suggested[0].tolist() == suggested[1].tolist()
    other = make_in(home.store, Evaluate(features=home.set.name, heads=(), resamples=0)).output
    refusal = run(f"--curation {other.name} --out y.csv", 2)[1]
    assert "expected a result of curate" in refusal
    assert not (tmp_path / "y.csv").exists()


def test_scores_are_fitted_to_training_rows(
    run: Command, tmp_path: Path, home: SimpleNamespace
) -> None:
    run("--head T=warm --scores knn,klm --training shapes@net --out x.parquet")

    found = pd.read_parquet(tmp_path / "x.parquet")
    names = ("confidence", "knn", "klm")
    expected = asked_scores(
        home.store, home.set, names, home.set, [Labelled(label="T", name="warm")]
    )
    values = values_of(expected, home.set.read("features"), home.set.read("logits"))
    columns = columns_of_scores(expected)
    assert columns == [*names, "T_confidence", "T_knn", "T_klm"]
    np.testing.assert_allclose(found[columns[1:]].to_numpy().T, values[1:])
    assert found["knn"].equals(found["T_knn"])
    assert not found["klm"].equals(found["T_klm"])


def test_rows_are_selected_as_in_a_query(run: Command, tmp_path: Path) -> None:
    out, err = run("--where severity=2,3 --where corruption=fog --out x.parquet")

    assert (out, err.splitlines()[-1]) == ("", "28 rows in x.parquet")
    found = pd.read_parquet(tmp_path / "x.parquet")
    assert set(found["severity"]) == {2, 3}
    assert set(found["corruption"]) == {"fog"}


def test_labels_given_in_label_studio_come_back(run: Command, tmp_path: Path) -> None:
    (tmp_path / "to-label.csv").write_text(
        "number,sample_id,label\n1,snow/1/00002,\n2,fog/1/00000,\n"
    )
    interface, _ = run(
        "--samples to-label.csv --format label-studio --images https://host --out tasks.json"
    )
    assert interface.count("<Choice value=") == N_CLASSES

    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["data"]["sample_id"] for task in tasks] == ["fog/1/00000", "snow/1/00002"]
    for task, name in zip(tasks, ("2", "0"), strict=True):
        (result,) = task["predictions"][0]["result"]
        chosen = {**result, "value": {"choices": [name]}}
        task["annotations"] = [{"id": 1, "was_cancelled": False, "result": [chosen]}]
    (tmp_path / "exported.json").write_text(json.dumps(tasks))
    known = {"fog/1/00000": 5, "snow/1/00002": 7}
    assert read_labels([tmp_path / "exported.json"], known) == {5: "2", 7: "0"}


def test_the_help_lists_all_formats_and_scores() -> None:
    options = {option: str(p.help) for p in commands()["export"].params for option in p.opts}

    assert tuple(WRITERS) == FORMS
    assert [form for form in WRITERS if form not in options["--format"]] == []
    assert [score for score in PLAIN if score not in options["--scores"]] == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--out x.json", "--out x.json: expected --format with one of csv, parquet, label-studio"),
        ("--out x.csv --format excel", "--format excel: expected --format with one of csv"),
        ("--out /dev/full --format csv", "--out /dev/full: expected a file in an existing folder"),
        ("--out no/x.csv", "--out no/x.csv: expected a file in an existing folder"),
        ("--out x.parquet --escape-formulas", "--escape-formulas is for CSV, found parquet"),
        ("--out x.csv --scores odin", "unknown score 'odin': choose from confidence"),
        ("--out x.csv --scores knn", "score knn: expected --training"),
        ("--out x.csv --training shapes@net", "--training: none of the scores is fitted"),
        (
            "--out x.csv --where site=1",
            "--where site=1: expected COLUMN=VALUE, or another comparison",
        ),
        ("--out x.csv --head f=warm", "expected a unique label for each, other than 'f'"),
        (
            "--out x.csv --head near",
            "expected a trained network, a temperature or a Laplace approximation",
        ),
        ("--out x.csv --head gone", "head 'gone' does not exist"),
        ("--out x.csv --samples no.csv", "no.csv: cannot be read (No such file or directory)"),
        ("--out x.json --format fiftyone", "--format fiftyone: expected --images"),
    ],
)
def test_mismatches_are_refused_in_one_line_and_nothing_is_written(
    run: Command, tmp_path: Path, words: str, why: str
) -> None:
    assert why in run(words, 2)[1]
    assert list(tmp_path.iterdir()) == []
