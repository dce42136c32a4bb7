"""The analyse stage: its means equal a simple loop, and the result is stored like any other."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made import make_in
from PIL import Image
from pydantic import ValidationError

from pipeline.stage import Made
from pipeline.workspace import Workspace
from stages.analysis.analyse import Analyse
from stages.analysis.findings import rows_to_draw
from stages.analysis.means import group_means, spaced
from stages.analysis.pictures import MAX_CLASSES, MAX_FEATURES, gradient_picture, panel
from stages.analysis.quantities import row_quantities
from stages.errors import InputError
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.featureset import FeatureSet
from store.schema import ArraySpec, Schema

N_CLASSES, WIDTH, M = 4, 6, 2.5
LOSSES = {"ce": None, "mse-m": M}
CELLS = (("corruption", "string"), ("severity", "int64"))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(str(tmp_path / "store")).prepare()


@dataclass(frozen=True)
class Kept:
    """A set without cells and one with them, analysed together."""

    store: FeatureStore
    clean: FeatureSet
    cells: FeatureSet
    made: Made

    @property
    def by_group(self) -> pd.DataFrame:
        found: pd.DataFrame = self.made.output.read_frame("by-group.parquet")
        return found

    @property
    def average(self) -> pd.DataFrame:
        found: pd.DataFrame = self.made.output.read_frame("average.parquet")
        return found

    @property
    def stage(self) -> Analyse:
        return Analyse(features=self.clean.name, against=self.cells.name)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    store = FeatureStore(str(tmp_path_factory.mktemp("kept"))).prepare()
    clean, cells = features_of(store), features_of(store, "cells", cells=True)
    stage = Analyse(features=clean.name, against=cells.name)
    return Kept(store, clean, cells, make_in(store, stage))


def features_of(
    store: FeatureStore,
    name: str = "clean",
    *,
    cells: bool = False,
    n_rows: int = 43,
    n_classes: int = N_CLASSES,
    width: int = WIDTH,
    M: float | None = M,
    weights: str = "w1",
) -> FeatureSet:
    """Rows in shards of 10; row 5 could not be read, row 7 has no label."""
    rng = np.random.default_rng([n_rows, cells])
    columns: dict[str, Any] = {
        "label": rng.integers(0, n_classes, n_rows),
        "status": ["ok"] * n_rows,
    }
    columns["label"][7] = -1
    if cells:
        columns["corruption"] = np.array(["fog", "snow"])[np.arange(n_rows) % 2]
        columns["severity"] = np.arange(n_rows) // 2 % 3 + 1
    features = rng.random((n_rows, width), np.float32)
    logits = rng.normal(0, 3, (n_rows, n_classes)).astype(np.float32)
    features[5], logits[5] = np.nan, np.nan
    schema = Schema(
        (ArraySpec("features", (width,)), ArraySpec("logits", (n_classes,))),
        (*(CELLS if cells else ()), ("label", "int64"), ("status", "string")),
    )
    model = {"name": "net", "n_classes": n_classes, "M": M, "weights_sha256": weights}
    plan = {
        "name": f"{name}-test@net",
        "n_rows": n_rows,
        "shard_rows": 10,
        "schema": schema.to_json(),
        "inputs": {"source": {"name": name}, "model": model},
    }
    found = store.create(plan)
    for shard in found.shard_set.shards:
        rows = slice(shard.start, shard.stop)
        here = {key: values[rows] for key, values in columns.items()}
        arrays = {"features": features[rows], "logits": logits[rows]}
        found.shard_set.commit(shard, encode_rows(schema, shard, 10, arrays, here), {"failed": {}})
    return found


def expected_means(found: FeatureSet, rows: np.ndarray[Any, Any]) -> dict[str, float]:
    rows = rows[rows != 5]
    labels = found.samples()["label"].to_numpy()[rows]
    features, logits = found.read("features")[rows], found.read("logits")[rows]
    return {
        name: float(np.nanmean(values))
        for name, values in row_quantities(features, logits, labels, LOSSES).items()
    }


def test_means_by_group_equal_those_over_the_rows_in_memory(kept: Kept) -> None:
    found, table = kept.cells, kept.by_group.query("corruption.notna()")
    samples = found.samples()
    assert len(table) == 6
    assert table["n_rows"].sum() == 42
    for row in table.to_dict(orient="records"):
        fits = (samples["corruption"] == row["corruption"]) & (
            samples["severity"] == row["severity"]
        )
        means = expected_means(found, np.flatnonzero(fits.to_numpy()))
        assert {name: row[name] for name in means} == pytest.approx(means, rel=1e-12, abs=1e-14)


def test_the_average_counts_each_group_once(kept: Kept) -> None:
    table = kept.by_group.query("corruption.notna()")
    average = kept.average.set_index("features").loc[kept.cells.name]
    assert average["fisher_trace"] == pytest.approx(table["fisher_trace"].mean())
    assert average["n_groups"] == 6


def test_sets_with_and_without_cells_are_shown_together(kept: Kept) -> None:
    table = kept.by_group
    of_clean = table[table["features"] == kept.clean.name]
    assert of_clean["severity"].isna().tolist() == [True]
    assert [type(severity) for severity in table["severity"].dropna().tolist()] == [int] * 6
    means = expected_means(kept.clean, np.arange(43))
    assert of_clean["fisher_trace"].tolist() == [pytest.approx(means["fisher_trace"])]


def test_means_do_not_depend_on_the_size_of_a_block(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = group_means(kept.clean, LOSSES)[()].means
    monkeypatch.setattr("stages.analysis.means._BLOCK_ELEMENTS", 12)
    assert group_means(kept.clean, LOSSES)[()].means == pytest.approx(whole, rel=1e-12)


def test_a_row_that_was_not_read_is_left_out_and_counted(kept: Kept) -> None:
    assert kept.made.output.card()["left_out"] == {kept.clean.name: 1, kept.cells.name: 1}


def test_a_sample_of_rows_is_evenly_spaced(kept: Kept) -> None:
    rows = spaced(43, 8)
    assert rows.tolist() == [0, 5, 10, 16, 21, 26, 32, 37]
    found = group_means(kept.clean, LOSSES, n_rows=8)[()]
    means = expected_means(kept.clean, rows)
    assert found.n_rows == 7
    assert found.means == pytest.approx(means, rel=1e-12, abs=1e-14)


def test_a_second_run_reads_what_the_first_one_kept(kept: Kept) -> None:
    place = Path(kept.made.output.storage.location)
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    second = make_in(kept.store, kept.stage)
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before
    again = second.output.read_frame("by-group.parquet")
    pd.testing.assert_frame_equal(kept.by_group, again)
    assert len(list(Path(kept.store.location, "journal").glob("*"))) == 1


def test_another_run_draws_the_same_bytes(kept: Kept, store: FeatureStore) -> None:
    features_of(store), features_of(store, "cells", cells=True)
    files = make_in(store, kept.stage).output.card()["files"]
    assert files == kept.made.output.card()["files"]


def test_another_loss_is_another_result_with_its_own_columns(kept: Kept) -> None:
    alone = Analyse(features=kept.clean.name)
    found = make_in(kept.store, alone.model_copy(update={"losses": ("bce",)}))
    assert found.name != alone.job(Workspace(kept.store)).output_name
    assert found.output.read_frame("by-group.parquet")["to_stack_bce"].tolist() == [0.0]
    assert "to_stack_bce" in found.output.card()["definitions"]


def test_an_open_m_is_measured_and_recorded(store: FeatureStore) -> None:
    found = features_of(store, M=None)
    facts = make_in(store, Analyse(features=found.name)).output.card()
    expected = np.nanmean(found.read("logits").max(axis=1), dtype=np.float64)
    assert facts["losses"]["mse-m"] == pytest.approx(float(expected))
    assert found.name in facts["M_from"]


def test_sets_of_two_models_are_refused(store: FeatureStore) -> None:
    sets = features_of(store), features_of(store, "other", weights="w2")
    with pytest.raises(InputError, match="two models"):
        make_in(store, Analyse(features=sets[0].name, against=sets[1].name))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"by": ("colour",)}, InputError, "unknown column 'colour'"),
        ({"losses": ("mae",)}, ValidationError, "expected one of ce, mse-m, mse, bce, l1, "),
        ({"row": 43}, InputError, "expected one of 0 to 42"),
    ],
)
def test_mismatches_are_refused_before_work_starts(
    store: FeatureStore, options: dict[str, Any], error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_in(store, Analyse(features=features_of(store).name, **options))
    assert not list(Path(store.location).glob("results/*"))


def test_a_row_that_was_not_read_cannot_be_drawn(store: FeatureStore) -> None:
    with pytest.raises(InputError, match="row 5 of clean-test@net"):
        make_in(store, Analyse(features=features_of(store).name, row=5))


def test_the_rows_drawn_are_the_first_right_ones_of_their_class(store: FeatureStore) -> None:
    found = features_of(store)
    labels, logits = found.samples()["label"].to_numpy(), found.read("logits")
    rows = rows_to_draw(found)
    assert [labels[row] for row in rows] == [0, 1, 2]
    for label, row in enumerate(rows):
        right = np.flatnonzero((labels == label) & (logits.argmax(axis=1) == label))
        assert row == right[right != 5][0]


def test_a_large_layer_shows_its_likeliest_classes_and_largest_features(
    store: FeatureStore,
) -> None:
    found = features_of(store, n_classes=30, width=100)
    drawn = panel(found, 0, ())
    logits = found.read("logits")[0]
    assert drawn.gradients.shape == (MAX_CLASSES, MAX_FEATURES, MAX_CLASSES)
    assert sorted(map(int, drawn.classes)) == sorted(np.argsort(-logits)[:MAX_CLASSES].tolist())
    assert drawn.classes[drawn.predicted] == str(logits.argmax())


def test_a_picture_has_the_matrices_of_an_image_side_by_side(store: FeatureStore) -> None:
    found = features_of(store)
    drawn = [panel(found, row, ("a", "b", "c", "d")) for row in (0, 1)]
    images = [ax.images[0].get_array() for ax in gradient_picture(drawn).axes if ax.images]
    assert len(images) == 2
    for image, each in zip(images, drawn, strict=True):
        assert image is not None
        largest = np.abs(each.gradients).max()
        for at in range(N_CLASSES):
            columns = slice(at * (N_CLASSES + 1), (at + 1) * (N_CLASSES + 1) - 1)
            np.testing.assert_allclose(image[:, columns], each.gradients[at] / largest)


def test_the_kept_pictures_open(kept: Kept) -> None:
    for name in ("gradients", "fisher"):
        image = Image.open(io.BytesIO(kept.made.output.read(f"{name}.png")))
        assert image.width > 500
        assert kept.made.output.read(f"{name}.svg").startswith(b"<?xml")
