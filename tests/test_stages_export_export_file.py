"""Exported files: their values are those of the store, in every format."""

import csv
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.errors import InputError
from stages.export.export_file import WRITERS, write_rows
from stages.export.exported_rows import Exported
from stages.export.image_paths import image_path
from stages.export.label_studio import labeling_interface
from stages.introspection.predictors import divided
from stages.reflection.conditions import Condition
from stages.scores.asked_scores import Scored
from stages.scores.factors import as_it_is
from stages.scores.known_scores import PLAIN
from store.catalog import FeatureStore
from store.encoding import chunk_key, encode_rows
from store.errors import DamagedSetError
from store.featureset import FeatureSet
from store.schema import ArraySpec, Schema

NAMES = ('cat, "big"', "=1+1", "naïve ☃")
UNLABELLED, FAILED = 1, 3
LABELS = [0, -1, 2, 2, 1, 0, 1]
IDS = ["a b#1.png", *(f"{name}/{row}.png" for row, name in enumerate("xyxyzz", start=1))]
KINDS = {
    "row": "int64",
    "sample_id": "string",
    "site": "string",
    "dose": "float64",
    "label": "int64",
    "prediction": "int64",
    "confidence": "float64",
    "status": "string",
}
LAYERS = {"f": as_it_is, "H": partial(divided, 2.0), "a.b": as_it_is}
"""The last layers of f and of heads: H is f with a temperature of 2."""


def of(*labels: str, scores: Iterable[str] = ("confidence",)) -> tuple[Scored, ...]:
    """f, and heads by their labels, with plain scores."""
    own = {name: PLAIN[name] for name in scores}
    return tuple(Scored(label, LAYERS[label], own) for label in ("f", *labels))


def feature_set(store: FeatureStore, kinds: dict[str, str] = KINDS, **renamed: str) -> FeatureSet:
    """Seven images in shards of three: one without a label, one failed; ``renamed`` columns."""
    n_rows, schema = len(IDS), {renamed.get(name, name): kind for name, kind in kinds.items()}
    logits = np.random.default_rng(0).normal(size=(n_rows, 3)).astype(np.float32)
    features = np.abs(logits @ np.ones((3, 2), np.float32))
    logits[FAILED], features[FAILED] = np.nan, np.nan
    z = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    columns: dict[str, Any] = {
        "row": np.arange(n_rows),
        "sample_id": IDS,
        "site": ["north", "=SUM(A1)", "", "a,b", "ü\r", '"', "north"],
        "dose": [0.1, np.nan, 2.5, 1e-30, 3.0, -0.0, 7.0],
        "label": LABELS,
        "prediction": np.where(np.isnan(logits[:, 0]), -1, logits.argmax(axis=1)),
        "confidence": 1 / np.exp(z).sum(axis=1),
        "status": ["torn file" if row == FAILED else "ok" for row in range(n_rows)],
    }
    found = Schema((ArraySpec("features", (2,)), ArraySpec("logits", (3,))), tuple(schema.items()))
    names = {"class_names": list(NAMES)}
    plan = {
        "name": "photos-test@net",
        "n_rows": n_rows,
        "shard_rows": 3,
        "schema": found.to_json(),
        "inputs": {"source": {"name": "photos", **names}, "model": {"name": "net", **names}},
    }
    made = store.create(plan)
    for shard in made.shard_set.shards:
        rows = slice(shard.start, shard.stop)
        arrays = {"features": features[rows], "logits": logits[rows]}
        here = {renamed.get(name, name): columns[name][rows] for name in kinds}
        made.shard_set.commit(shard, encode_rows(found, shard, 3, arrays, here), {"failed": {}})
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """A set that tests only read, with its images in the folder ``images`` beside the store."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    (folder / "images" / IDS[0]).touch()
    return feature_set(FeatureStore(str(folder / "store")).prepare())


def images_of(found: FeatureSet) -> str:
    return str(Path(found.shard_set.storage.location).parents[2] / "images")


def frame_of(exported: Exported) -> pd.DataFrame:
    return pd.concat([table.to_pandas() for table in exported.tables()], ignore_index=True)


def json_of(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def test_sample_columns_are_those_of_the_store(photos: FeatureSet) -> None:
    stored, found = photos.samples(), frame_of(Exported(photos, of("H")))

    pd.testing.assert_frame_equal(found[list(stored.columns)], stored, check_exact=True)


def test_names_belong_to_labels_and_predictions(photos: FeatureSet) -> None:
    found = [row for table in Exported(photos, of("H")).tables() for row in table.to_pylist()]

    assert [row["label"] for row in found] == LABELS
    for row, prediction in zip(found, photos.samples()["prediction"], strict=True):
        for column in ("label", "prediction", "H_prediction"):
            assert row[f"{column}_name"] == (NAMES[row[column]] if row[column] >= 0 else None)
        assert row["prediction"] == row["H_prediction"] == prediction


def slow_scores(f: np.ndarray, z: np.ndarray) -> dict[str, float]:
    p = np.exp(z) / sum(np.exp(z))
    first, second = sorted(p)[::-1][:2]
    return {
        "confidence": max(p),
        "entropy": -sum(each * np.log(each) for each in p),
        "margin": first - second,
        "msp": np.log(max(p)),
        "energy": np.log(sum(np.exp(z))),
        "max-logit": max(z),
        "gradnorm": sum(abs((each - 1 / 3) * x) for each in p for x in f),
        "exgrad": sum(
            p[c] * abs((p[j] - (j == c)) * x) for c in range(3) for j in range(3) for x in f
        ),
        "gen": -sum((each * (1 - each)) ** 0.1 for each in p),
        "gradtrust": max((z - 1 / 3) ** 4) / np.mean((z - 1 / 3) ** 4),
    }


def test_scores_of_f_and_heads_equal_a_loop_over_rows(photos: FeatureSet) -> None:
    found = frame_of(Exported(photos, of("H", scores=PLAIN)))
    features, logits = (photos.read(name).astype(float) for name in ("features", "logits"))

    for row in range(photos.n_rows):
        for prefix, z in (("", logits[row]), ("H_", logits[row] / 2)):
            expected = slow_scores(features[row], z)
            assert expected.keys() == PLAIN.keys()
            for name, value in expected.items():
                score = found[f"{prefix}{name}"][row]
                assert score == pytest.approx(value, rel=1e-6, nan_ok=True), name
    assert found.loc[FAILED, ["energy", "H_confidence"]].isna().all()


def cells_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def as_cell(value: object) -> str:
    is_missing = value is None or value != value
    return "" if is_missing else str(value)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_read_back_equal_the_rows(photos: FeatureSet, tmp_path: Path, form: str) -> None:
    exported, path = Exported(photos, of("H"), images=images_of(photos)), tmp_path / f"out.{form}"
    path.write_text("an older file")

    assert write_rows(exported, path, form) == photos.n_rows

    expected = pa.concat_tables(exported.tables())
    if form == "parquet":
        assert pq.ParquetFile(path).num_row_groups == len(photos.shard_set.shards)
        pd.testing.assert_frame_equal(pd.read_parquet(path), expected.to_pandas(), check_exact=True)
    else:
        rows = expected.to_pylist()
        assert cells_of(path) == [{k: as_cell(v) for k, v in row.items()} for row in rows]
    assert sorted(tmp_path.iterdir()) == [path]


def test_formulas_are_escaped_on_request(photos: FeatureSet, tmp_path: Path) -> None:
    cells = {}
    for escape in (False, True):
        write_rows(Exported(photos, of()), tmp_path / "x.csv", "csv", escape_formulas=escape)
        rows = cells_of(tmp_path / "x.csv")
        cells[escape] = rows[1]["site"], rows[4]["label_name"], rows[5]["dose"]

    assert cells == {
        False: ("=SUM(A1)", "=1+1", "-0.0"),
        True: ("'=SUM(A1)", "'=1+1", "-0.0"),
    }


def test_tasks_have_the_form_of_label_studio(photos: FeatureSet, tmp_path: Path) -> None:
    exported = Exported(photos, of("H"), images="https://host/photos")
    write_rows(exported, tmp_path / "tasks.json", "label-studio")
    tasks, rows = json_of(tmp_path / "tasks.json"), frame_of(exported)

    assert len(tasks) == photos.n_rows
    choices = {"type": "choices", "from_name": "label", "to_name": "image"}
    assert tasks[0]["predictions"] == [
        {
            "model_version": model,
            "score": rows[f"{prefix}confidence"][0],
            "result": [
                {**choices, "value": {"choices": [rows[f"{prefix}prediction_name"][0]]}},
            ],
        }
        for model, prefix in (("net", ""), ("H", "H_"))
    ]
    assert tasks[0]["data"]["image"] == "https://host/photos/a%20b%231.png"
    assert tasks[FAILED]["predictions"] == []
    unlabelled = tasks[UNLABELLED]["data"]
    assert (unlabelled["label_name"], unlabelled["dose"], unlabelled["site"]) == (
        None,
        None,
        "=SUM(A1)",
    )
    assert "label" not in unlabelled


@pytest.mark.parametrize(
    ("images", "sample_id", "path"),
    [
        ("https://host/a", "b c/#1.png", "https://host/a/b%20c/%231.png"),
        ("/data/local-files/?d=", "b c/é&.png", "/data/local-files/?d=b%20c/%C3%A9%26.png"),
        ("s3://bucket/a/", "b c/#1.png", "s3://bucket/a/b c/#1.png"),
        ("/photos/", "b c/#1.png", "/photos/b c/#1.png"),
        ("/photos", "/elsewhere/1.png", "/elsewhere/1.png"),  # of a manifest
    ],
)
def test_paths_and_urls_of_images(images: str, sample_id: str, path: str) -> None:
    assert image_path(images, sample_id) == path


def test_the_labeling_interface_quotes_names() -> None:
    assert "<Choice value='&lt;a&gt; &amp; \"b\"'/>" in labeling_interface(['<a> & "b"'])


def test_samples_have_the_form_of_fiftyone(photos: FeatureSet, tmp_path: Path) -> None:
    exported = Exported(photos, of("H", scores=("confidence", "energy")), images=images_of(photos))
    write_rows(exported, tmp_path / "samples.json", "fiftyone")
    dataset, rows = json_of(tmp_path / "samples.json"), frame_of(exported)

    samples = dataset.pop("samples")
    fields = {
        name: kind.removeprefix("fiftyone.core.fields.")
        for name, kind in dataset["sample_fields"].items()
    }
    classification = "EmbeddedDocumentField(fiftyone.core.labels.Classification)"
    assert fields == {
        **dict.fromkeys(("ground_truth", "prediction", "H_prediction"), classification),
        **dict.fromkeys(("sample_id", "site", "status"), "StringField"),
        **dict.fromkeys(("dose", "energy", "H_energy"), "FloatField"),
        "row": "IntField",
    }
    assert (dataset["media_type"], dataset["default_classes"]) == ("image", list(NAMES))
    assert all(each.keys() == {"filepath", "tags", *fields} for each in samples)
    assert samples[0]["filepath"] == f"{images_of(photos)}/{IDS[0]}"
    assert samples[0]["ground_truth"] == {"_cls": "Classification", "label": NAMES[0]}
    assert samples[0]["H_prediction"] == {
        "_cls": "Classification",
        "label": rows["H_prediction_name"][0],
        "confidence": rows["H_confidence"][0],
    }
    assert samples[UNLABELLED]["ground_truth"] is None
    assert (samples[FAILED]["prediction"], samples[FAILED]["energy"]) == (None, None)
    assert samples[FAILED]["status"] == "torn file"


def test_rows_are_selected_by_values_and_by_samples(photos: FeatureSet) -> None:
    assert frame_of(Exported(photos, of(), where=[Condition("site", ("north",))]))[
        "row"
    ].tolist() == [
        0,
        6,
    ]
    some = frozenset((IDS[6], IDS[2]))
    assert frame_of(Exported(photos, of(), sample_ids=some))["row"].tolist() == [2, 6]
    both = Exported(photos, of(), where=[Condition("site", ("north",))], sample_ids=some)
    assert frame_of(both)["row"].tolist() == [6]


def test_the_order_of_columns_is_the_documented_one(photos: FeatureSet) -> None:
    exported = Exported(photos, of("H", scores=("confidence", "energy")), images="https://host")

    answers = ("prediction", "prediction_name", "confidence", "energy")
    assert tuple(frame_of(exported)) == (
        *("row", "sample_id", "image", "label", "label_name", *answers),
        *(f"H_{name}" for name in answers),
        *("site", "dose", "status"),
    )


def test_a_link_stays_a_link_to_the_new_file(photos: FeatureSet, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to("file.csv")
    write_rows(Exported(photos, of()), tmp_path / "link.csv", "csv")

    assert (tmp_path / "link.csv").is_symlink()
    assert len(cells_of(tmp_path / "file.csv")) == photos.n_rows


@pytest.mark.parametrize("form", WRITERS)
def test_an_older_file_stays_if_the_export_fails(
    store: FeatureStore, tmp_path: Path, form: str
) -> None:
    found = feature_set(store)
    key = chunk_key(found.schema.array("logits"), found.shard_set.shards[-1])
    Path(found.shard_set.storage.location, key).write_bytes(b"torn")
    path = tmp_path / "out"
    path.write_text("older")

    with pytest.raises(DamagedSetError, match="is damaged"):
        write_rows(Exported(found, of(), images="https://host"), path, form)

    assert path.read_text() == "older"
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["out"]


REFUSALS: list[tuple[Callable[[FeatureSet], Exported], str, str]] = [
    (
        lambda found: Exported(found, of(), where=[Condition("site", ("south",))]),
        "csv",
        "no row matches",
    ),
    (lambda found: Exported(found, of()), "fiftyone", "--format fiftyone: expected --images"),
    (
        lambda found: Exported(found, of(), images="nowhere"),
        "csv",
        "--images nowhere: no such folder",
    ),
    (
        lambda found: Exported(found, of(), images="."),
        "csv",
        "has no file a b#1.png, the first sample",
    ),
    (
        lambda found: Exported(found, of(), sample_ids=frozenset(("x/1.png", "gone"))),
        "csv",
        r"1 of 2 samples are not in .* \(first: 'gone'; its ids look like 'a b#1.png'\)",
    ),
    (
        lambda found: Exported(found, (Scored("label", as_it_is, {"name": PLAIN["msp"]}),)),
        "csv",
        "two named",
    ),
    (
        lambda found: Exported(found, of("a.b"), images="https://host"),
        "fiftyone",
        "cannot have a field 'a.b_prediction'",
    ),
]


@pytest.mark.parametrize(("exported", "form", "why"), REFUSALS)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    photos: FeatureSet, tmp_path: Path, exported: Any, form: str, why: str
) -> None:
    with pytest.raises(InputError, match=why):
        write_rows(exported(photos), tmp_path / "out", form)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("renamed", "form", "why"),
    [
        ({"site": "energy"}, "csv", "found two named 'energy'"),
        ({"site": "image"}, "csv", "found two named 'image'"),
        ({"site": "tags"}, "fiftyone", "cannot have a field 'tags'"),
        ({"label": "class"}, "csv", "has no column label, only row, sample_id"),
    ],
)
def test_names_of_columns_that_clash_are_refused(
    store: FeatureStore, tmp_path: Path, renamed: dict[str, str], form: str, why: str
) -> None:
    found = feature_set(store, **renamed)
    exported = Exported(found, of(scores=("confidence", "energy")), images="https://host")

    with pytest.raises(InputError, match=why):
        write_rows(exported, tmp_path / "out", form)
