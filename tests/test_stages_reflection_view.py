from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import pytest

from stages.errors import InputError
from stages.reflection.losses import LOSSES
from stages.reflection.rank_one import SCALINGS, last_layer_gradient
from stages.reflection.view import reflect, reflection

RNG = np.random.default_rng(0)
FEATURES = np.abs(RNG.normal(size=(25, 6))).astype(np.float32)
LOGITS = RNG.normal(size=(25, 4)).astype(np.float32)


@dataclass
class Factors:
    """The least that `reflect` reads of a feature set."""

    plan: dict[str, Any]

    def array(self, name: str) -> da.Array:
        return da.from_array({"features": FEATURES, "logits": LOGITS}[name], chunks=(10, -1))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("loss", LOSSES)
def test_view_equals_the_gradient_in_memory(loss: str, scaling: str) -> None:
    features, logits = da.from_array(FEATURES, (10, 3)), da.from_array(LOGITS, (7, 2))
    view = reflection(features, logits, loss=loss, M=2.0, scaling=scaling)
    expected = last_layer_gradient(FEATURES, LOGITS, loss=loss, M=2.0).scaled(scaling).dense()
    np.testing.assert_array_equal(view.compute(scheduler="sync"), expected)


def test_view_is_lazy_and_its_chunks_follow_the_rows() -> None:
    def refuse(block: np.ndarray) -> np.ndarray:
        raise AssertionError("read too early")

    features = da.from_array(FEATURES, (10, -1)).map_blocks(refuse, meta=np.empty((0, 0), "f4"))
    view = reflection(features, da.from_array(LOGITS, (10, -1)), M=2.0)
    assert view.chunks == ((10, 10, 5), (24,))
    assert view.shape == (25, 24)
    assert view.dtype == np.float32


def test_chunks_that_would_be_large_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.reflection.view._BLOCK_BYTES", 4 * 24 * 4 + 1)
    features, logits = da.from_array(FEATURES, (10, -1)), da.from_array(LOGITS, (7, -1))
    view = reflection(features, logits, M=2.0)
    assert view.chunks == ((4, 4, 2, 4, 4, 2, 4, 1), (24,))
    expected = last_layer_gradient(FEATURES, LOGITS, M=2.0).scaled().dense()
    np.testing.assert_array_equal(view.compute(scheduler="sync"), expected)


def test_view_of_1000_classes_has_chunks_that_fit_into_memory() -> None:
    factors = (da.zeros((50_000, width), dtype="f4") for width in (2048, 1000))
    view = reflection(*factors, M=1.0)
    assert view.shape == (50_000, 2_048_000)
    assert max(view.chunks[0]) * view.shape[1] * 4 <= 2**27


def test_long_rows_in_chunks_of_unknown_length_are_refused_with_a_remedy() -> None:
    features, logits = (da.zeros((8, width), dtype="f4") for width in (2048, 1000))
    mask = da.from_array(np.arange(8) > 3, 4)
    with pytest.raises(InputError, match=r"a row takes 8,192,000 bytes.*compute_chunk_sizes"):
        reflection(features[mask], logits[mask], M=1.0)


def test_no_rows_have_no_gradients() -> None:
    assert reflection(da.zeros((0, 6)), da.zeros((0, 4)), M=1.0).compute().shape == (0, 24)


def test_part_of_the_view_is_the_same_rows() -> None:
    view = reflection(da.from_array(FEATURES, (10, -1)), da.from_array(LOGITS, (10, -1)), M=2.0)
    part = view[8:13].compute(scheduler="sync")
    np.testing.assert_array_equal(part, view.compute(scheduler="sync")[8:13])


def test_rows_selected_by_a_mask_have_the_same_reflection() -> None:
    chosen = LOGITS[:, 0] > 0
    mask = da.from_array(chosen, 10)
    features, logits = da.from_array(FEATURES, (10, -1)), da.from_array(LOGITS, (10, -1))
    view = reflection(features[mask], logits[mask], M=2.0)
    expected = last_layer_gradient(FEATURES[chosen], LOGITS[chosen], M=2.0).scaled().dense()
    np.testing.assert_array_equal(view.compute(scheduler="sync"), expected)


def test_reflect_takes_m_from_the_model() -> None:
    found = reflect(Factors({"inputs": {"model": {"M": 3.0}}})).compute(scheduler="sync")
    expected = last_layer_gradient(FEATURES, LOGITS, M=3.0).scaled().dense()
    np.testing.assert_array_equal(found, expected)


def test_m_given_goes_before_the_models() -> None:
    found = reflect(Factors({"inputs": {"model": {"M": 3.0}}}), M=1.0).compute(scheduler="sync")
    expected = last_layer_gradient(FEATURES, LOGITS, M=1.0).scaled().dense()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("plan", [{"inputs": {"model": {"M": None}}}, {}])
def test_an_unknown_m_is_refused_with_a_remedy(plan: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"has none recorded; pass M=.*'bce'"):
        reflect(Factors(plan))


def test_loss_without_m_needs_none() -> None:
    assert reflect(Factors({}), loss="bce").shape == (25, 24)


def test_arrays_of_different_rows_are_refused() -> None:
    with pytest.raises(InputError, match="found 25 and 24"):
        reflection(da.from_array(FEATURES), da.from_array(LOGITS[:24]), M=1.0)


def test_unknown_scaling_is_refused_before_anything_is_read() -> None:
    with pytest.raises(InputError, match="minmax, maxabs, none"):
        reflection(da.from_array(FEATURES), da.from_array(LOGITS), M=1.0, scaling="unit")
