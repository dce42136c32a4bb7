"""Conditions on sample columns: what they accept, and which rows satisfy them."""

import pyarrow as pa
import pytest

from stages.errors import InputError
from stages.reflection.conditions import columns_of, conditions, matching
from store.schema import Schema

SCHEMA = Schema(
    (),
    (
        ("site", "string"),
        ("sample_id", "string"),
        ("label", "int64"),
        ("prediction", "int64"),
        ("confidence", "float64"),
    ),
)
SAMPLES = pa.table(
    {
        "site": ["north", "south", "a,b", "label"],
        "sample_id": ["north", "1", "2", "3"],
        "label": [0, -1, 2, 1],
        "prediction": [0, 1, 1, -1],
        "confidence": [0.25, 0.5, 0.75, float("nan")],
    }
)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], [0, 1, 2, 3]),
        (["site=north,south"], [0, 1]),
        (["site = north"], [0]),
        (["site!=north"], [1, 2, 3]),
        (['site="a,b"'], [2]),
        (["site=sample_id"], [0]),
        (["site=label"], [3]),
        (["label=0,2"], [0, 2]),
        (["label==2"], [2]),
        (["label=-1"], [1]),
        (["prediction != label"], [2]),
        (["prediction=label"], [0]),
        (["confidence<0.5"], [0]),
        (["confidence <= 0.5"], [0, 1]),
        (["confidence>0.5"], [2]),
        (["confidence!=0.5"], [0, 2]),
        (["confidence>=.5", "label=2"], [2]),
        (["prediction>label"], []),
    ],
)
def test_rows_that_satisfy_all_conditions(texts: list[str], expected: list[int]) -> None:
    where = conditions(texts, SCHEMA)

    assert matching(SAMPLES, where).nonzero()[0].tolist() == expected
    assert set(columns_of(where)) <= set(SAMPLES.column_names)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected COLUMN=VALUE"),
        ("nothing=1", "expected COLUMN=VALUE, or another comparison"),
        ("label~1", "expected COLUMN=VALUE"),
        ("label<1,2", "expected one value after <"),
        ("label<high", "expected a whole number for label, found 'high'; classes are given by"),
        ("confidence=", "expected a number for confidence, found ''"),
    ],
)
def test_an_invalid_condition_is_refused(text: str, expected: str) -> None:
    with pytest.raises(InputError, match=f"^--where {text}: {expected}"):
        conditions([text], SCHEMA)
