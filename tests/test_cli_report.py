"""report as people call it."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from cells import cells
from judged_cells import result_of_cells

from cli.app import main
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
def run(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)

    def command(words: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["intro-pipe", *words.split()])  # what main() reads
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        return said.out if code == 0 else said.err

    return command


def as_json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_result_becomes_a_page_that_is_copied(run, tmp_path: Path) -> None:
    said = run(f"report shapes --paper table-5 --out {tmp_path}/docs")
    assert said.startswith("In accuracy H is ")
    assert (tmp_path / "docs" / "report.html").is_file()
    assert (tmp_path / "docs" / "figures" / "gain-by-corruption.svg").is_file()


def test_the_second_time_nothing_is_done(run, store: FeatureStore) -> None:
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
    assert "results and reports: 0 wrong" in run("verify")
    with Path(made["page"]).open("a") as page:
        page.write("!")
    run("verify", code=1)


def test_two_results_are_one_report(run) -> None:
    said = as_json(run("report shapes shades --name pair --figures ece-by-level --json"))
    assert (said["report"], said["figures"]) == ("pair", ["ece-by-level"])
    assert "of 2 (" in said["shows"][0]


def test_another_table_is_another_report(run) -> None:
    names = [
        as_json(run(f"report shapes --figures reliability --json {words}"))["report"]
        for words in ("", "--metrics nll,accuracy", "--paper table-5", "--title Other")
    ]
    assert len(set(names)) == 4


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("sh", "write more of the name"),
        ("nothing", "intro-pipe evaluate"),
        ("shapes --paper table-4", "table-3"),
        ("shapes --figures pie", "choose from"),
        ("shapes --metrics jaccard", "choose from"),
        ("shapes --out {file}", "is a file"),
        ("shapes --out {file}/docs", "is a file"),
        ("shapes --out {file.parent}", "no part of a report"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    run, store: FeatureStore, tmp_path: Path, words: str, why: str
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    said = run(f"report {words.format(file=file)}", code=2)
    assert why in said
    assert said.count("\n") == 1
    assert store.artifacts("report") == ()
