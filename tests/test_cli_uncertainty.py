"""The commands uncertainty and detect-failures, and the pages of their results."""

import json
from itertools import combinations

import pytest
from cells import cells, small_head
from conftest import Command

from stages.errors import InputError
from stages.report.kinds import kind_of
from stages.report.vocabulary import PAGES
from store.catalog import FeatureStore


@pytest.fixture
def run(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command) -> Command:
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)
    small_head(store, cells(store), seeds=(0, 1))
    return intro_pipe


def test_uncertainty_prints_a_table_and_has_a_page(run: Command, store: FeatureStore) -> None:
    words = "uncertainty --features shapes-test@net --head H=h --ensemble Hs=H --resamples 100"
    out, _ = run(words)
    assert "mutual_information" in out
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["f", "H", "Hs"]
    result = json.loads(run(f"{words} --json")[0])
    assert result["definitions"]["Hs"] == "mean of the probabilities of H, all seeds"
    metrics = {row["metric"] for row in result["average"]}
    assert {"nll", "brier", "brier_sum", "entropy", "mutual_information"} <= metrics
    page = json.loads(run(f"report {result['result']} --json")[0])
    figures = ["nll-by-level", "entropy-by-level", "information-by-level", "reliability"]
    assert set(figures) <= set(page["figures"])
    report = store.artifact("report", page["report"])
    html = report.read("report.html").decode()
    assert "mutual information" in html
    assert "mean of the probabilities of H" in html


def test_failures_are_printed_best_first_and_have_a_page(run: Command, store: FeatureStore) -> None:
    words = "detect-failures --features shapes-test@net --head H=h --resamples 100"
    out, _ = run(words)
    rows = [line.split() for line in out.splitlines()[2:]]
    of_f = [float(row[2]) for row in rows if row[0] == "f"]
    assert of_f == sorted(of_f)
    assert len(of_f) == 9  # eight confidences, and H
    facts = json.loads(run(f"{words} --json")[0])
    assert facts["definitions"]["auroc_f"].startswith("chance that a correct row")
    name = facts["result"]
    page = json.loads(run(f"report {name} --json")[0])
    assert page["figures"] == ["risk-coverage", "confidence-ranking"]
    assert any("ranks the errors of f best, with AURC" in each for each in page["shows"])
    assert any("As a confidence in f's predictions, H has" in each for each in page["shows"])
    report = store.artifact("report", page["report"])
    table = report.read("table.csv").decode().splitlines()
    assert table[0].startswith("predictor,confidence,metric,mean")
    assert {line.split(",")[2] for line in table[1:]} >= {"aurc", "auroc_f"}
    out, _ = run(f"report {name} --metrics e_aurc --figures confidence-ranking --json")
    assert json.loads(out)["figures"] == ["confidence-ranking"]


@pytest.mark.parametrize(
    ("command", "frame"), [("uncertainty", "differences"), ("detect-failures", "curves")]
)
def test_several_sets_have_results_of_their_own_and_one_page(
    run: Command, store: FeatureStore, command: str, frame: str
) -> None:
    cells(store, "plain", has_cells=False)
    words = f"{command} --head H=h --resamples 100 --features"
    together = f"{words} plain-test@net --also shapes-test@net,plain-test@net"
    dry = json.loads(run(f"{together} --dry-run --json")[0])
    assert not any(store.artifact("result", name).is_complete() for name in dry["results"])
    out, _ = run(together)
    facts = json.loads(run(f"{together} --json")[0])
    names = [each["result"] for each in facts]

    assert names == dry["results"]
    assert [name.partition("@")[0] for name in names] == ["plain-test", "shapes-test"]
    for name, features in zip(names, ("plain-test@net", "shapes-test@net"), strict=True):
        alone = json.loads(run(f"{words} {features} --json")[0])
        assert alone == facts[names.index(name)]
        assert store.artifact("result", name).read_frame(f"{frame}.parquet").size
    assert out.splitlines()[-1] == f"all on one page: intro-pipe report {' '.join(names)}"
    page = json.loads(run(f"report {' '.join(names)} --json")[0])
    html = store.artifact("report", page["report"]).read("report.html").decode()
    assert all(name in html for name in names)


def test_no_set_is_judged_if_one_of_them_cannot_be(run: Command, store: FeatureStore) -> None:
    cells(store, "bare", has_labels=False)
    words = "uncertainty --features shapes-test@net --also bare-test@net --resamples 0"
    _, err = run(words, code=2)

    assert "bare-test@net" in err
    assert not [each for each in store.artifacts("result") if each.is_complete()]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--metrics ece", "failure detection has no ece"),
        ("--figures reliability", "no figure 'reliability' for failure detection"),
        ("--paper table-5", "the paper has no table of failure detection"),
    ],
)
def test_a_page_of_failures_without_its_numbers_is_refused(
    run: Command, options: str, reason: str
) -> None:
    run("detect-failures --features shapes-test@net --head none --resamples 0")
    assert reason in run(f"report shapes-test@net-failures {options}", code=2)[1]


def test_pages_of_several_results_name_them(run: Command, store: FeatureStore) -> None:
    cells(store, "other")
    for name in ("shapes", "other"):
        run(f"detect-failures --features {name}-test@net --head none --resamples 0")
        run(f"uncertainty --features {name}-test@net --head none --resamples 0")
    for kind in ("failures", "uncertainty"):
        words = " ".join(f"{name}-test@net-{kind}" for name in ("shapes", "other"))
        page = json.loads(run(f"report {words} --json")[0])
        html = store.artifact("report", page["report"]).read("report.html").decode()
        assert f"shapes-test@net-{kind}" in html
    both = "shapes-test@net-failures shapes-test@net-uncertainty"
    assert "use separate reports" in run(f"report {both}", code=2)[1]


def test_results_of_two_kinds_of_pages_are_refused(store: FeatureStore) -> None:
    results = []
    for stage in PAGES:
        results.append(store.artifact("result", f"of-{stage}"))
        results[-1].claim({"stage": {"name": stage}})
    judged = [f"of-{name}" for name in ("evaluate", "ood", "uncertainty")]
    for one, other in combinations(results, 2):
        if one.name in judged and other.name in judged:
            assert kind_of([one, other]) is kind_of([one])
        else:
            with pytest.raises(InputError, match=f"result {other.name} is one of .*separate rep"):
                kind_of([one, other])
