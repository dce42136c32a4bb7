"""The card of a head, and what the card of a result repeats of it."""

import json
from typing import Any

import pytest

from stages.errors import InputError
from stages.introspection.head_card import HeadCard, TrainedNetwork
from stages.introspection.head_params import HeadParams
from stages.introspection.head_spec import HeadSpec
from stages.introspection.reading import Reading

SPEC = HeadSpec(n_classes=10, feature_dim=64, M=2.5).to_dict()
CONTROL = HeadSpec(n_classes=10, feature_dim=64, reads="features", scaling="none").to_dict()
VOTES = {"k": 10, **Reading(n_classes=10, feature_dim=64).to_dict()}
PARAMS = HeadParams(seeds=(0, 1)).to_dict()


@pytest.mark.parametrize(
    "facts",
    [
        {"predictor": "mlp", "features": "x", "spec": SPEC, "params": PARAMS, "rows": "held-out"},
        {"predictor": "mlp", "features": "x", "spec": CONTROL, "params": PARAMS, "rows": "all"},
        {"predictor": "temperature", "features": "x", "temperature": 1.5},
        {"predictor": "neighbours", "features": "x", "spec": VOTES},
    ],
)
def test_a_result_repeats_the_same_bytes(facts: dict[str, Any]) -> None:
    facts = {"head": "h", **facts}
    assert json.dumps(HeadCard.from_dict(facts).summary()) == json.dumps(facts)


def test_a_card_that_does_not_name_a_kind_is_a_trained_network() -> None:
    card = HeadCard.from_dict({"head": "h", "spec": SPEC, "params": PARAMS})
    assert isinstance(card.predictor, TrainedNetwork)
    assert (card.predictor.rows, card.seeds, card.features) == ("all", (0, 1), "")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([], "card of a head is not in our format"),
        ({"head": "h", "predictor": "forest"}, "head 'h': expected one of mlp, .* found 'forest'"),
        ({"head": "h", "predictor": ["mlp"]}, r"head 'h': expected one of mlp, .* found \['mlp'\]"),
        ({"head": "h", "predictor": "mlp", "spec": 5}, "head 'h' is not in our format"),
        ({"head": "h", "predictor": "mlp", "spec": SPEC}, "head 'h': params: Field required"),
        ({"head": "h", "predictor": "temperature", "temperature": "hot"}, "head 'h': temperature"),
        ({"head": "h", "predictor": "temperature", "temperature": 0}, "head 'h': temperature"),
        ({"head": "h", "predictor": "temperature", "temperature": "inf"}, "head 'h': temperature"),
        ({"predictor": "temperature", "temperature": 2}, "name: Input should be a valid string"),
    ],
)
def test_a_card_of_another_format_is_refused_in_one_line(facts: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        HeadCard.from_dict(facts)
    assert "\n" not in str(caught.value)
