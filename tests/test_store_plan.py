"""Plans: canonical form, fingerprint, and differences."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.plan import canonical_json, differences, fingerprint, is_plan, readable_json

scalars = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
values = st.recursive(
    scalars.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    max_leaves=8,
)


@given(values)
def test_a_plan_read_back_has_its_fingerprint(value: Any) -> None:
    assert fingerprint(json.loads(readable_json(value))) == fingerprint(value)
    plan = {"value": value}
    assert is_plan(readable_json(plan), fingerprint(plan))


@given(values, values)
def test_two_values_differ_in_something_unless_their_spelling_is_one(ours: Any, them: Any) -> None:
    is_same = canonical_json(ours) == canonical_json(them)
    assert (not list(differences(ours, them))) == is_same


def test_the_order_of_keys_does_not_matter() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_the_fingerprint_is_unchanged() -> None:
    assert fingerprint({"name": "numbers", "n_rows": 10}) == "70849da8938b"


def test_differences_name_the_path_and_both_values() -> None:
    ours = {"inputs": {"model": {"M": 4.5}}, "n_rows": 10}
    theirs = {"inputs": {"model": {"M": 5.0}}, "n_rows": 10}
    assert list(differences(ours, theirs)) == ["inputs.model.M: 4.5, found 5.0"]


def test_a_missing_field_differs_from_one_that_is_null() -> None:
    assert list(differences({"M": None}, {})) == ["M: null, found nothing"]
    assert list(differences({}, {"M": None})) == ["M: nothing, found null"]


def test_long_values_are_cut_short() -> None:
    (line,) = differences({"names": ["name"] * 100}, {"names": []})
    assert len(line) < 100


def test_numbers_that_are_no_json_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"M": float("nan")})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a":1}', b"[]"])
def test_other_bytes_are_not_the_plan(data: bytes) -> None:
    assert not is_plan(data, fingerprint({"a": 1}))
