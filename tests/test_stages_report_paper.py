"""The paper's numbers as printed, each beside the matching row."""

import math
from typing import Any

import pytest

from stages.errors import InputError
from stages.introspection.comparison_card import Cells, ComparisonCard, Dataset
from stages.introspection.head_card import HeadCard
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


def head(kind: str, **facts: Any) -> HeadCard:
    return HeadCard.from_dict({"head": "h", "predictor": kind, **facts})


def mlp(**spec: Any) -> HeadCard:
    return head("mlp", spec={**SIZE, **H, "layers": [300, 100], **spec}, params={})


def neighbours(k: int = 10, **spec: Any) -> HeadCard:
    return head("neighbours", spec={"k": k, **SIZE, **spec})


def card(**changes: Any) -> ComparisonCard:
    facts = {
        "title": "t",
        "features": "x",
        "model": "f",
        "dataset": Dataset("cifar10", "test"),
        "rows": 10_000,
        "cells": Cells((), 1),
        "n_resamples": 0,
        "bootstrap_seed": 0,
        "seconds": 0.0,
    }
    empty = ("contenders", "seeds", "left_out_rows", "definitions", "versions")
    return ComparisonCard(**{**facts, **{key: {} for key in empty}, **changes})


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


def test_every_number_is_a_fraction_and_occurs_once() -> None:
    numbers = paper_numbers()
    assert numbers["value"].between(0, 1).all()
    assert not numbers.duplicated(["table", "network", "row", "metric"]).any()


def test_the_size_of_every_data_set_of_the_paper_is_known() -> None:
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
        ("table-5", head("temperature", temperature=2.0), None),
        ("table-7", mlp(loss="ce"), "ce"),
        ("table-7", mlp(loss="ce", variant="stack"), None),
        ("table-7", mlp(loss="ce", scaling="maxabs"), None),
        ("table-8", mlp(), "H 640-300-100-10"),
        ("table-8", mlp(layers=[]), "H 640-10"),
        ("table-8", mlp(layers=[], rank=64), None),
        ("table-8", mlp(reads="features", scaling="none", layers=[30, 20]), "f_L 64-30-20-10"),
        ("table-8", mlp(reads="features", layers=[30, 20]), None),
        ("table-8", neighbours(reads="features", scaling="none"), "10-NN on f"),
        ("table-8", neighbours(reads="features", scaling="minmax"), None),
        ("table-8", neighbours(reads="features+logits", scaling="none"), None),
        ("table-8", neighbours(**H), "10-NN on r_x"),
        ("table-8", neighbours(5, **H), None),
        ("table-8", neighbours(**H | {"loss": "ce"}), None),
        ("table-8", neighbours(**H | {"variant": "sum"}), None),
        ("table-8", mlp(loss="ce"), None),
        ("table-8", mlp(variant="stack"), None),
        ("table-8", mlp(scaling="none"), None),
        ("table-8", head("temperature", temperature=2.0), None),
    ],
)
def test_a_head_is_matched_to_its_row_of_the_paper(
    table: str, head: HeadCard | None, row: str | None
) -> None:
    assert paper_row(table, "resnet18", head) == row


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        ({"dataset": Dataset("digits")}, "digits"),
        ({"dataset": Dataset("cifar10", "train")}, "cifar10 with train split (theirs: test)"),
        ({"rows": 1000}, "cifar10 with 1,000 rows (theirs: 10,000)"),
        ({"cells": Cells((), 5)}, "cifar10 with 5 cells (theirs: 1)"),
    ],
)
def test_only_the_papers_complete_data_set_counts_as_the_same_data(change: Any, told: str) -> None:
    assert other_data("cifar10", card(**change)) == told


def test_a_detection_is_compared_with_the_papers_pair_of_sets() -> None:
    pair = Dataset("cifar10 against lsun-c", "test")
    assert other_data(pair.name, card(dataset=pair, detector="odin")) == ""
    assert other_data(pair.name, card(dataset=pair, detector="odin", rows=500)) == (
        "cifar10 against lsun-c with 500 rows (theirs: 10,000)"
    )


def test_the_h_of_vgg_is_wider() -> None:
    assert paper_row("table-5", "vgg16", mlp(layers=[1000, 100])) == "H"
    assert paper_row("table-5", "vgg16", mlp()) is None


def test_a_table_without_numbers_is_refused() -> None:
    with pytest.raises(InputError, match=r"table-9.*table-3"):
        check_paper_table("table-9")
