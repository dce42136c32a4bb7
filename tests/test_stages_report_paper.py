"""The paper's numbers: as it prints them, each beside what it is a number of."""

import math
from typing import Any

import pytest

from stages.errors import InputError
from stages.report.paper import (
    PAPER_DATA,
    check_paper_table,
    other_data,
    paper_number,
    paper_numbers,
    paper_row,
)

H = {"reads": "reflection", "loss": "mse-m", "variant": "single-pass", "scaling": "minmax"}
SIZE = {"n_classes": 10, "feature_dim": 64}


def mlp(**spec: Any) -> dict[str, Any]:
    return {"predictor": "mlp", "spec": {**SIZE, **H, "layers": [300, 100], **spec}}


@pytest.mark.parametrize(
    ("table", "network", "row", "metric", "value"),
    [
        ("table-3", "resnet101", "H", "accuracy", 0.9303),
        ("table-5", "resnet34", "f", "ece", 0.18),
        ("table-5", "resnet50", "H", "mce", 0.25),
        ("table-5", "resnet101", "H", "brier", 0.052),
        ("table-7", "resnet18", "soft-margin", "accuracy", 0.7091),
        ("table-8", "vgg16", "f_L 512-1024-256-10", "accuracy", 0.6243),
    ],
)
def test_numbers_are_those_that_the_paper_prints(
    table: str, network: str, row: str, metric: str, value: float
) -> None:
    assert paper_number(table, network, row, metric).value == value


def test_every_number_is_a_fraction_and_stands_there_once() -> None:
    numbers = paper_numbers()
    assert numbers["value"].between(0, 1).all()
    assert not numbers.duplicated(["table", "network", "row", "metric"]).any()


def test_of_every_data_set_of_the_paper_it_is_known_how_large_it_is() -> None:
    assert set(paper_numbers()["dataset"]) == set(PAPER_DATA)


def test_what_the_paper_does_not_print_is_nan() -> None:
    assert math.isnan(paper_number("table-5", "resnet34", "f", "accuracy").value)
    assert math.isnan(paper_number(None, "resnet34", "f", "accuracy").value)


@pytest.mark.parametrize(
    ("table", "head", "row"),
    [
        ("table-5", None, "f"),
        ("table-5", mlp(), "H"),
        ("table-5", mlp(loss="ce"), None),
        ("table-5", mlp(layers=[100]), None),
        ("table-5", mlp(rank=64), None),
        ("table-5", mlp(reads="features", loss=None), None),
        ("table-5", {"predictor": "temperature", "temperature": 2.0}, None),
        ("table-7", mlp(loss="ce"), "ce"),
        ("table-7", mlp(loss="ce", variant="stack"), None),
        ("table-7", mlp(loss="ce", scaling="maxabs"), None),
        ("table-8", mlp(), "H 640-300-100-10"),
        ("table-8", mlp(layers=[]), "H 640-10"),
        ("table-8", mlp(layers=[], rank=64), None),
        ("table-8", mlp(reads="features", scaling="none", layers=[30, 20]), "f_L 64-30-20-10"),
        ("table-8", mlp(reads="features", layers=[30, 20]), None),
        (
            "table-8",
            {"predictor": "neighbours", "spec": {"k": 10, "reads": "features", "scaling": "none"}},
            "10-NN on f",
        ),
        (
            "table-8",
            {
                "predictor": "neighbours",
                "spec": {"k": 10, "reads": "features", "scaling": "minmax"},
            },
            None,
        ),
        (
            "table-8",
            {
                "predictor": "neighbours",
                "spec": {"k": 10, "reads": "features+logits", "scaling": "none"},
            },
            None,
        ),
        ("table-8", {"predictor": "neighbours", "spec": {"k": 10, **H}}, "10-NN on r_x"),
        ("table-8", {"predictor": "neighbours", "spec": {"k": 5, **H}}, None),
        ("table-8", {"predictor": "neighbours", "spec": {"k": 10, **H, "loss": "ce"}}, None),
        ("table-8", {"predictor": "neighbours", "spec": {"k": 10, **H, "variant": "sum"}}, None),
        ("table-8", mlp(loss="ce"), None),
        ("table-8", mlp(variant="stack"), None),
        ("table-8", mlp(scaling="none"), None),
        ("table-8", {"predictor": "temperature", "temperature": 2.0}, None),
    ],
)
def test_a_head_has_the_row_of_what_it_is(table: str, head: Any, row: str | None) -> None:
    assert paper_row(table, "resnet18", head) == row


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        ({"dataset": {"name": "digits"}}, "digits"),
        (
            {"dataset": {"name": "cifar10", "split": "train"}},
            "cifar10 with train split (theirs: test)",
        ),
        ({"rows": 1000}, "cifar10 with 1,000 rows (theirs: 10,000)"),
        ({"cells": {"count": 5}}, "cifar10 with 5 cells (theirs: 1)"),
    ],
)
def test_only_all_of_the_papers_data_set_is_no_other_data(change: Any, told: str) -> None:
    card = {"dataset": {"name": "cifar10", "split": "test"}, "rows": 10_000, "cells": {"count": 1}}
    assert other_data("cifar10", {**card, **change}) == told


def test_the_h_of_vgg_is_wider() -> None:
    assert paper_row("table-5", "vgg16", mlp(layers=[1000, 100])) == "H"
    assert paper_row("table-5", "vgg16", mlp()) is None


def test_a_table_without_numbers_is_refused() -> None:
    with pytest.raises(InputError, match=r"table-9.*table-3"):
        check_paper_table("table-9")
