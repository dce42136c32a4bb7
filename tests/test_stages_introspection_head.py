import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from allocated import Allocated
from safetensors.torch import save

from stages.errors import InputError, StageError
from stages.introspection.head import Head, load_head, predict_probabilities
from stages.introspection.head_spec import HeadSpec
from stages.introspection.reading import READS
from stages.reflection.rank_one import last_layer_gradient

RNG = np.random.default_rng(0)
FEATURES = np.abs(RNG.normal(size=(40, 8))).astype(np.float32)
LOGITS = RNG.normal(size=(40, 4)).astype(np.float32)
SPEC = HeadSpec(4, 8, layers=(6, 5), M=1.5)


def a_head(spec: HeadSpec = SPEC, seed: int = 0) -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Head(spec).eval()


def stacked(*heads: Head) -> bytes:
    """The heads' weights as they are written: one file, a first axis for the seeds."""
    states = [head.state_dict() for head in heads]
    return save({name: torch.stack([state[name] for state in states]) for name in states[0]})


@pytest.mark.parametrize(
    ("choice", "sizes"),
    [
        ({}, (640, 300, 100, 10)),
        ({"feature_dim": 256}, (2560, 300, 100, 10)),
        ({"layers": ()}, (640, 10)),
        ({"layers": (400, 200, 100)}, (640, 400, 200, 100, 10)),
        (
            {"feature_dim": 256, "layers": (1000, 500, 300, 100)},
            (2560, 1000, 500, 300, 100, 10),
        ),
        ({"feature_dim": 512, "layers": (1000, 100)}, (5120, 1000, 100, 10)),
        ({"reads": "features", "layers": ()}, (64, 10)),
        ({"reads": "features", "layers": (50, 40, 20)}, (64, 50, 40, 20, 10)),
        ({"reads": "features", "feature_dim": 512, "layers": (1024, 256)}, (512, 1024, 256, 10)),
        ({"reads": "features+logits"}, (74, 300, 100, 10)),
    ],
)
def test_heads_of_tables_3_and_8_have_their_sizes(choice, sizes: tuple[int, ...]) -> None:
    spec = HeadSpec(**{"n_classes": 10, "feature_dim": 64, **choice})
    shapes = [tuple(value.shape) for value in Head(spec).parameters() if value.ndim == 2]
    assert spec.sizes == sizes
    assert shapes == list(zip(sizes[1:], sizes, strict=False))


def test_head_is_linear_layers_with_sigmoids_between() -> None:
    head = a_head()
    dense = last_layer_gradient(FEATURES, LOGITS, M=1.5).scaled("minmax").dense()
    (w1, b1), (w2, b2), (w3, b3) = (
        (layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in head.linears
    )
    hidden = 1 / (1 + np.exp(-(dense @ w1.T + b1)))
    hidden = 1 / (1 + np.exp(-(hidden @ w2.T + b2)))
    found = head(torch.from_numpy(FEATURES), torch.from_numpy(LOGITS))
    np.testing.assert_allclose(found.detach(), hidden @ w3.T + b3, atol=1e-5)


@pytest.mark.parametrize(
    ("reads", "rank", "longest"),
    [*((reads, None, 64) for reads in READS), (*READS[:1], 3, 64), (*READS[:1], None, 31)],
)
def test_head_is_one_module_that_exports_for_any_number_of_rows(
    monkeypatch: pytest.MonkeyPatch, reads: str, rank: int | None, longest: int
) -> None:
    monkeypatch.setattr("stages.introspection.head_spec.LONGEST_WRITTEN_OUT", longest)
    M = 1.5 if reads == "reflection" else None
    head = a_head(replace(SPEC, reads=reads, rank=rank, M=M))
    inputs = torch.from_numpy(FEATURES), torch.from_numpy(LOGITS)
    rows = {0: torch.export.Dim("rows")}
    program = torch.export.export(head, inputs, dynamic_shapes=(rows, rows))
    few = tuple(each[:7] for each in inputs)
    torch.testing.assert_close(program.module()(*few), head(*few))


def test_compact_first_layer_is_a_dense_one_of_low_rank() -> None:
    head = a_head(replace(SPEC, rank=3))
    dense = last_layer_gradient(FEATURES, LOGITS, M=1.5).scaled("minmax").dense()
    classes, features = (each.detach().numpy() for each in head.low_rank.parameters())
    pairs = np.stack([np.outer(u, v).ravel() for u, v in zip(classes, features, strict=True)])
    (w1, b1), (w2, b2), (w3, b3) = (
        (layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in head.linears
    )
    w1 = w1 @ pairs * 64 / np.sqrt(32)
    assert np.linalg.matrix_rank(w1, tol=1e-5) == 3
    hidden = 1 / (1 + np.exp(-(dense @ w1.T + b1)))
    hidden = 1 / (1 + np.exp(-(hidden @ w2.T + b2)))
    found = head(torch.from_numpy(FEATURES), torch.from_numpy(LOGITS))
    np.testing.assert_allclose(found.detach(), hidden @ w3.T + b3, atol=1e-5)


def test_long_gradients_are_read_in_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    written_out = predict_probabilities(a_head(), FEATURES, LOGITS)
    monkeypatch.setattr("stages.introspection.head_spec.LONGEST_WRITTEN_OUT", 31)
    assert SPEC.is_in_factors
    found = predict_probabilities(a_head(), FEATURES, LOGITS)
    np.testing.assert_allclose(found, written_out, atol=1e-6)
    monkeypatch.setattr("stages.introspection.head_spec._FACTOR_ROWS", 7)
    found = predict_probabilities(a_head(), FEATURES, LOGITS)
    np.testing.assert_allclose(found, written_out, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 5])
def test_head_of_1000_classes_predicts_without_writing_a_gradient_out(rank: int | None) -> None:
    spec = HeadSpec(1000, 2048, layers=(2,), M=1.5, rank=rank)
    features, logits = RNG.random((200, 2048), np.float32), RNG.random((200, 1000), np.float32)
    head = a_head(spec)
    with Allocated() as made:
        predict_probabilities(head, features, logits)
    assert made.largest < 200 * 1000 * 2048 * 4 / 50


@pytest.mark.parametrize("rank", [None, 3])
def test_parameters_are_counted(rank: int | None) -> None:
    spec = replace(SPEC, rank=rank)
    assert spec.n_parameters == sum(each.numel() for each in Head(spec).parameters())


def test_probabilities_are_float32_rows_that_sum_to_one() -> None:
    probabilities = predict_probabilities(a_head(), FEATURES, LOGITS)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_probabilities_do_not_depend_on_other_rows() -> None:
    whole = predict_probabilities(a_head(), FEATURES, LOGITS)
    halves = [
        predict_probabilities(a_head(), FEATURES[i], LOGITS[i]) for i in np.split(np.arange(40), 2)
    ]
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-6)


def test_long_inputs_are_predicted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predict_probabilities(a_head(), FEATURES, LOGITS)
    monkeypatch.setattr("stages.introspection.head_spec._BATCH_ELEMENTS", 7 * 32)
    np.testing.assert_allclose(predict_probabilities(a_head(), FEATURES, LOGITS), whole, atol=1e-6)


def test_failed_rows_stay_nan_and_affect_no_other() -> None:
    features = FEATURES.copy()
    features[3] = np.nan
    found = predict_probabilities(a_head(), features, LOGITS)
    expected = predict_probabilities(a_head(), FEATURES, LOGITS)
    assert np.isnan(found[3]).all()
    np.testing.assert_allclose(np.delete(found, 3, 0), np.delete(expected, 3, 0), atol=1e-6)


def test_threads_predict_the_same_at_once() -> None:
    head = a_head(replace(SPEC, dropout=0.5))
    expected = predict_probabilities(head, FEATURES, LOGITS)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: predict_probabilities(head, FEATURES, LOGITS), range(20)))
    assert all(np.array_equal(each, expected) for each in found)


def test_each_of_the_written_heads_predicts_the_same() -> None:
    heads = [a_head(seed=seed) for seed in (0, 1)]
    for index, head in enumerate(heads):
        again = load_head(SPEC, stacked(*heads), index)
        np.testing.assert_array_equal(
            predict_probabilities(again, FEATURES, LOGITS),
            predict_probabilities(head, FEATURES, LOGITS),
        )


@pytest.mark.parametrize("spec", [HeadSpec(4, 9, layers=(6, 5)), HeadSpec(4, 8, layers=(6,))])
def test_weights_of_another_head_are_refused(spec: HeadSpec) -> None:
    with pytest.raises(StageError, match=f"expected those of layers {spec.sizes[0]}-6"):
        load_head(spec, stacked(a_head()))


def test_bytes_other_than_weights_are_refused() -> None:
    with pytest.raises(StageError, match="head weights"):
        load_head(SPEC, b"not safetensors")


def test_compact_heads_survive_json_and_plans_of_others_are_unchanged() -> None:
    compact = replace(SPEC, rank=3)
    assert HeadSpec.from_dict(json.loads(json.dumps(compact.to_dict()))) == compact
    assert "rank" not in SPEC.to_dict()


@pytest.mark.parametrize("reads", READS)
def test_spec_survives_json(reads: str) -> None:
    spec = HeadSpec(4, 8, layers=(), reads=reads, scaling="none", dropout=0.1)
    assert HeadSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "bad",
    [
        {"layers": (0,)},
        {"dropout": 1.0},
        {"n_classes": 0},
        {"scaling": "unit"},
        {"reads": "x"},
        {"rank": 0},
        {"rank": 3, "reads": "features"},
    ],
)
def test_spec_that_cannot_be_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError):
        HeadSpec(**{"n_classes": 4, "feature_dim": 8, **bad})
