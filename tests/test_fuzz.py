"""Every parser of intro-pipe reads modified real files and raises only its own errors.

`pytest tests/test_fuzz.py --hypothesis-profile=soak` does it a hundred times longer.
"""

import copy
import gzip
import hashlib
import io
import json
import pickle
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import cells
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from squares import plan_of
from tiny_recipe import TINY

from cli.replay import Named, replayed
from pipeline.activity import activity_of, costs_of
from pipeline.errors import PipelineError
from pipeline.journal import Journal, Run, last_unfinished, runs
from pipeline.loop import _intact_checkpoints
from pipeline.recipe import read_recipe
from pipeline.stage import Stage
from pipeline.yaml_lines import plain_value
from stages.contents import contents
from stages.data.cifar import read_batch
from stages.data.classes import class_notes, read_classes
from stages.data.idx import read_idx
from stages.data.near_equal import near_equal_note
from stages.data.registry import known_datasets, open_source
from stages.errors import StageError
from stages.introspection.head import load_head
from stages.introspection.head_spec import HeadSpec
from stages.recipes.shipped import shipped_texts
from stages.recipes.steps import kinds
from stages.reflection.conditions import conditions
from stages.reflection.layers import weight_of
from stages.sensing.card import ModelCard
from stages.sensing.checkpoint import read_checkpoint
from stages.sensing.last_layer import find_last_layer
from stages.sensing.models import choose_model, models_of
from stages.sensing.networks import network_factories
from stages.verbs import MODULES, stage_of
from store.catalog import FeatureStore
from store.errors import StoreError
from store.featureset import FeatureSet
from store.lease import Lease, holder_of
from store.plan import readable_json
from store.seal import sealed, unsealed, vouch
from store.shardset import ShardSet
from store.storage import LocalStorage, checksum
from store.verify import verify_artifact, verify_feature_set, verify_plans

OURS = (StoreError, StageError, PipelineError)


@contextmanager
def ours() -> Iterator[None]:
    """Every exception is an error of intro-pipe."""
    with suppress(*OURS):
        yield


# Changes

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**63, 10**40])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["", "../x", "/etc/passwd", "a\0b", "\x1b[2J", "\ud800"]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below),
    max_leaves=4,
)


def changed(data: bytes) -> st.SearchStrategy[bytes]:
    """The data with a few bytes changed, put in, taken out, or its end cut off; or other bytes."""
    change = st.tuples(
        st.sampled_from(["flip", "put", "cut", "end"]), st.floats(0, 1), st.binary(max_size=8)
    )
    return st.lists(change, max_size=4).map(lambda each: _changed(data, each)) | st.binary()


def _changed(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for what, position, new in changes:
        at = int(position * len(data))
        if what == "end":
            data = data[:at]
        else:
            rest = {"flip": at + len(new), "put": at, "cut": at + 8 * len(new)}[what]
            data = data[:at] + (b"" if what == "cut" else new) + data[rest:]
    return data


def replaced(value: Any) -> st.SearchStrategy[Any]:
    """A JSON value with one or two of its parts replaced by something else, or taken out."""
    change = st.tuples(st.sampled_from(list(_paths(value))), JSON, st.booleans())
    return st.lists(change, min_size=1, max_size=2).map(lambda each: _replaced(value, each))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if not isinstance(value, dict | list):
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        yield from _paths(part, (*path, key))


def _replaced(value: Any, changes: list[tuple[tuple[Any, ...], Any, bool]]) -> Any:
    value = copy.deepcopy(value)
    for path, new, is_gone in changes:
        with suppress(KeyError, IndexError, TypeError):  # an earlier change took it away
            *above, last = path
            place = value
            for key in above:
                place = place[key]
            if is_gone:
                del place[last]
            else:
                place[last] = new
    return value


# What is real, made once


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """A small complete set, in a store that the tests change and put back."""
    folder = tmp_path_factory.mktemp("fuzz")
    return cells(FeatureStore(str(folder / "store")).prepare(), n_rows=12, shard_rows=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def store_of(found: FeatureSet) -> FeatureStore:
    return FeatureStore(str(Path(found.shard_set.storage.location).parents[1]))


PLAN = plan_of(10, 4)
CARD = {
    "name": "net",
    "network": "cnn2",
    "n_classes": 3,
    "class_names": ["a", "b", "c"],
    "image_size": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "last_layer": "fc",
    "feature_dim": 4,
    "family": "shapes",
    "M": 1.0,
    "weights_sha256": "0",
    "extra": {},
}
HEAD = {"n_classes": 3, "feature_dim": 4, "layers": [5], "reads": "reflection", "M": 1.0}
KINDS = kinds()
SHIPPED = shipped_texts()


# The store


@given(data=st.data())
def test_plans(real: FeatureSet, data: st.DataObject) -> None:
    storage, whole = real.shard_set.storage, readable_json(real.plan)
    other = data.draw(changed(whole) | replaced(dict(real.plan)).map(readable_json))
    try:
        storage.write("plan.json", other)
        with ours():
            found = FeatureSet(ShardSet.open(storage))
            found.check()
            assert found.n_rows >= 1
            assert found.name
            assert len(found.shard_set.missing()) <= len(found.shard_set.shards)
        store = store_of(real)
        assert len(list(store.feature_sets())) + len(list(verify_plans(store))) == 1
        contents(store)
        with ours():
            store.open("shapes@net")
    finally:
        storage.write("plan.json", whole)


@given(data=st.data())
def test_receipts(real: FeatureSet, data: st.DataObject) -> None:
    shard_set, key = real.shard_set, "receipts/00001.json"
    whole = shard_set.storage.read(key)
    facts = unsealed(whole)
    other = data.draw(changed(whole) | replaced(facts).map(sealed))
    try:
        shard_set.storage.write(key, other)
        found = {problem.kind for problem in verify_feature_set(real)}
        assert found or other == whole or _vouches(other, facts)
        with ours():
            shard_set.n_failed_rows()
        contents(store_of(real))
    finally:
        shard_set.storage.write(key, whole)


def _vouches(other: bytes, facts: dict[str, Any]) -> bool:
    """Whether a receipt says the same of files and rows, whatever else it says."""
    found = json.loads(other)
    return all(found.get(key) == facts[key] for key in ("plan", "shard", "files"))


@given(data=st.data())
@pytest.mark.parametrize("key", ["features/c/1/0", "samples/part-00001.parquet"])
def test_rows(real: FeatureSet, key: str, data: st.DataObject) -> None:
    storage, shard = real.shard_set.storage, real.shard_set.shards[1]
    whole = storage.read(key)
    try:
        storage.write(key, data.draw(changed(whole)))
        with ours():
            real.read_chunk("features", shard)
            real.read_samples(shard)
    finally:
        storage.write(key, whole)


@given(data=st.data())
def test_leases(folder: Path, data: st.DataObject) -> None:
    storage = LocalStorage(str(folder / "lease-set"))
    if not (folder / "lease-set").exists():
        with Lease(storage, purpose="test"):
            (folder / "lease").write_bytes(storage.read("lease/00000001.json"))
    whole = (folder / "lease").read_bytes()
    other = data.draw(changed(whole) | replaced(json.loads(whole)).map(readable_json))
    storage.write("lease/00000001.json", other)
    with ours():
        holder_of(storage)


@given(data=st.data())
def test_cards(folder: Path, data: st.DataObject) -> None:
    store = FeatureStore(str(folder / "cards")).prepare()
    model, card = store.artifact("model", "net"), {"card": CARD, "files": {"x": vouch(b"x")}}
    model.storage.write("plan.json", b"{}")
    model.storage.write("model.json", data.draw(changed(sealed(card)) | replaced(card).map(sealed)))
    list(verify_artifact(model))
    with ours():
        models_of(store)
    with ours():
        choose_model(store, "shapes", None)
    contents(store)


@given(replaced(CARD))
def test_model_cards(values: Any) -> None:
    with ours():
        ModelCard.from_dict(values)


@given(replaced(HEAD), st.binary())
def test_heads(values: Any, weights: bytes) -> None:
    with ours():
        spec = HeadSpec.from_dict(values)
        if max(spec.n_classes, spec.feature_dim, *spec.layers) < 1000:
            load_head(spec, weights)


@given(data=st.data())
def test_journals(folder: Path, data: st.DataObject) -> None:
    store = str(folder / "journals")
    events = [
        {"event": "started", "time": 1, "command": ["extract"], "folder": "/", "environment": {},
         "host": "h", "pid": 1, "process_started": ""},
        {"event": "work", "time": 1, "title": "t", "place": "p", "unit": "shard", "units": 2},
        {"event": "at work", "time": 2, "lanes": [{"lane": 0, "shard": 0, "rows": 5}]},
        {"event": "shard", "time": 3, "lane": 0, "shard": 0, "seconds": 1, "costs": {"read": 1}},
        {"event": "shard failed", "time": 3, "lane": 0, "shard": 1, "seconds": 1, "error": "e"},
    ]  # fmt: skip
    lines = data.draw(replaced(events)) if data.draw(st.booleans()) else events
    whole = b"\n".join(json.dumps(line).encode() for line in lines)
    journal = Journal.of(store, ["x"]).log.path.with_name("1.jsonl")
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_bytes(data.draw(changed(whole)) if lines is events else whole)
    for run in runs(store):
        for line in ((found := activity_of(run.events, 9.0)) and found.lines()) or []:
            assert line
        costs_of(run.events)
        with ours():
            replayed(run, store, Named())
    with ours():
        last_unfinished(store)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
WORD = TEXT | st.sampled_from(
    [
        "--dataset",
        "--network",
        "--out=x",
        "--weights",
        "--store",
        "--address",
        "--",
        "digits",
        "x.py:f",
    ]
)


@given(st.sampled_from(list(MODULES)), st.lists(WORD, max_size=6), TEXT)
def test_replayed_words(name: str, words: list[str], folder: str) -> None:
    with ours():
        again = replayed(Run((name, *words), folder, {}, "failed", 0.0, "first"), "/store", Named())
        assert (again.store, again.execution) == ("/store", {})
        asked = again.asked.to_json()
        assert not asked.keys() & {"store", "address"}
        assert asked.get("out") is None


FIELDS = st.sampled_from(
    [field for verb in MODULES for field in stage_of(verb).model_fields] + ["stage", "x"]
)
VALUE = WORD | st.integers() | st.floats() | st.none() | st.booleans() | st.lists(WORD, max_size=2)


@given(st.sampled_from(list(MODULES)), st.dictionaries(FIELDS, VALUE, max_size=6), TEXT)
def test_replayed_stages(verb: str, fields: dict[str, Any], folder: str) -> None:
    stage = {**fields, "stage": verb}
    with ours():
        run = Run((), folder, {}, "failed", 0.0, "first", stage=stage, data_root=folder)
        again = replayed(run, "/store", Named())
        assert (again.store, again.execution) == ("/store", {})
        assert isinstance(again.asked, Stage)
        assert again.asked.to_json().get("out") is None


@given(data=st.data())
def test_checkpoints(folder: Path, data: st.DataObject) -> None:
    storage = LocalStorage(str(folder / "loop"))
    state = b"state"
    storage.write("checkpoints/00000.safetensors", state)
    note = {"history": [{"loss": 1.0}], "sha256": checksum(state)}
    other = data.draw(changed(readable_json(note)) | replaced(note).map(readable_json))
    storage.write("checkpoints/00000.json", other)
    assert all(found == state for _, found in _intact_checkpoints(storage))


# Recipes and words


@given(
    changed(TINY.encode())
    | st.sampled_from(sorted(SHIPPED.values())).flatmap(lambda text: changed(text.encode()))
)
def test_recipes(data: bytes) -> None:
    with ours():
        read_recipe(data.decode("utf-8", "replace"), "x.yaml", KINDS, shipped=SHIPPED)


@given(st.text())
def test_words(text: str) -> None:
    with ours():
        plain_value(text)


@given(st.lists(st.text() | st.text().map(lambda text: f"label={text}"), max_size=3))
def test_conditions(real: FeatureSet, words: list[str]) -> None:
    with ours():
        conditions(words, real.schema)


@given(
    st.text() | st.sampled_from(["", ".", "..", "conv1", "conv1.weight", "conv1..", "__class__"])
)
def test_layer_names(name: str) -> None:
    network = network_factories()["cnn2"](3).eval()
    with ours():
        find_last_layer(network, torch.zeros(2, 3, 32, 32), name)
    with ours():
        weight_of(network, name)


# Data sets


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


IMAGES = np.zeros((10, 8, 8), np.uint8)
LABELS = np.tile(np.arange(2), 5)


@given(images=changed(npy(IMAGES)), labels=changed(npy(LABELS)), plan=changed(readable_json(PLAN)))
def test_sets_in_the_layout_of_cifar_10_c(
    folder: Path, images: bytes, labels: bytes, plan: bytes
) -> None:
    place = folder / "set-c"
    place.mkdir(exist_ok=True)
    (place / "fog.npy").write_bytes(images)
    (place / "labels.npy").write_bytes(labels)
    (place / "plan.json").unlink(missing_ok=True)
    if len(plan) % 2:
        (place / "plan.json").write_bytes(plan)
    with ours():
        source = open_source(place)
        source.read(0, min(source.n_rows, 20))
        source.fingerprint()


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


@given(changed(npz(images=IMAGES, labels=LABELS, class_names=np.array(["a", "b"]))))
def test_npz_files(folder: Path, data: bytes) -> None:
    (folder / "x.npz").write_bytes(data)
    with ours():
        open_source(folder / "x.npz").read(0, 1)


IDX = struct.pack(">4B3I", 0, 0, 8, 3, 10, 8, 8) + IMAGES.tobytes()


@given(data=changed(IDX) | changed(gzip.compress(IDX)) | changed(IDX).map(gzip.compress))
@pytest.mark.parametrize("name", ["x-idx3-ubyte", "x-idx3-ubyte.gz"])
def test_idx_files(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    with ours():
        read_idx(folder / name, 3)


BATCH = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}


@given(st.sampled_from(range(5)).flatmap(lambda kind: changed(pickle.dumps(BATCH, kind))))
def test_cifar_batches(folder: Path, data: bytes) -> None:
    (folder / "batch").write_bytes(data)
    with ours():
        read_batch(folder / "batch", hashlib.md5(data, usedforsecurity=False).hexdigest())


FILE_NAMES = st.text(min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and not {"/", "\0"} & set(name)
    and not any("\ud800" <= character <= "\udfff" for character in name)
)  # fmt: skip


@given(names=st.lists(FILE_NAMES, min_size=1, max_size=3, unique=True), file=FILE_NAMES)
def test_image_folders(tmp_path_factory: Any, names: list[str], file: str) -> None:
    place = tmp_path_factory.mktemp("root") / "images"
    for name in names:
        (place / "test" / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(place / "test" / name / f"{file[:40]}.png")
    with ours():
        source = open_source(place)
        assert not source.read(0, source.n_rows).failed
        class_notes(source, is_ordered=False)
    known_datasets(place.parent)


@given(st.binary() | st.text().map(str.encode))
def test_files_of_class_names(folder: Path, data: bytes) -> None:
    (folder / "classes.txt").write_bytes(data)
    with ours():
        names = read_classes(folder / "classes.txt")
        assert len(set(names)) == len(names) > 0
        near_equal_note(names, "labels")


@given(st.text())
def test_names_of_data_sets(folder: Path, name: str) -> None:
    with ours():
        open_source(name, data_root=folder / "nothing")


# Weights

TENSORS = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.ones(2)}


def checkpoint(*, is_new: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": TENSORS}, stream, _use_new_zipfile_serialization=is_new)
    return stream.getvalue()


WEIGHTS: dict[str, bytes] = {
    "x.safetensors": save(TENSORS),
    "new.pt": checkpoint(is_new=True),
    "old.pth": checkpoint(is_new=False),
}


# Damaged text in an old checkpoint makes pickle's decoder warn before the file is refused.
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@given(data=st.data())
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(folder: Path, name: str, data: st.DataObject) -> None:
    (folder / name).write_bytes(data.draw(changed(WEIGHTS[name])))
    with ours():
        read_checkpoint(folder / name)
