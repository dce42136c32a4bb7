"""The evaluate command: heads by label, one table, and the same result a second time."""

import json
import re
from pathlib import Path

import pytest
from cells import cells, small_head
from click.testing import Result
from typer.testing import CliRunner

from cli.app import app
from pipeline.journal import runs
from stages.errors import InputError
from stages.metrics.definitions import DEFINITIONS
from store.catalog import FeatureStore


def evaluate(store: FeatureStore, *words: str) -> Result:
    command = ["evaluate", "--store", store.location, "--features", "shapes@net", *words]
    return CliRunner().invoke(app, [*command, "--resamples", "100"])


def files_in(store: FeatureStore) -> set[Path]:
    return {path for path in Path(store.location).rglob("*") if path.is_file()}


def test_f_is_compared_with_the_only_head_called_h(store: FeatureStore) -> None:
    small_head(store, cells(store))
    title, header, of_f, of_h, *told = evaluate(store).stdout.splitlines()
    assert title.startswith("shapes-test@net, 84 rows, mean over 6 groups")
    assert header.split()[:6] == ["predictor", "seeds", "accuracy", "ece", "mce", "brier"]
    assert (of_f.split()[:2], of_h.split()[:2]) == (["f", "1"], ["H", "1"])
    assert "[" not in of_f
    assert of_h.count("[") == 2
    assert "±" not in of_h
    files, page = told
    assert files.endswith("{by-group,average,differences,bins}.parquet")
    assert re.search(r": intro-pipe report shapes-test@net-[0-9a-f]+$", page)


def test_f_alone_has_no_gains(store: FeatureStore) -> None:
    cells(store)
    _, header, of_f, *told = evaluate(store, "--head", "none").stdout.splitlines()
    assert header.split() == ["predictor", "seeds", "accuracy", "ece", "mce", "brier"]
    assert len(told) == 2
    assert len(of_f.split()) == 6


def test_the_definitions_are_in_the_json(store: FeatureStore) -> None:
    cells(store)
    said = json.loads(evaluate(store, "--head", "none", "--by", "label", "--json").stdout)
    assert said["definitions"]["brier"] == DEFINITIONS["brier"]
    assert "cells (label)" in said["definitions"]["mean"]


def test_heads_have_the_labels_they_are_given_or_their_names(store: FeatureStore) -> None:
    found = cells(store)
    small_head(store, found, "one")
    small_head(store, found, "five", seeds=(0, 1))
    shown = evaluate(store, "--head", "A=one", "--head", "five").stdout.splitlines()
    assert [line.split()[:2] for line in shown[2:5]] == [["f", "1"], ["A", "1"], ["five", "2"]]
    assert shown[4].count("±") == 4


def test_a_second_time_the_result_is_read_and_the_run_leaves_no_journal(
    store: FeatureStore,
) -> None:
    small_head(store, cells(store))
    first = json.loads(evaluate(store, "--json").stdout)
    before = files_in(store)
    assert json.loads(evaluate(store, "--json").stdout) == first
    assert files_in(store) == before
    assert [run.outcome for run in runs(store.location)][:1] == ["done"]


def test_a_dry_run_names_the_result_and_writes_nothing(store: FeatureStore) -> None:
    small_head(store, cells(store))
    before = files_in(store)
    preview = json.loads(evaluate(store, "--dry-run", "--json").stdout)
    assert files_in(store) == before
    assert json.loads(evaluate(store, "--json").stdout)["result"] == preview["result"]


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_heads_that_share_a_label_are_refused(store: FeatureStore, options: list[str]) -> None:
    small_head(store, cells(store))
    refused = evaluate(store, "--head", "f=h", *options)
    assert isinstance(refused.exception, InputError)
    assert "found 'f': name heads as LABEL=NAME" in str(refused.exception)
