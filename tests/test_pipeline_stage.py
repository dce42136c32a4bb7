"""Fields that had other names in version 0.4 and before."""

from typing import Any

import pytest
from pydantic import ValidationError

from stages.analysis.analyse import Analyse
from stages.reflection.extract import Extract


def test_a_field_is_read_by_its_old_name() -> None:
    values: dict[str, Any] = {"dataset": "digits", "batch": 8}
    assert Extract(**values).batch_size == 8


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        (Extract, {"dataset": "digits", "batch": 8, "batch_size": 9}),
        (Analyse, {"features": "a", "batch": 8}),
    ],
)
def test_an_unknown_field_is_refused_by_the_name_that_was_given(
    stage: type[Extract], values: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match=r"\nbatch\n"):
        stage(**values)
