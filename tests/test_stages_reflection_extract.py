"""Extraction: the rows are the network's, however the work is split; bad input is named."""

import dataclasses
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import CLASSES, write_image_folder, write_npz, write_npz_set

from pipeline.executors import LocalExecutor, Watch
from pipeline.journal import Journal
from pipeline.worker import Outcome, Work
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.reflection.extract import Extract, extract
from stages.reflection.layers import layer_gradients
from stages.reflection.named_layer import NamedLayer
from stages.reflection.referees import serial_gradients
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.model import Sensing, describe, normalised
from stages.sensing.models import ModelRequest, choose
from stages.sensing.weights import load_weights, save_weights
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.shards import Shard
from store.verify import verify_feature_set

EXECUTOR = LocalExecutor(1)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(str(tmp_path / "store")).prepare()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_npz_set(tmp_path / "digits-npz", 20, 23)


def model(folder: Path, n_classes: int = 10, seed: int = 0) -> tuple[ModelCard, str]:
    """A small network with random weights, and the file that holds them."""
    torch.manual_seed(seed)
    network = build_network("cnn2", n_classes).eval()
    names = tuple(str(label) for label in range(n_classes))
    card = describe(
        network,
        name="net",
        network_name="cnn2",
        class_names=names,
        image_size=32,
        family="digits-npz",
        M=2.5,
    )
    path = folder.parent / f"weights-{n_classes}-{seed}.safetensors"
    path.write_bytes(save_weights(network))
    return card, str(path)


def stage_of(folder: Path, **changes: object) -> Extract:
    card, weights = model(folder)
    stage = Extract(SourceSpec(str(folder), "test", ""), card, weights, shard_rows=7)
    return dataclasses.replace(stage, **changes)


def run(store: FeatureStore, stage: Extract) -> FeatureSet:
    return extract(store, stage, EXECUTOR, Journal.of(store.location, ["extract"]))[0]


def test_rows_are_those_of_the_plain_network(store: FeatureStore, folder: Path) -> None:
    found = run(store, stage_of(folder))
    card, weights = model(folder)
    network = build_network("cnn2", 10).eval()
    load_weights(network, weights)
    images = SourceSpec(str(folder), "test", "").open().read(0, 23).images
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
    with torch.no_grad():
        logits = network((pixels - mean) / std).numpy()
    np.testing.assert_allclose(found.read("logits"), logits, atol=1e-5)
    np.testing.assert_array_equal(found.samples()["prediction"], logits.argmax(axis=1))


def test_confidence_is_the_largest_softmax_probability(store: FeatureStore, folder: Path) -> None:
    found = run(store, stage_of(folder))
    expected = torch.softmax(torch.from_numpy(found.read("logits")).double(), dim=1).amax(dim=1)
    np.testing.assert_allclose(found.samples()["confidence"], expected.numpy(), rtol=1e-12)


def test_reflection_of_stored_rows_equals_autograd(store: FeatureStore, folder: Path) -> None:
    found = run(store, stage_of(folder))
    card, weights = model(folder)
    network = build_network("cnn2", 10).eval()
    load_weights(network, weights)
    last = network.get_submodule(card.last_layer)
    assert isinstance(last, torch.nn.Linear)
    features = torch.from_numpy(found.read("features"))
    by_autograd = serial_gradients(last, features, loss="mse-m", M=card.M)
    stored = found.reflection(loss="mse-m", scaling="none").compute()
    np.testing.assert_allclose(stored, by_autograd.reshape(23, -1).numpy(), atol=1e-6)


@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_batch_size_changes_rows_by_rounding_only(
    store: FeatureStore, folder: Path, tmp_path: Path, batch_rows: int
) -> None:
    other = FeatureStore(str(tmp_path / "other")).prepare()
    first = run(store, stage_of(folder))
    second = run(other, stage_of(folder, batch_rows=batch_rows))
    assert first.name == second.name
    np.testing.assert_allclose(first.read("features"), second.read("features"), atol=1e-5)


def test_same_batch_size_gives_the_same_bytes(
    store: FeatureStore, folder: Path, tmp_path: Path
) -> None:
    other = FeatureStore(str(tmp_path / "other")).prepare()
    first, second = run(store, stage_of(folder)), run(other, stage_of(folder))
    np.testing.assert_array_equal(first.read("features"), second.read("features"))


def test_a_repeat_computes_nothing(store: FeatureStore, folder: Path) -> None:
    run(store, stage_of(folder))
    _, report = extract(store, stage_of(folder), EXECUTOR, Journal.of(store.location, ["extract"]))
    assert (report.n_computed, report.n_shards) == (0, 4)


def test_other_weights_are_another_set_and_the_note_says_what_differs(
    store: FeatureStore, folder: Path
) -> None:
    first = run(store, stage_of(folder))
    card, weights = model(folder, seed=1)
    second = run(store, stage_of(folder, card=card, weights=weights))
    assert first.name != second.name
    assert "inputs.model.weights_sha256" in store.siblings(second)[0]


@pytest.mark.parametrize("field", ["mean", "image_size", "precision"])
def test_other_preprocessing_is_another_set(store: FeatureStore, folder: Path, field: str) -> None:
    stage = stage_of(folder)
    changed = {
        "mean": {"card": dataclasses.replace(stage.card, mean=(0.5, 0.5, 0.5))},
        "image_size": {"source": dataclasses.replace(stage.source, image_size=28)},
        "precision": {"precision": "bf16"},
    }[field]
    assert run(store, stage).name != run(store, stage_of(folder, **changed)).name


def test_changed_data_is_another_set(store: FeatureStore, folder: Path) -> None:
    first = run(store, stage_of(folder))
    content = dict(np.load(folder / "test.npz"))
    content["images"][3] = 255 - content["images"][3]
    np.savez(folder / "test.npz", **content)
    assert run(store, stage_of(folder)).name != first.name


def test_one_unreadable_image_is_a_row_of_nan_and_the_rest_is_there(
    store: FeatureStore, tmp_path: Path
) -> None:
    images = write_image_folder(tmp_path / "pictures", 30)
    bad = sorted((images / "test" / "one").iterdir())[2]
    bad.write_bytes(bad.read_bytes()[:60])
    card, weights = model(images, len(CLASSES))
    stage = Extract(SourceSpec(str(images), "test", ""), card, weights, shard_rows=8)
    found = run(store, stage)
    samples = found.samples()
    failed = np.flatnonzero((samples["status"] != "ok").to_numpy())
    assert [Path(name).name for name in samples["sample_id"].iloc[failed]] == [bad.name]
    assert np.isnan(found.read("features")[failed]).all()
    assert not np.isnan(np.delete(found.read("features"), failed, axis=0)).any()
    listed = [row for receipt in found.shard_set.receipts() for row in receipt["failed"]]
    assert listed == [str(failed[0])]
    assert list(verify_feature_set(found)) == []


def test_a_network_with_another_number_of_classes_is_refused(
    store: FeatureStore, folder: Path
) -> None:
    card, weights = model(folder, 7)
    with pytest.raises(InputError, match=r"7 classes.*has 10.*--model"):
        run(store, stage_of(folder, card=card, weights=weights))
    assert list(store.feature_sets()) == []


def test_a_named_layer_is_stored_as_its_batched_gradients(
    store: FeatureStore, folder: Path
) -> None:
    stage = stage_of(folder)
    network = build_network("cnn2", 10).eval()
    load_weights(network, stage.weights)
    name = next(n for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d))
    found = run(store, stage_of(folder, layer=NamedLayer(name, "bce")))
    images = SourceSpec(str(folder), "test", "").open().read(0, 23).images
    # The same arithmetic to the last bit: max-pooling has kinks at which a rounding shows.
    sensing = Sensing(network, stage.card)
    pixels = normalised(torch.from_numpy(images), sensing.mean, sensing.scale)
    expected = layer_gradients(network, name, pixels, loss="bce")
    np.testing.assert_allclose(found.read("gradients"), expected.numpy(), atol=1e-5)


def test_a_projected_layer_stores_as_many_numbers_as_asked_for(
    store: FeatureStore, folder: Path
) -> None:
    stage = stage_of(folder)
    network = build_network("cnn2", 10)
    name = next(n for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d))
    found = run(store, dataclasses.replace(stage, layer=NamedLayer(name, "mse-m", 5)))
    assert found.read("gradients").shape == (23, 5)


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(
    store: FeatureStore, folder: Path
) -> None:
    with pytest.raises(InputError, match="expected one with a weight"):
        run(store, stage_of(folder, layer=NamedLayer("nowhere")))
    assert list(store.feature_sets()) == []


def test_batches_for_torch_cover_every_row_once(store: FeatureStore, folder: Path) -> None:
    found = run(store, stage_of(folder))
    batches = list(found.torch_dataset(arrays=("logits",), batch_rows=4, shuffle=True, seed=3))
    logits = torch.cat([batch[0] for batch in batches]).numpy()
    expected = found.read("logits")
    np.testing.assert_array_equal(logits[np.lexsort(logits.T)], expected[np.lexsort(expected.T)])
    assert max(len(batch[1]) for batch in batches) == 4


def test_batches_come_in_row_order_without_shuffling(store: FeatureStore, folder: Path) -> None:
    found = run(store, stage_of(folder))
    labels = torch.cat([batch[-1] for batch in found.torch_dataset(batch_rows=5)])
    np.testing.assert_array_equal(labels.numpy(), found.samples()["label"])


def test_numbered_labels_may_lack_the_last_classes(
    store: FeatureStore, folder: Path, tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "few.npz", 9, 3)
    card, weights = model(folder)
    assert run(store, Extract(SourceSpec(str(path), "test", ""), card, weights)).n_rows == 9


def test_images_without_labels_are_extracted_with_label_minus_one(
    store: FeatureStore, folder: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "unknown.npy", np.load(folder / "test.npz")["images"])
    card, weights = model(folder)
    source = SourceSpec(str(tmp_path / "unknown.npy"), "test", "")
    found = run(store, Extract(source, card, weights))
    assert set(found.samples()["label"]) == {-1}
    assert np.isfinite(found.read("logits")).all()


def test_classes_of_other_names_are_refused_though_their_number_fits(
    store: FeatureStore, folder: Path, tmp_path: Path
) -> None:
    images = write_image_folder(tmp_path / "pictures", 30)
    card, weights = model(folder, len(CLASSES))
    card = dataclasses.replace(card, class_names=("cat", "dog", "eel"))
    with pytest.raises(InputError, match=r"cat, dog, eel.*has 3 \(one, two, zero\)"):
        run(store, Extract(SourceSpec(str(images), "test", ""), card, weights))


def test_a_data_set_that_changed_since_the_plan_stops_the_run(
    store: FeatureStore, folder: Path
) -> None:
    stage = stage_of(folder)
    plan = stage.plan()
    content = dict(np.load(folder / "test.npz"))
    np.savez(folder / "test.npz", **{**content, "images": 255 - content["images"]})
    with pytest.raises(InputError, match=r"not the data set that this run was planned for.*fing"):
        stage.check(plan)


@dataclasses.dataclass(frozen=True)
class Meddler(LocalExecutor):
    """Runs the work, and changes the data set when it is done."""

    path: str = ""

    def run(self, work: Work, todo: deque[Shard], watch: Watch) -> Iterator[Outcome]:
        yield from super().run(work, todo, watch)
        content = dict(np.load(self.path))
        np.savez(self.path, **{**content, "images": 255 - content["images"]})


def test_rows_of_a_data_set_that_changed_during_the_run_are_taken_back(
    store: FeatureStore, folder: Path
) -> None:
    stage = stage_of(folder)
    with pytest.raises(InputError, match="not the data set that this run was planned for"):
        extract(
            store,
            stage,
            Meddler(1, str(folder / "test.npz")),
            Journal.of(store.location, ["extract"]),
        )
    (found,) = store.feature_sets()
    assert len(found.shard_set.missing()) == 4


def test_a_network_whose_code_was_edited_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    text = (
        "from torch import nn\n"
        "def net(n_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(3072, n_classes))\n"
    )
    code.write_text(text)
    torch.save(build_network(f"{code}:net", 10).state_dict(), tmp_path / "mine.pt")
    folder = write_npz_set(tmp_path / "set", 40, 40)
    source = SourceSpec(str(folder), "test", "")
    request = ModelRequest("mine", f"{code}:net", str(tmp_path / "mine.pt"))
    choose(store, request, source).take_in()
    code.write_text(text.replace("ReLU", "Sigmoid"))
    with pytest.raises(InputError, match="was changed since the model was taken in"):
        choose(store, ModelRequest("mine"), source)


def test_options_of_a_foreign_network_are_refused_for_a_model_of_the_store(
    store: FeatureStore, folder: Path
) -> None:
    with pytest.raises(InputError, match="give --network too"):
        choose(store, ModelRequest("net", image_size=64), SourceSpec(str(folder), "test", ""))
