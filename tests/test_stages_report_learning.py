import io
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from made import make_in
from small_data import write_npz_set

from pipeline.executors import LocalExecutor
from pipeline.fields import Labelled
from pipeline.journal import Journal
from stages.active_learning.active_runs import ActiveRuns, curves_job, lessons_of
from stages.active_learning.lesson import LessonParams
from stages.active_learning.rounds import RoundParams
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.report.learning import learning_table
from stages.report.report import Report
from stages.report.writing import MARKDOWN, PAGE, TABLE
from store.catalog import FeatureStore


def curves(of_f, of_h, strategy="badge"):
    """A run of each kind a seed: accuracies by seed and round."""
    rows = [
        {
            "network": "resnet18",
            "strategy": strategy,
            "kind": kind,
            "seed": seed,
            "round": number,
            "labelled": 10 * (number + 1),
            "test": "clean",
            "predictor": predictor,
            "accuracy": accuracy,
        }
        for kind, predictor, runs in (("f", "f", of_f), ("h", "H", of_h))
        for seed, run in enumerate(runs)
        for number, accuracy in enumerate(run)
    ]
    return pd.DataFrame(rows)


def row(table, contender):
    return table[table["contender"] == contender].iloc[0]


def test_gains_are_paired_by_seed():
    table = learning_table(curves([[0.1, 0.3], [0.5, 0.7]], [[0.2, 0.4], [0.6, 0.8]]), ("network",))

    assert row(table, "f")["mean"] == pytest.approx(0.4)
    assert row(table, "H")["gain"] == pytest.approx(0.1)
    assert row(table, "H")["gain_low"] == pytest.approx(0.1)  # both seeds gain the same
    assert row(table, "H")["low"] < 0.5 - 1  # and lie far from each other


def test_the_gain_of_h_has_a_part_that_is_due_to_its_images():
    both = curves([[0.1, 0.3]], [[0.2, 0.6]])
    beside = curves([[0.1, 0.4]], [])
    beside = beside.assign(predictor="f beside H", kind="h")
    table = learning_table(pd.concat([both, beside]), ("network",))

    assert row(table, "H")["gain"] == pytest.approx(0.2)
    assert row(table, "f beside H")["gain"] == pytest.approx(0.05)


def test_the_interval_is_that_of_students_t():
    gains = np.array([0.1, 0.2, 0.3])
    table = learning_table(curves([[0.0]] * 3, [[gain] for gain in gains]), ("network",))

    reach = 4.302653 * gains.std(ddof=1) / math.sqrt(3)
    assert row(table, "H")["gain_high"] == pytest.approx(0.2 + reach, rel=1e-6)


def test_one_seed_has_a_gain_and_no_interval():
    found = row(learning_table(curves([[0.1]], [[0.2]]), ("network",)), "H")

    assert found["gain"] == pytest.approx(0.1)
    assert math.isnan(found["gain_low"])
    assert math.isnan(found["std"])


def test_the_papers_numbers_are_shown_beside_ours():
    found = row(learning_table(curves([[0.1]], [[0.2]]), ("network",), "table-1"), "H")

    assert found["paper"] == 0.39
    assert found["paper_gain"] == pytest.approx(0.002)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    data = write_npz_set(folder / "few", 60, 20)
    threads = torch.get_num_threads()
    store = FeatureStore(str(folder / "store"))
    results = {}
    for kinds in (("f", "h"), ("h",)):
        lesson = LessonParams(network="cnn2", epochs=1, layers=(6,), lr=1e-3)
        runs = ActiveRuns(
            lessons_of(lesson, ("random", "margin"), kinds, (0, 1)),
            RoundParams(rounds=2, query=10, start=10),
            SourceSpec(str(data), "train", "", 8),
            {"clean": SourceSpec(str(data), "test", "", 8)},
        )
        journal = Journal.of(store.location, ["active-learn"])
        job = curves_job(store, runs, lambda: (LocalExecutor(1), "cpu"))
        results[kinds] = job.run(journal).output
    torch.set_num_threads(threads)
    return store, results


def reported(store, result, **changes):
    asked = {
        "title": "Who asks better",
        "results": (Labelled(label="", name=result.name, axes={"network": "cnn2"}),),
        "paper": "table-1",
    }
    return make_in(store, Report(**{**asked, **changes})).output


def test_the_page_has_table_curves_runs_and_limitations(learned):
    store, results = learned
    report = reported(store, results["f", "h"])
    page = report.read(MARKDOWN).decode()

    for name in ("H", "f beside H"):
        assert re.search(rf"On clean images {name} is (.* than f in|not clearly)", page)
    assert "| margin | f beside H |" in page
    assert "| margin | f |" in page
    assert "Fewer than 3 seeds: 2." in page
    assert "rounds 2 (20), query 10 (1,000), start 10 (100)" in page
    assert "(that of BADGE's code in brackets): learning rate of f 0.001 (0.0001).\n" in page
    assert "of 24 trainings ended after 1 epochs with less than 99 % training accuracy" in page
    assert "learning-curves.svg" in page
    assert b"<svg" in report.read(PAGE)
    assert len(pd.read_csv(io.BytesIO(report.read(TABLE)))) == 6


def test_a_result_of_h_alone_has_nothing_to_compare(learned):
    store, results = learned

    with pytest.raises(InputError, match="only has runs of h"):
        reported(store, results[("h",)])


def test_figures_of_other_results_are_refused(learned):
    store, results = learned

    with pytest.raises(InputError, match="no figure 'reliability' for active learning"):
        reported(store, results["f", "h"], figures=["reliability"])
