import json

import numpy as np
import pytest
import torch

from stages.errors import InputError, StageError
from stages.introspection.head import (
    Head,
    HeadSpec,
    head_bytes,
    load_head,
    predict_probabilities,
)
from stages.reflection.losses import LOSSES
from stages.reflection.rank_one import SCALINGS, last_layer_gradient

RNG = np.random.default_rng(0)
FEATURES = np.abs(RNG.normal(size=(40, 8))).astype(np.float32)
LOGITS = RNG.normal(size=(40, 4)).astype(np.float32)
SPEC = HeadSpec(4, 8, layers=(6, 5), M=1.5)


def a_head(spec: HeadSpec = SPEC) -> Head:
    torch.manual_seed(0)
    return Head(spec).eval()


def test_head_of_table_3_has_its_sizes() -> None:
    head = Head(HeadSpec(n_classes=10, feature_dim=64))
    shapes = [tuple(value.shape) for value in head.parameters() if value.ndim == 2]
    assert shapes == [(300, 640), (100, 300), (10, 100)]


def test_head_is_linear_layers_with_sigmoids_between() -> None:
    head = a_head()
    dense = last_layer_gradient(FEATURES, LOGITS, M=1.5).scaled("minmax").dense()
    (w1, b1), (w2, b2), (w3, b3) = (
        (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for layer in (head.first, head.rest[1], head.rest[3])
    )
    hidden = 1 / (1 + np.exp(-(dense @ w1.T + b1)))
    hidden = 1 / (1 + np.exp(-(hidden @ w2.T + b2)))
    found = head(SPEC.gradient(torch.from_numpy(FEATURES), torch.from_numpy(LOGITS)))
    np.testing.assert_allclose(found.detach(), hidden @ w3.T + b3, atol=1e-5)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("loss", LOSSES)
def test_folded_first_layer_gives_the_same_logits(loss: str, scaling: str) -> None:
    spec = HeadSpec(4, 8, layers=(6,), loss=loss, M=1.5, scaling=scaling)
    head = a_head(spec).double()
    gradient = spec.gradient(torch.from_numpy(FEATURES).double(), torch.from_numpy(LOGITS).double())
    torch.testing.assert_close(head.forward_folded(gradient), head(gradient), rtol=0, atol=1e-12)


def test_head_without_hidden_layers_is_linear() -> None:
    head = a_head(HeadSpec(4, 8, layers=(), M=1.0))
    assert len(list(head.parameters())) == 2
    assert predict_probabilities(head, FEATURES, LOGITS).shape == (40, 4)


def test_probabilities_are_float32_rows_that_sum_to_one() -> None:
    probabilities = predict_probabilities(a_head(), FEATURES, LOGITS)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_probabilities_do_not_depend_on_the_batch_or_on_the_container() -> None:
    whole = predict_probabilities(a_head(), FEATURES, LOGITS)
    by_seven = predict_probabilities(
        a_head(), torch.from_numpy(FEATURES), torch.from_numpy(LOGITS), batch_rows=7
    )
    np.testing.assert_allclose(whole, by_seven, atol=1e-6)


def test_failed_rows_stay_nan_and_touch_no_other() -> None:
    features = FEATURES.copy()
    features[3] = np.nan
    found = predict_probabilities(a_head(), features, LOGITS)
    expected = predict_probabilities(a_head(), FEATURES, LOGITS)
    assert np.isnan(found[3]).all()
    np.testing.assert_allclose(np.delete(found, 3, 0), np.delete(expected, 3, 0), atol=1e-6)


def test_prediction_switches_dropout_off_and_leaves_the_mode() -> None:
    head = a_head(HeadSpec(4, 8, layers=(6, 5), M=1.5, dropout=0.5)).train()
    first, second = (predict_probabilities(head, FEATURES, LOGITS) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert head.training


def test_written_head_predicts_the_same() -> None:
    head = a_head()
    again = load_head(SPEC, head_bytes(head))
    np.testing.assert_array_equal(
        predict_probabilities(again, FEATURES, LOGITS),
        predict_probabilities(head, FEATURES, LOGITS),
    )


@pytest.mark.parametrize("spec", [HeadSpec(4, 9, layers=(6, 5)), HeadSpec(4, 8, layers=(6,))])
def test_weights_of_another_head_are_refused(spec: HeadSpec) -> None:
    with pytest.raises(StageError, match=f"expected those of layers {spec.input_size}-6"):
        load_head(spec, head_bytes(a_head()))


def test_bytes_that_are_no_weights_are_refused() -> None:
    with pytest.raises(StageError, match="head weights"):
        load_head(SPEC, b"not safetensors")


def test_spec_survives_json() -> None:
    assert HeadSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


@pytest.mark.parametrize(
    "bad",
    [
        {"loss": "huber"},
        {"variant": "eq7"},
        {"scaling": "unit"},
        {"layers": (0,)},
        {"dropout": 1.0},
        {"M": float("nan")},
    ],
)
def test_spec_that_cannot_be_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError):
        HeadSpec(4, 8, **bad)


def test_inputs_of_another_network_are_refused() -> None:
    with pytest.raises(InputError, match=r"features \[n, 8\] and logits \[n, 4\], found"):
        predict_probabilities(a_head(), FEATURES[:, :7], LOGITS)
