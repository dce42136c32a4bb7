"""The report command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cells import cells
from conftest import Command
from judged_cells import result_of_cells

from pipeline.journal import runs
from store.catalog import FeatureStore


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store with two results, made once; leave it as it is."""
    place = FeatureStore(str(tmp_path_factory.mktemp("judged") / "store")).prepare()
    for name in ("shapes", "shades"):
        result_of_cells(place, cells(place, name), seeds=(0,), n_resamples=100)
    return place


@pytest.fixture
def store(judged: FeatureStore, tmp_path: Path) -> FeatureStore:
    copied = shutil.copytree(judged.location, tmp_path / "store")
    shutil.rmtree(copied / "journal")
    return FeatureStore(str(copied))


@pytest.fixture
def run(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command):
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)

    def command(words: str, code: int = 0) -> str:
        out, err = intro_pipe(words, code)
        return out if code == 0 else err

    return command


def as_json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_result_becomes_a_page_that_is_copied(run, tmp_path: Path) -> None:
    said = run(f"report shapes --paper table-5 --out {tmp_path}/docs")
    assert said.startswith("In accuracy H is ")
    assert (tmp_path / "docs" / "report.html").is_file()
    assert (tmp_path / "docs" / "figures" / "gain-by-corruption.svg").is_file()


def test_a_second_call_does_nothing(run, store: FeatureStore) -> None:
    first = as_json(run("report shapes --json"))
    n_runs = len(list(runs(store.location)))
    again = as_json(run("report shapes --json"))
    assert again["report"] == first["report"]
    assert again["figures"] == [
        "accuracy-vs-ece",
        "gain-by-corruption",
        "gain-by-level",
        "ece-by-level",
        "reliability",
    ]
    assert len(list(runs(store.location))) == n_runs == 1


def test_verify_finds_a_report_that_was_altered(run, store: FeatureStore) -> None:
    made = as_json(run("report shapes --name page --figures reliability --json"))
    assert "results and reports: 0 problems" in run("verify")
    with Path(made["page"]).open("a") as page:
        page.write("!")
    run("verify", code=1)


def test_two_results_are_one_report(run) -> None:
    said = as_json(run("report shapes shades --name pair --figures ece-by-level --json"))
    assert (said["report"], said["figures"]) == ("pair", ["ece-by-level"])
    assert "of 2 (" in said["shows"][0]


def test_results_are_named_by_their_labels(run, store: FeatureStore) -> None:
    made = as_json(run("report clean=shapes shades --name pair --figures ece-by-level --json"))
    table = store.artifact("report", made["report"]).read("table.csv").decode()
    assert {line.split(",")[0] for line in table.splitlines()[1:]} == {"clean", "shades-test@net"}
    assert store.artifact("report", made["report"]).read("report.md").endswith(b"\n")
    assert "two results are named 'a': name each" in run("report a=shapes a=shades", code=2)
    assert "is given twice: give each result once" in run("report a=shapes b=shapes", code=2)


def test_two_results_of_one_set_are_told_apart_by_their_cells(run) -> None:
    found = as_json(run("evaluate --features shapes@net --head none --by label --json"))
    said = run("report shapes-test@net", code=2)
    assert "matches 2 results, expected one: " in said
    assert f"{found['result']} (f by label)" in said
    assert " by corruption,severity)" in said


def test_another_table_is_another_report(run) -> None:
    names = [
        as_json(run(f"report shapes --figures reliability --json {words}"))["report"]
        for words in ("", "--metrics nll,accuracy", "--paper table-5", "--title Other")
    ]
    assert len(set(names)) == 4


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("sh", "use more of the name"),
        ("nothing", "intro-pipe evaluate"),
        ("shapes --paper table-13", "table-3"),
        ("shapes --figures pie", "--figures: expected one of accuracy-vs-ece, "),
        ("shapes --metrics jaccard", "--metrics: expected one of accuracy, "),
        ("shapes --out {file}", "is a file"),
        ("shapes --out {file}/docs", "is a file"),
        ("shapes --out {file.parent}", "not part of a report"),
    ],
)
def test_mismatches_are_refused_in_one_line(
    run, store: FeatureStore, tmp_path: Path, words: str, why: str
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    said = run(f"report {words.format(file=file)}", code=2)
    assert why in said
    assert said.count("\n") == 1
    assert store.artifacts("report") == ()


def test_formulas_in_a_copied_table_are_escaped_on_request(
    run, store: FeatureStore, tmp_path: Path
) -> None:
    name = as_json(
        run("evaluate --features shapes@net --head @SUM(A1)=shapes-h --resamples 0 --json")
    )["result"]
    tables = {}
    for words in ("", "--escape-formulas"):
        run(f"report {name} --out {tmp_path}/docs {words}")
        tables[words] = (tmp_path / "docs" / "table.csv").read_text()
    assert "\n@SUM(A1)," in tables[""]
    assert tables["--escape-formulas"] == tables[""].replace("@SUM(A1)", "'@SUM(A1)")
    assert "add --out FOLDER" in run(f"report {name} --escape-formulas", 2)
