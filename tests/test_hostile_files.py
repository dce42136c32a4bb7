"""No file runs code: each of these would in a reader that unpickles or trusts it."""

import gzip
import hashlib
import json
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cells
import hostile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from conftest import Refusal
from hostile import MARKER
from PIL import Image
from pydantic import ValidationError
from small_data import write_npz as write_images

from stages.data.cifar import read_batch
from stages.data.idx import read_idx
from stages.data.registry import open_source
from stages.errors import InputError
from stages.reflection.extract import Extract
from store.catalog import FeatureStore
from store.errors import DamagedError
from store.featureset import FeatureSet
from store.plan import fingerprint, readable_json
from store.seal import sealed, unsealed, vouch
from store.shardset import receipt_key
from store.verify import verify_feature_set

Write = Callable[[Path], None]


def test_the_traps_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what follows would show nothing."""
    monkeypatch.chdir(tmp_path)
    hostile.write_npy(Path("x.npy"))
    np.load("x.npy", allow_pickle=True)
    assert MARKER.exists()


# Data sets


def folder_of_arrays(folder: Path) -> None:
    folder.mkdir()
    hostile.write_npz(folder / "test.npz")


def corrupted_labels(folder: Path) -> None:
    folder.mkdir()
    np.save(folder / "fog.npy", np.zeros((5, 8, 8), np.uint8))
    hostile.write_npy(folder / "labels.npy")


def corrupted_images(folder: Path) -> None:
    folder.mkdir()
    hostile.write_npy(folder / "fog.npy")
    np.save(folder / "labels.npy", np.zeros(5, np.int64))


def pickle_of_another_name(path: Path) -> None:
    hostile.write_pickle(path)


DATA_SETS: dict[str, Write] = {
    "x.npy": hostile.write_npy,
    "x.npz": hostile.write_npz,
    "pickle.npy": pickle_of_another_name,
    "pickle.npz": pickle_of_another_name,
    "arrays": folder_of_arrays,
    "labels-c": corrupted_labels,
    "images-c": corrupted_images,
    "x.mat": lambda path: scipy.io.savemat(path, {"images": np.zeros(3)}),
    "x.pkl": hostile.write_pickle,
}


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("command", ["extract", "train-sensing", "corrupt"])
def test_a_data_set_runs_nothing(
    tmp_path: Path,
    refused: Refusal,
    name: str,
    command: str,
) -> None:
    (tmp_path / "data").mkdir()
    DATA_SETS[name](tmp_path / "data" / name)
    assert refused(command, "--dataset", name).startswith("intro-pipe: ")


def test_a_published_pickle_that_is_another_is_not_opened(
    tmp_path: Path,
    refused: Refusal,
) -> None:
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    hostile.write_pickle(folder / "test_batch")
    assert "the published one is" in refused("extract", "--dataset", "cifar10")


@pytest.mark.parametrize(
    "content",
    [
        hostile.Trap(),
        {b"data": hostile.object_array(), b"labels": [0]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": hostile.Trap()},
        {b"data": np.random.default_rng(0), b"labels": [0]},
    ],
    ids=["a call", "an array of calls", "labels", "a class of numpy"],
)
def test_a_batch_with_the_right_sum_builds_arrays_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object
) -> None:
    """Had the publisher's file been another: the second lock behind the md5."""
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(content)
    Path("batch").write_bytes(data)
    with pytest.raises(InputError, match="which is not allowed"):
        read_batch(Path("batch"), hashlib.md5(data, usedforsecurity=False).hexdigest())
    assert not MARKER.exists()


# Weights

CHECKPOINTS: dict[str, Write] = {
    "new.pt": hostile.write_checkpoint,
    "old.pth": hostile.write_old_checkpoint,
    "bare.pt": hostile.write_bare_archive,
    "plain.pkl": hostile.write_pickle,
    "object.npy": hostile.write_npy,
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_runs_nothing(
    tmp_path: Path,
    refused: Refusal,
    name: str,
) -> None:
    (tmp_path / "data").mkdir()
    write_images(tmp_path / "data" / "digits.npz", 10)
    CHECKPOINTS[name](tmp_path / name)
    words = ["extract", "--dataset", "digits.npz", "--network", "cnn2", "--weights", name]
    assert f"weights {name}: " in refused(*words)


@pytest.mark.parametrize("what", hostile.SAFETENSORS)
def test_safetensors_with_a_bad_header_are_refused(
    tmp_path: Path,
    refused: Refusal,
    what: str,
) -> None:
    (tmp_path / "data").mkdir()
    write_images(tmp_path / "data" / "digits.npz", 10)
    (tmp_path / "x.safetensors").write_bytes(hostile.SAFETENSORS[what])
    words = ["extract", "--dataset", "digits.npz", "--network", "cnn2"]
    assert "x.safetensors" in refused(*words, "--weights", "x.safetensors")


# Code that a file names


EVIL = f"open({str(MARKER)!r}, 'w')\ndef net(): open({str(MARKER)!r}, 'w')\n"


def store_with_a_model(place: Path, network: str) -> FeatureStore:
    """A model as someone else may have made it: sealed, with the right hash of its code."""
    store = FeatureStore(str(place)).prepare()
    card = {
        "name": "theirs",
        "network": network,
        "n_classes": 10,
        "class_names": [str(k) for k in range(10)],
        "image_size": 32,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "last_layer": "fc",
        "feature_dim": 4,
        "family": "digits",
        "M": 1.0,
        "weights_sha256": "0",
        "extra": {},
    }
    if network.endswith(".py:net"):
        code = Path(network.removesuffix(":net")).read_bytes()
        card["extra"] = {"source_sha256": hashlib.sha256(code).hexdigest()}
    artifact = store.artifact("model", "theirs")
    artifact.claim({})
    artifact.write({"weights.safetensors": b""}, {"card": card}, plan={})
    head = store.artifact("head", "theirs-h")
    head.claim({})
    head.write({}, {"model": "theirs", "model_weights_sha256": "0", "predictor": "temperature",
                    "temperature": 1.0}, plan={})  # fmt: skip
    return store


@pytest.mark.parametrize("network", ["{here}/evil.py:net", "evil:net", "evil.deep:net"])
@pytest.mark.parametrize(
    "words",
    [
        ["extract", "--dataset", "digits"],
        ["extract", "--dataset", "digits", "--layer", "fc", "--dry-run"],
        ["ood", "--in", "digits", "--out", "uniform-noise", "--dry-run"],
        ["predict", "--head", "theirs-h", "photo.png"],
    ],
    ids=["extract", "extract a layer", "ood", "predict"],
)
def test_a_model_of_someone_elses_runs_no_code_that_the_user_has_not_named(
    tmp_path: Path,
    refused: Refusal,
    network: str,
    words: list[str],
) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    store_with_a_model(tmp_path / "store", network.format(here=tmp_path))
    assert "model theirs would run code" in refused(*words)


def test_a_recipe_runs_no_code_that_the_user_has_not_named(
    tmp_path: Path,
    refused: Refusal,
) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "x.yaml").write_text(
        "recipe: x\nsteps:\n  f: {stage: train-sensing, dataset: digits, network: evil.py:net}\n"
    )
    assert f"the recipe would run code, {tmp_path}/evil.py:net" in refused("run", "x.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:builtins.open [{marker}, w]",
        "recipe: !!python/object/apply:builtins.open [{marker}, w]\nsteps: {{}}",
        "recipe: x\nsteps: {{f: {{stage: !!python/name:builtins.open ''}}}}",
        'recipe: \'{{{{ open("{marker}", "w") }}}}\'\nsteps: {{}}',
    ],
)
def test_a_recipe_is_no_program(
    tmp_path: Path,
    refused: Refusal,
    text: str,
) -> None:
    (tmp_path / "x.yaml").write_text(text.format(marker=MARKER))
    assert refused("run", "x.yaml").startswith("intro-pipe: x.yaml:")


PLACES = [
    ("train-sensing", "address: ray://evil:10001"),
    ("train-sensing", "executor: ray"),
    ("train-sensing", "device: cuda"),
    ("train-sensing", "store: /tmp/x"),
    ("train-sensing", "data_root: /tmp/x"),
    ("corrupt", "to: ../x"),
    ("corrupt", "to: /tmp/x"),
    ("corrupt", "to: ~/x"),
    ("corrupt", "to: x\n    out: /tmp/x"),
]


@pytest.mark.parametrize(("stage", "line"), PLACES, ids=[line for _, line in PLACES])
def test_a_recipe_says_neither_where_it_runs_nor_where_else_it_writes(
    tmp_path: Path,
    refused: Refusal,
    stage: str,
    line: str,
) -> None:
    (tmp_path / "x.yaml").write_text(
        f"recipe: x\nsteps:\n  f:\n    stage: {stage}\n    dataset: digits\n    {line}\n"
    )
    assert refused("run", "x.yaml").startswith("intro-pipe: x.yaml:")


@pytest.mark.parametrize("number", ["1e999999999", "-1e-999999999", "1/0", "nan", "1/3/5"])
def test_a_number_is_refused_before_it_takes_memory(number: str) -> None:
    with pytest.raises(ValidationError, match="odin"):
        Extract(dataset="digits", odin=number)


# Images


def bomb() -> bytes:
    """A small PNG that claims to have 900 million pixels."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)), (b"IDAT", b"")
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_an_image_that_unpacks_to_too_much_is_an_unreadable_row(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "test" / "ant"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "1.png")
    (folder / "2.png").write_bytes(bomb())
    rows = open_source(tmp_path / "photos").read(0, 2)
    assert list(rows.failed) == [1]
    assert "decompression bomb" in rows.failed[1]
    assert (rows.images[0] == 9).all()


def test_a_link_to_an_image_elsewhere_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "test" / "ant"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "elsewhere.png")
    (folder / "1.png").symlink_to(tmp_path / "elsewhere.png")
    rows = open_source(tmp_path / "photos").read(0, 1)
    assert not rows.failed
    assert (rows.images[0] == 9).all()


@pytest.mark.parametrize("name", ["x.npz", "train-images-idx3-ubyte.gz"])
def test_an_array_that_unpacks_to_half_of_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("stages.data.arrays.limit_bytes", lambda: 2_000_000)
    images = np.zeros((1_200, 32, 32), np.uint8)
    place = tmp_path / "data"
    place.mkdir()
    if name == "x.npz":
        np.savez_compressed(place / name, images=images)
        opened = partial(open_source, place / name)
    else:
        head = struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape)
        (place / name).write_bytes(gzip.compress(head + images.tobytes()))
        opened = partial(read_idx, place / name, 3)
    with pytest.raises(InputError, match="unpacks to"):
        opened()


# The store


@pytest.fixture
def filled(tmp_path: Path) -> FeatureSet:
    return cells.cells(FeatureStore(str(tmp_path / "store")).prepare())


def forge(found: FeatureSet, key: str, data: bytes) -> None:
    """Put other bytes into a shard, and a receipt that vouches for them: anyone can seal one."""
    shard_set, shard = found.shard_set, found.shard_set.shards[0]
    receipt = unsealed(shard_set.storage.read(receipt_key(shard)))
    shard_set.storage.write(key, data)
    receipt["files"][key] = vouch(data)
    shard_set.storage.write("receipts/00000.json", sealed(receipt))


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def hostile_parquet(found: FeatureSet) -> dict[str, bytes]:
    table = found.read_samples(found.shard_set.shards[0])
    pickles = pa.array([hostile.pickled(hostile.Trap())] * len(table))
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": hostile.pickled(hostile.Trap()),
    }
    at = table.schema.get_field_index("label")
    orders = {"pandas": json.dumps({"index_columns": [{"kind": "range"}], "columns": 7})}
    return {
        "a column of pickles": parquet(table.set_column(at, "label", pickles)),
        "an extension type": parquet(
            table.set_column(at, pa.field("label", pa.binary(), metadata=extension), pickles)
        ),
        "a pickle": hostile.pickled(hostile.Trap()),
        "orders for pandas": parquet(table.replace_schema_metadata(orders)),
        "fewer rows": parquet(table.slice(1)),
    }


@pytest.mark.parametrize(
    "what", ["a column of pickles", "an extension type", "a pickle", "fewer rows"]
)
def test_samples_of_another_form_are_damage(
    filled: FeatureSet,
    refused: Refusal,
    what: str,
) -> None:
    forge(filled, "samples/part-00000.parquet", hostile_parquet(filled)[what])
    assert "is damaged" in refused("query", "shapes@net", code=1)
    with pytest.raises(DamagedError):
        filled.samples()


def test_pandas_metadata_of_samples_is_ignored(filled: FeatureSet) -> None:
    before = filled.samples()
    forge(filled, "samples/part-00000.parquet", hostile_parquet(filled)["orders for pandas"])
    assert filled.samples().equals(before)


CODECS = {
    "objects": {"data_type": "object"},
    "pickle": {"codecs": [{"name": "numcodecs.pickle", "configuration": {"protocol": 4}}]},
    "elsewhere": {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "/.."}}},
    "endless": {"shape": [2**60, 4], "chunk_grid": {"name": "regular"}},
}


@pytest.mark.parametrize("what", CODECS)
def test_array_metadata_is_never_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filled: FeatureSet, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before, storage = filled.read("features"), filled.shard_set.storage
    facts = json.loads(storage.read("features/zarr.json"))
    storage.write("features/zarr.json", readable_json({**facts, **CODECS[what]}))
    again = FeatureStore(str(tmp_path / "store")).open("shapes@net")
    assert np.array_equal(again.read("features"), before, equal_nan=True)
    assert [(p.kind, p.key) for p in verify_feature_set(again)] == [
        ("altered", "features/zarr.json")
    ]
    assert not MARKER.exists()


ARRAY = {"name": "features", "row_shape": [4], "dtype": "float32", "axes": []}


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": {"arrays": [{**ARRAY, "dtype": "object"}], "columns": []}},
        {"schema": {"arrays": [{**ARRAY, "name": "../../../x"}], "columns": []}},
        {"schema": {"arrays": [{**ARRAY, "name": "/etc"}], "columns": []}},
        {"schema": {"arrays": [{**ARRAY, "row_shape": [-1]}], "columns": []}},
        {"schema": {"arrays": 5}},
        {"schema": []},
        {"n_rows": "84"},
        {"n_rows": 10**30},
        {"shard_rows": 0.5},
        {"inputs": {}},
        {"inputs": {"source": {"name": 1}, "model": {"name": "net"}}},
        {"name": ["shapes"]},
    ],
    ids=repr,
)
def test_an_invalid_plan_that_matches_its_folder_is_damaged(
    tmp_path: Path,
    refused: Refusal,
    filled: FeatureSet,
    changes: dict[str, object],
) -> None:
    plan = {**filled.plan, **changes}
    folder = Path(filled.shard_set.storage.location)
    (folder / "plan.json").write_bytes(readable_json(plan))
    folder.rename(folder.with_name(f"shapes-test@net-{fingerprint(plan)}"))
    assert "plan.json is missing or was altered" in refused("query", "shapes-test@net", code=1)
    assert FeatureStore(str(tmp_path / "store")).damaged_sets() != []


# Ourselves


def test_modules_of_the_working_directory_do_not_replace_ours(tmp_path: Path) -> None:
    """The demo starts us again, where someone may have a package `cli` of their own."""
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "__init__.py").write_text("")
    (tmp_path / "cli" / "app.py").write_text(EVIL)
    script = "import cli.demo; cli.demo._run('datasets', {}, as_json=True)"
    command = [sys.executable, "-P", "-c", script]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert not (tmp_path / MARKER).exists()
