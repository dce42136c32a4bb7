"""Extraction: rows equal the network's output however the work is split; bad input is named."""

import dataclasses
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import extract, journal_of, make_in
from small_data import CLASSES, write_image_folder, write_npz, write_npz_set

from benchmarks.autograd import serial_gradients
from pipeline.executors import LocalExecutor, Watch
from pipeline.work import Task, Work
from pipeline.worker import Outcome
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.reflection.extract import Extract
from stages.reflection.extraction import Extraction, extraction_job, fitted
from stages.reflection.layers import layer_gradients
from stages.reflection.named_layer import NamedLayer
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.import_model import ImportModel
from stages.sensing.model import Sensing, describe, normalised
from stages.sensing.models import model_card, require_trusted_code
from stages.sensing.trust import trust
from stages.sensing.weights import load_weights, save_weights
from store.catalog import FeatureStore
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
    card = replace(
        describe(
            network,
            name="net",
            network_name="cnn2",
            class_names=names,
            image_size=32,
            family="digits-npz",
        ),
        M=2.5,
    )
    path = folder.parent / f"weights-{n_classes}-{seed}.safetensors"
    path.write_bytes(save_weights(network))
    return card, str(path)


def stage_of(folder: Path, **changes: object) -> Extraction:
    card, weights = model(folder)
    stage = Extraction(SourceSpec(str(folder), "test", ""), card, weights, shard_rows=7)
    return dataclasses.replace(stage, **changes)


def test_rows_are_those_of_the_plain_network(store: FeatureStore, folder: Path) -> None:
    found = extract(store, stage_of(folder))
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
    found = extract(store, stage_of(folder))
    expected = torch.softmax(torch.from_numpy(found.read("logits")).double(), dim=1).amax(dim=1)
    np.testing.assert_allclose(found.samples()["confidence"], expected.numpy(), rtol=1e-12)


def test_reflection_of_stored_rows_equals_autograd(store: FeatureStore, folder: Path) -> None:
    found = extract(store, stage_of(folder))
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
    first = extract(store, stage_of(folder))
    second = extract(other, stage_of(folder, batch_rows=batch_rows))
    assert first.name == second.name
    np.testing.assert_allclose(first.read("features"), second.read("features"), atol=1e-5)


def test_same_batch_size_gives_the_same_bytes(
    store: FeatureStore, folder: Path, tmp_path: Path
) -> None:
    other = FeatureStore(str(tmp_path / "other")).prepare()
    first, second = extract(store, stage_of(folder)), extract(other, stage_of(folder))
    np.testing.assert_array_equal(first.read("features"), second.read("features"))


def test_a_repeat_computes_nothing(store: FeatureStore, folder: Path) -> None:
    extract(store, stage_of(folder))
    job = extraction_job(store, stage_of(folder), EXECUTOR)
    report = job.run(journal_of(store)).report
    assert (report.n_computed, report.n_shards) == (0, 4)


def test_other_weights_are_another_set_and_the_note_says_what_differs(
    store: FeatureStore, folder: Path
) -> None:
    first = extract(store, stage_of(folder))
    card, weights = model(folder, seed=1)
    second = extract(store, stage_of(folder, card=card, weights=weights))
    assert first.name != second.name
    assert "model.weights_sha256: " in store.siblings(second)[0]


@pytest.mark.parametrize("field", ["mean", "image_size", "precision"])
def test_other_preprocessing_is_another_set(store: FeatureStore, folder: Path, field: str) -> None:
    stage = stage_of(folder)
    changed = {
        "mean": {"card": dataclasses.replace(stage.card, mean=(0.5, 0.5, 0.5))},
        "image_size": {"source": dataclasses.replace(stage.source, image_size=28)},
        "precision": {"precision": "bf16"},
    }[field]
    assert extract(store, stage).name != extract(store, stage_of(folder, **changed)).name


def test_changed_data_is_another_set(store: FeatureStore, folder: Path) -> None:
    first = extract(store, stage_of(folder))
    content = dict(np.load(folder / "test.npz"))
    content["images"][3] = 255 - content["images"][3]
    np.savez(folder / "test.npz", **content)
    assert extract(store, stage_of(folder)).name != first.name


def test_an_unreadable_image_is_a_row_of_nan_and_the_others_are_computed(
    store: FeatureStore, tmp_path: Path
) -> None:
    images = write_image_folder(tmp_path / "pictures", 30)
    bad = sorted((images / "test" / "one").iterdir())[2]
    bad.write_bytes(bad.read_bytes()[:60])
    card, weights = model(images, len(CLASSES))
    stage = Extraction(SourceSpec(str(images), "test", ""), card, weights, shard_rows=8)
    found = extract(store, stage)
    samples = found.samples()
    failed = np.flatnonzero((samples["status"] != "ok").to_numpy())
    assert [Path(name).name for name in samples["sample_id"].iloc[failed]] == [bad.name]
    assert np.isnan(found.read("features")[failed]).all()
    assert not np.isnan(np.delete(found.read("features"), failed, axis=0)).any()
    listed = [row for receipt in found.shard_set.receipts() for row in receipt.failed]
    assert listed == [failed[0]]
    assert list(verify_feature_set(found)) == []


def test_a_network_with_another_number_of_classes_is_refused(
    store: FeatureStore, folder: Path
) -> None:
    card, weights = model(folder, 7)
    with pytest.raises(InputError, match=r"7 classes.*has 10.*--model"):
        extract(store, stage_of(folder, card=card, weights=weights))
    assert list(store.feature_sets()) == []


def test_a_named_layer_is_stored_as_its_batched_gradients(
    store: FeatureStore, folder: Path
) -> None:
    stage = stage_of(folder)
    network = build_network("cnn2", 10).eval()
    load_weights(network, stage.weights)
    name = next(n for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d))
    found = extract(store, stage_of(folder, layer=NamedLayer(name, "bce")))
    images = SourceSpec(str(folder), "test", "").open().read(0, 23).images
    # The same arithmetic to the last bit: max-pooling has kinks at which a rounding shows.
    sensing = Sensing(network, stage.card)
    pixels = normalised(torch.from_numpy(images), sensing.mean, sensing.scale)
    expected = layer_gradients(network, name, pixels, loss="bce")
    np.testing.assert_allclose(found.read("gradients"), expected.numpy(), atol=1e-5)


def test_a_projected_layer_stores_the_requested_number_of_values(
    store: FeatureStore, folder: Path
) -> None:
    stage = stage_of(folder)
    network = build_network("cnn2", 10)
    name = next(n for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d))
    found = extract(store, dataclasses.replace(stage, layer=NamedLayer(name, "mse-m", 5)))
    assert found.read("gradients").shape == (23, 5)


def test_a_missing_layer_is_refused_and_the_existing_ones_are_listed(
    store: FeatureStore, folder: Path
) -> None:
    with pytest.raises(InputError, match="expected one with a weight"):
        extract(store, stage_of(folder, layer=NamedLayer("nowhere")))
    assert list(store.feature_sets()) == []


def test_batches_for_torch_cover_every_row_once(store: FeatureStore, folder: Path) -> None:
    found = extract(store, stage_of(folder))
    batches = list(found.torch_dataset(arrays=("logits",), batch_rows=4, shuffle=True, seed=3))
    logits = torch.cat([batch[0] for batch in batches]).numpy()
    expected = found.read("logits")
    np.testing.assert_array_equal(logits[np.lexsort(logits.T)], expected[np.lexsort(expected.T)])
    assert max(len(batch[1]) for batch in batches) == 4


def test_batches_come_in_row_order_without_shuffling(store: FeatureStore, folder: Path) -> None:
    found = extract(store, stage_of(folder))
    labels = torch.cat([batch[-1] for batch in found.torch_dataset(batch_rows=5)])
    np.testing.assert_array_equal(labels.numpy(), found.samples()["label"])


def test_numbered_labels_may_lack_the_last_classes(
    store: FeatureStore, folder: Path, tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "few.npz", 9, 3)
    card, weights = model(folder)
    assert extract(store, Extraction(SourceSpec(str(path), "test", ""), card, weights)).n_rows == 9


def test_images_without_labels_are_extracted_with_label_minus_one(
    store: FeatureStore, folder: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "unknown.npy", np.load(folder / "test.npz")["images"])
    card, weights = model(folder)
    source = SourceSpec(str(tmp_path / "unknown.npy"), "test", "")
    found = extract(store, Extraction(source, card, weights))
    assert set(found.samples()["label"]) == {-1}
    assert np.isfinite(found.read("logits")).all()


def test_classes_of_other_names_are_refused_though_their_number_fits(
    store: FeatureStore, folder: Path, tmp_path: Path
) -> None:
    images = write_image_folder(tmp_path / "pictures", 30)
    card, weights = model(folder, len(CLASSES))
    card = dataclasses.replace(card, class_names=("cat", "dog", "eel"))
    with pytest.raises(InputError, match=r"cat, dog, eel.*has 3 \(one, two, zero\)"):
        extract(store, Extraction(SourceSpec(str(images), "test", ""), card, weights))


def test_a_data_set_that_changed_since_the_plan_stops_the_run(
    store: FeatureStore, folder: Path
) -> None:
    stage = stage_of(folder)
    plan = stage.plan()
    content = dict(np.load(folder / "test.npz"))
    np.savez(folder / "test.npz", **{**content, "images": 255 - content["images"]})
    with pytest.raises(InputError, match=r"not the data set that this run was planned for.*fing"):
        fitted(stage, LocalExecutor(1), 1).check(plan)


@dataclasses.dataclass(frozen=True)
class Meddler(LocalExecutor):
    """Runs the work, and changes the data set when it is done."""

    path: str = ""

    def run(self, work: Work, todo: deque[Task], watch: Watch) -> Iterator[Outcome]:
        yield from super().run(work, todo, watch)
        content = dict(np.load(self.path))
        np.savez(self.path, **{**content, "images": 255 - content["images"]})


def test_rows_of_a_data_set_that_changed_during_the_run_are_discarded(
    store: FeatureStore, folder: Path
) -> None:
    stage = stage_of(folder)
    with pytest.raises(InputError, match="not the data set that this run was planned for"):
        extract(store, stage, Meddler(1, str(folder / "test.npz")))
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
    trust(f"{code}:net")
    weights = str(tmp_path / "mine.pt")
    made = make_in(store, ImportModel(network=f"{code}:net", weights=weights, dataset=str(folder)))
    card = model_card(made.output)
    code.write_text(text.replace("ReLU", "Sigmoid"))
    with pytest.raises(InputError, match="was edited after you named it"):
        require_trusted_code(card)
    trust(f"{code}:net")
    with pytest.raises(InputError, match="was changed after the model was imported"):
        require_trusted_code(card)


def test_options_of_a_foreign_network_are_refused_for_a_model_of_the_store(
    store: FeatureStore, folder: Path
) -> None:
    with pytest.raises(InputError, match="expected only with --network"):
        make_in(store, Extract(dataset=str(folder), model="net", image_size=64))
