"""Reports: a self-contained page with the provenance of its numbers."""

import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cells import cells
from judged_cells import CONTROL, journal_of, result_of_cells
from made import make_in

from pipeline.fields import Labelled
from pipeline.make import make
from pipeline.workspace import Workspace
from stages.errors import InputError
from stages.evaluation.evaluate import Evaluate
from stages.metrics.definitions import DEFINITIONS
from stages.report.figures import FIGURES
from stages.report.judged import figures_for
from stages.report.report import Report
from stages.report.results import Entry
from stages.report.writing import copy_report
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import NotFoundError, PlanMismatchError
from store.plan import Plan
from store.seal import sealed
from store.verify import verify_artifact

HOSTILE = "<script>alert('$x_1$')</script>|`"
ALL = [
    name
    for name, kind in FIGURES.items()
    if name not in ("by-epoch", "accuracy-by-class")
    and kind.part != "detections"
    and "mutual_information" not in kind.needs
]
RESNET = {"network": "resnet18"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(str(tmp_path_factory.mktemp("place") / "store")).prepare()


@pytest.fixture(scope="module")
def result(place: FeatureStore) -> Artifact:
    return result_of_cells(place, cells(place))


@pytest.fixture(scope="module")
def full(place: FeatureStore, result: Artifact) -> Artifact:
    return build(place, result, "full", figures=ALL)


def labelled(entries: Sequence[tuple[dict[str, Any], Artifact]]) -> tuple[Labelled, ...]:
    return tuple(Labelled(label="", name=found.name, axes=axes) for axes, found in entries)


def asked(result: Artifact, **changes: Any) -> Report:
    fields = {
        "title": "Table 5",
        "about": "Small cells.",
        "results": labelled([(RESNET, result)]),
        "paper": "table-5",
        "figures": ["reliability"],
        **changes,
    }
    return Report(**fields)


def build(place: FeatureStore, result: Artifact, name: str, **changes: Any) -> Artifact:
    command = changes.pop("command", ("reproduce", "table-5"))
    journal = changes.pop("journal", None) or journal_of(place)
    stage = asked(result, name=name, **changes)
    made: Artifact = make(stage, Workspace(place, command=command), journal).output
    return made


def plan_of(place: FeatureStore, stage: Report) -> Plan:
    return stage.job(Workspace(place)).plan


def text(report: Artifact, key: str) -> str:
    return report.read(key).decode()


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_page_has_every_figure_and_every_definition(full: Artifact) -> None:
    page, markdown = Page(text(full, "report.html")), text(full, "report.md")
    assert page.tags.count("svg") == len(ALL)
    for name in ALL:
        assert ("id", f"figure-{name}") in page.attributes
        assert f"(figures/{name}.svg)" in markdown
        assert text(full, f"figures/{name}.svg").startswith("<?xml")
    for metric in ("accuracy", "ece", "mce", "brier"):
        assert DEFINITIONS[metric] in page.words


def test_a_card_without_the_definition_of_a_metric_is_refused(store: FeatureStore) -> None:
    result = result_of_cells(store, cells(store))
    card = result.card()
    del card["definitions"]["ece"]
    result.storage.write("result.json", sealed(card))
    with pytest.raises(InputError, match="card of a result: definitions: expected one of 'ece'"):
        build(store, result, "edited")


def test_a_page_fetches_and_runs_nothing(full: Artifact) -> None:
    html = text(full, "report.html")
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert "src" not in dict(page.attributes)
    assert {value[0] for key, value in page.attributes if key == "href" and value} <= {"#"}
    assert not re.search(r"@import|url\((?!#)", html)
    assert "prefers-color-scheme:dark" in html
    assert len(html) < 1_000_000


def test_hostile_names_are_text(place: FeatureStore) -> None:
    found = cells(place, "hostile")
    result = result_of_cells(place, found, labels=(HOSTILE, "H"))
    report = build(
        place, result, "hostile", title=HOSTILE, about=HOSTILE, notes=[HOSTILE], figures=ALL
    )
    page, markdown = Page(text(report, "report.html")), text(report, "report.md")
    assert "script" not in page.tags
    assert page.words.count(HOSTILE) > 5
    assert "<script>" not in markdown
    assert r"\|\`" in markdown
    table = [line for line in markdown.splitlines() if line.startswith("| &lt;")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {6, 7, 10}


@pytest.mark.filterwarnings("ignore:Glyph")  # there is none for a control character
def test_names_of_corruptions_are_text(place: FeatureStore) -> None:
    """They are names of files, which can hold anything; a control character is no XML."""
    found = cells(place, "strange", corruptions=(HOSTILE, "a\x1b[2J"))
    report = build(place, result_of_cells(place, found), "strange", figures=ALL)
    page = Page(text(report, "report.html"))
    assert "script" not in page.tags
    assert any(HOSTILE.replace("_", " ") in word for word in page.words)
    assert any("a\\x1b[2J" in word for word in page.words)


def test_csv_and_page_have_the_numbers_of_the_result(result: Artifact, full: Artifact) -> None:
    average = pd.read_parquet(io.BytesIO(result.read("average.parquet")))
    table = pd.read_csv(io.BytesIO(full.read("table.csv")))
    kept = average[average["metric"].isin(["accuracy", "ece", "mce", "brier"])]
    both = table.merge(kept, left_on=["contender", "metric"], right_on=["predictor", "metric"])
    assert len(both) == len(kept) == 12
    pd.testing.assert_series_equal(both["mean_x"], both["mean_y"], check_names=False)
    html, markdown = text(full, "report.html"), text(full, "report.md")
    for value in kept["mean"]:
        assert f"{value:.4f}" in html
        assert f"{value:.4f}" in markdown


def test_a_page_shows_its_provenance(place: FeatureStore, result: Artifact, full: Artifact) -> None:
    card, said = result.card(), " ".join(Page(text(full, "report.html")).words)
    assert result.name in said
    assert card["features"] in said
    assert "shapes-h" in said
    assert "12-8-3 on reflection (mse-m, single-pass), minmax" in said
    assert "0, 1" in said
    assert f"torch {card['versions']['torch']}" in said
    assert "intro-pipe reproduce table-5" in said
    assert place.location not in said


def test_a_page_lists_limitations(place: FeatureStore) -> None:
    result = result_of_cells(place, cells(place, "circles"), layers=(300, 100), epochs=40)
    short = build(place, result, "short", notes=["f is small."]).card()["falls_short"]
    assert "for all of cifar10c, ours for circles." in short[0]
    assert short[1].endswith(": H: epochs 40 (200), weight decay 0 (0.005), batch rows 16 (128).")
    assert "Fewer than 3 seeds: H (2)." in short
    assert any("1 rows of circles-test@net" in line for line in short)
    assert short[-1] == "f is small."


def test_a_part_of_the_papers_data_set_is_a_limitation(place: FeatureStore) -> None:
    result = result_of_cells(place, cells(place, "cifar10c"))
    short = build(place, result, "part").card()["falls_short"]
    assert (
        "ours for cifar10c with no split (theirs: test), 84 rows (theirs: 950,000), 6 c" in short[0]
    )


def test_training_is_described_only_beside_a_number_of_the_paper(
    place: FeatureStore, result: Artifact
) -> None:
    short = build(place, result, "no-number").card()["falls_short"]
    assert not any("Other training" in line for line in short)


def test_the_same_report_is_written_once(place: FeatureStore, result: Artifact) -> None:
    journal = journal_of(place)
    first = build(place, result, "once")
    before = Path(first.storage.location, "report.html").stat().st_mtime_ns
    again = build(place, result, "once", command=("report",), journal=journal)
    assert Path(again.storage.location, "report.html").stat().st_mtime_ns == before
    assert not journal.is_begun()


def test_two_reports_of_one_plan_are_the_same_bytes(place: FeatureStore, result: Artifact) -> None:
    one, other = (build(place, result, name, figures=ALL) for name in ("one", "other"))
    assert one.card()["files"] == other.card()["files"]


@pytest.mark.parametrize(
    "change", [{"title": "T"}, {"figures": ["accuracy-vs-ece"]}, {"paper": None}, {"notes": ["n"]}]
)
def test_another_report_does_not_take_the_name(
    place: FeatureStore, result: Artifact, change: dict[str, Any]
) -> None:
    assert plan_of(place, asked(result, **change)) != plan_of(place, asked(result))
    taken = build(place, result, "taken")
    with pytest.raises(PlanMismatchError):
        build(place, result, taken.name, **change)


def test_another_result_is_another_plan(place: FeatureStore, result: Artifact) -> None:
    other = result_of_cells(place, cells(place, "others"))
    assert plan_of(place, asked(other)) != plan_of(place, asked(result))


def test_a_report_cut_short_is_written_again(place: FeatureStore, result: Artifact) -> None:
    report = build(place, result, "cut")
    report.storage.remove(report.card_key)
    assert build(place, result, "cut").is_complete()
    assert not list(verify_artifact(report))


def test_mismatches_are_refused_before_anything_is_written(
    place: FeatureStore, result: Artifact
) -> None:
    with pytest.raises(InputError, match="epoch"):
        build(place, result, "refused", figures=["by-epoch"])
    with pytest.raises(NotFoundError):
        build(place, place.artifact("result", "no-such"), "refused")
    assert not Path(place.artifact("report", "refused").storage.location).exists()


def test_figures_are_chosen_by_what_the_results_have(place: FeatureStore, result: Artifact) -> None:
    assert figures_for(place, [Entry({}, result)]) == [x for x in ALL if FIGURES[x].is_default]
    clean = result_of_cells(place, cells(place, "clean", has_cells=False))
    assert figures_for(place, [Entry({}, clean)]) == ["accuracy-vs-ece", "reliability"]
    report = build(place, clean, "clean", figures=figures_for(place, [Entry({}, clean)]))
    assert report.is_complete()


def test_clean_and_corrupted_results_share_a_report(place: FeatureStore, result: Artifact) -> None:
    clean = result_of_cells(place, cells(place, "calm", has_cells=False))
    entries = [
        ({"set": name, "epoch": epoch}, found)
        for epoch, (name, found) in enumerate([("clean", clean), ("corrupted", result)], start=1)
    ]
    report = build(place, result, "both", results=labelled(entries), figures=["by-epoch"])
    assert "fog" in text(report, "figures/by-epoch.svg")
    assert "set clean · epoch 1" in text(report, "report.html")


def test_a_result_with_only_f_has_no_verdict(place: FeatureStore) -> None:
    found = cells(place, "stars")
    alone = make_in(place, Evaluate(features=found.name, heads=(), resamples=100)).output
    entries = [({"set": "f"}, alone), ({"set": "both"}, result_of_cells(place, found))]
    report = build(place, alone, "half", results=labelled(entries), figures=["reliability"])
    assert report.card()["shows"][0].startswith("In accuracy H, found in 1 of 2 results, is ")
    assert "For all rows: set both." in text(report, "report.md")


def test_without_a_table_there_is_no_csv(place: FeatureStore, result: Artifact) -> None:
    report = build(place, result, "bare", metrics=(), figures=["reliability"])
    assert sorted(report.card()["files"]) == [
        "figures/reliability.svg",
        "report.html",
        "report.md",
    ]


def test_copies_are_the_files(place: FeatureStore, full: Artifact, tmp_path: Path) -> None:
    copied = copy_report(full, tmp_path / "docs")
    assert {p.relative_to(tmp_path / "docs").as_posix() for p in copied} == set(
        full.card()["files"]
    )
    assert (tmp_path / "docs" / "report.md").read_bytes() == full.read("report.md")


def test_a_copy_replaces_an_earlier_report(
    place: FeatureStore, result: Artifact, full: Artifact, tmp_path: Path
) -> None:
    copy_report(full, tmp_path / "docs")
    small = build(place, result, "small", metrics=(), figures=["reliability"])
    copy_report(small, tmp_path / "docs")
    there = {p.relative_to(tmp_path / "docs").as_posix() for p in (tmp_path / "docs").rglob("*.*")}
    assert there == set(small.card()["files"])


@pytest.mark.parametrize("other", ["notes.txt", "figures/mine.svg", "figures/deep/reliability.svg"])
def test_a_folder_of_other_files_is_not_changed(full: Artifact, tmp_path: Path, other: str) -> None:
    (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / other).write_text("mine")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="not part of a report: choose a new folder"):
        copy_report(full, tmp_path)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("file", ["docs", "docs/figures"])
def test_a_file_where_a_folder_must_be_is_refused(
    full: Artifact, tmp_path: Path, file: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        copy_report(full, tmp_path / "docs")


def test_no_line_of_the_markdown_ends_in_a_blank(full: Artifact) -> None:
    assert not [line for line in text(full, "report.md").splitlines() if line != line.rstrip()]


def test_the_card_records_what_the_report_shows(full: Artifact) -> None:
    card = json.loads(full.storage.read("report.json"))
    assert card["figures"] == ALL
    assert card["shows"][0].startswith("In accuracy H is ")
    assert CONTROL in card["shows"][0]
