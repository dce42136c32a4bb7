import dataclasses
import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from stripes import Stripes
from torch.nn import functional

from stages.data.source import Rows
from stages.errors import InputError, StageError
from stages.sensing.augmentation import CROP_PAD, augmented, epoch_draws
from stages.sensing.card import CIFAR10_NORMALISATION, ModelCard
from stages.sensing.labelled import normalisation, read_labelled
from stages.sensing.model import load_sensing
from stages.sensing.sensing_training import SensingTraining
from stages.sensing.train_params import (
    PRESETS,
    TrainParams,
    held_out_rows,
    learning_rate,
    planned_params,
)
from stages.sensing.weights import weights_hash

QUICK = TrainParams(network="cnn2", epochs=4, batch=16, lr=0.05, schedule="one-cycle")


def silent(n_rows):
    pass


def trained(stage, n_epochs=None, state=None):
    state = state or stage.start()
    metrics = [stage.step(state, unit, silent) for unit in range(n_epochs or stage.n_units)]
    return state, metrics


def test_training_learns():
    stage = SensingTraining("m", QUICK, Stripes(), Stripes(n_rows=20, seed=1))
    state, metrics = trained(stage)
    _, facts = stage.finish(state)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert facts["test_accuracy"] == facts["train_accuracy"] == 1


@pytest.mark.parametrize("network", ["cnn2", "resnet18"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_training_equals_an_uninterrupted_one_bit_for_bit(network, precision):
    params = dataclasses.replace(
        PRESETS["paper-crop"], network=network, epochs=3, batch=16, lr=0.02, precision=precision
    )
    stage = SensingTraining("m", params, Stripes(n_rows=40))
    whole, _ = trained(stage)
    first, _ = trained(stage, 1)
    resumed = stage.load(stage.save(first))
    for unit in (1, 2):
        stage.step(resumed, unit, silent)
    assert stage.save(resumed) == stage.save(whole)


def test_dropout_of_a_users_network_resumes_too(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\n"
        "def net(n_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(768, n_classes))\n"
    )
    params = dataclasses.replace(QUICK, network=f"{path}:net", epochs=2)
    stage = SensingTraining("m", params, Stripes())
    whole, _ = trained(stage)
    first, _ = trained(stage, 1)
    resumed = stage.load(stage.save(first))
    torch.rand(5)  # somebody else draws in between
    stage.step(resumed, 1, silent)
    assert stage.save(resumed) == stage.save(whole)


def test_seed_changes_the_start_and_training_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one = SensingTraining("m", QUICK, Stripes())
    two = SensingTraining("m", dataclasses.replace(QUICK, seed=1), Stripes())
    states = [trained(stage, 1)[0] for stage in (one, one, two)]
    assert torch.equal(torch.rand(1), expected)
    assert one.save(states[0]) == one.save(states[1]) != two.save(states[2])


def test_every_row_is_ticked_once_an_epoch():
    ticks = []
    stage = SensingTraining("m", QUICK, Stripes(n_rows=33))  # 33 = 2 x 16 + 1
    stage.step(stage.start(), 0, ticks.append)
    assert ticks == [16, 16, 1]
    assert stage.rows_per_unit == 33


def test_finish_gives_weights_a_card_and_m_in_eval_mode(tmp_path):
    stage = SensingTraining("m", QUICK, Stripes(), Stripes(n_rows=20, seed=1))
    files, facts = stage.finish(trained(stage, 2)[0])
    path = tmp_path / "weights.safetensors"
    path.write_bytes(files["weights.safetensors"])
    card = ModelCard.from_dict(json.loads(json.dumps(facts))["card"])
    data = read_labelled(Stripes())
    _, logits = load_sensing(card, path)(data.images)
    assert pytest.approx(float(logits.max(1).values.mean()), rel=1e-5) == card.M
    assert card.last_layer == "linear"
    assert card.feature_dim == 50
    accuracy = float((logits.argmax(1) == data.labels).float().mean())
    assert facts["train_accuracy"] == pytest.approx(accuracy)
    assert facts["recipe"]["network"] == "cnn2"
    assert (facts["n_train"], facts["n_test"]) == (60, 20)


def test_unreadable_and_unlabelled_rows_are_left_out():
    source = Stripes(broken=(3, 7), unlabelled=(5,))
    state = SensingTraining("m", QUICK, source).start()
    assert len(state.data.labels) == 57
    assert state.data.n_left_out == 3
    assert state.data.rows.tolist() == [row for row in range(60) if row not in (3, 5, 7)]


@dataclasses.dataclass(frozen=True)
class Part(Stripes):
    """The stripes without some rows: what a training that holds them out must amount to."""

    without: tuple[int, ...] = ()

    def read(self, start, stop):
        rows = super().read(start, stop)
        label = rows.columns["label"].copy()
        label[[row - start for row in self.without if start <= row < stop]] = -1
        return Rows(rows.images, {"label": label}, rows.failed)


HOLDING_OUT = dataclasses.replace(QUICK, held_out=20)


def test_a_training_that_holds_rows_out_equals_one_without_them_bit_for_bit():
    broken = (3, 7)
    rows = tuple(held_out_rows(60, 20, QUICK.seed).tolist())
    holding = SensingTraining("m", HOLDING_OUT, Stripes(broken=broken))
    without = SensingTraining("m", QUICK, Part(broken=broken, without=rows))
    states = [trained(stage)[0] for stage in (holding, without)]
    facts = [
        stage.finish(state)[1] for stage, state in zip((holding, without), states, strict=True)
    ]
    assert holding.save(states[0]) == without.save(states[1])
    for name in ("card", "M", "train_accuracy", "n_train"):
        assert facts[0][name] == facts[1][name]
    n_out = len(set(rows) - set(broken))
    assert (facts[0]["n_train_left_out"], facts[0]["n_held_out"]) == (2, n_out)
    assert (facts[0]["recipe"]["held_out"], facts[0]["recipe"]["seed"]) == (20, 0)


def test_held_out_rows_join_after_their_share_of_the_epochs():
    params = dataclasses.replace(HOLDING_OUT, epochs=5, held_out_until=0.6)
    stage = SensingTraining("m", params, Stripes())
    state, ticks = stage.start(), []
    for unit in range(5):
        seen = []
        stage.step(state, unit, seen.append)
        ticks.append(sum(seen))
    assert ticks == [40, 40, 40, 60, 60]
    assert 5 * stage.rows_per_unit == sum(ticks)
    assert [stage.model_after(state, epoch)[1].n_train for epoch in (1, 3, 4, 5)] == [
        *(40, 40),
        *(60, 60),
    ]


def test_the_paper_adds_its_rows_back_after_epoch_120():
    params = dataclasses.replace(PRESETS["paper"], held_out=10_000, held_out_until=0.6)
    assert params.n_epochs_held_out == 120


def test_m_and_the_accuracy_are_those_of_the_rows_trained_on(tmp_path):
    params = dataclasses.replace(HOLDING_OUT, epochs=2, held_out_until=0.5)
    stage = SensingTraining("m", params, Stripes())
    state, _ = trained(stage)
    data = read_labelled(Stripes())
    path = tmp_path / "weights.safetensors"
    kept = np.setdiff1d(np.arange(60), held_out_rows(60, 20, 0))
    for epoch, rows in ((1, kept), (2, np.arange(60))):
        files, found = stage.model_after(state, epoch)
        path.write_bytes(files["weights.safetensors"])
        _, logits = load_sensing(found.card, path)(data.images[rows])
        assert pytest.approx(float(logits.max(1).values.mean()), rel=1e-5) == found.M
        right = (logits.argmax(1) == data.labels[rows]).float().mean()
        assert found.train_accuracy == pytest.approx(float(right))


def test_a_training_that_holds_rows_out_resumes_bit_for_bit():
    params = dataclasses.replace(HOLDING_OUT, epochs=3, held_out_until=0.6)
    stage = SensingTraining("m", params, Stripes())
    whole, _ = trained(stage)
    first, _ = trained(stage, 1)
    resumed = stage.load(stage.save(first))
    for unit in (1, 2):
        stage.step(resumed, unit, silent)
    assert stage.save(resumed) == stage.save(whole)


def test_looking_at_a_network_on_the_way_does_not_change_where_it_ends():
    params = dataclasses.replace(PRESETS["paper-crop"], epochs=2, batch=16, lr=0.02)
    stage = SensingTraining("m", params, Stripes(n_rows=40), Stripes(n_rows=20, seed=1))
    whole, _ = trained(stage)
    state = stage.start()
    for unit in range(2):
        stage.step(state, unit, silent)
        stage.model_after(state, unit + 1)
    assert stage.save(state) == stage.save(whole)


@pytest.mark.parametrize("held_out", [56, 57, 60, 90])
def test_fewer_than_two_images_are_refused(held_out):
    rows = held_out_rows(60, 57, QUICK.seed)
    broken = tuple(np.setdiff1d(np.arange(60), rows).tolist())
    params = dataclasses.replace(QUICK, held_out=held_out)
    with pytest.raises(InputError, match=rf"found {max(0, 57 - held_out)} in 60 rows, with "):
        SensingTraining("m", params, Stripes(broken=broken)).start()


def test_a_last_image_without_a_batch_does_not_count():
    params = dataclasses.replace(QUICK, lr=1e-30, schedule="steps", augmentation="none")
    stage = SensingTraining("m", params, Stripes(n_rows=17))
    state = stage.start()
    order = epoch_draws(17, params.seed, 0).order
    with torch.no_grad():
        logits = state.network(stage._pixels(state, state.data.take(order[:16])))
    labels = state.data.labels[order[:16]]
    found = stage.step(state, 0, silent)
    assert found["loss"] == pytest.approx(float(functional.cross_entropy(logits, labels)))
    assert found["accuracy"] == float((logits.argmax(1) == labels).float().mean())


def test_a_plan_names_held_out_rows_only_where_there_are_some():
    fields = ["network", "epochs", "batch", "lr", "momentum", "weight_decay", "schedule"]
    fields += ["milestones", "gamma", "augmentation", "precision", "seed"]
    assert list(planned_params(QUICK)) == fields
    assert list(planned_params(HOLDING_OUT)) == [*fields, "held_out", "held_out_until"]


def test_data_without_labels_is_refused():
    with pytest.raises(InputError, match="none of 4 rows is readable and labelled"):
        SensingTraining("m", QUICK, Stripes(n_rows=4, unlabelled=(0, 1, 2, 3))).start()


def test_divergence_is_an_error_that_names_the_epoch_and_the_remedy():
    params = dataclasses.replace(QUICK, network="resnet18", lr=1e30, schedule="steps")
    stage = SensingTraining("m", params, Stripes())
    with pytest.raises(
        StageError, match="diverged: loss nan in epoch 1 of 4; use a lower learning"
    ):
        trained(stage)


def test_stage_travels_by_pickle():
    stage = SensingTraining("m", QUICK, Stripes(), device="cpu")
    assert pickle.loads(pickle.dumps(stage)) == stage


def test_cifar10_is_normalised_by_its_published_constants_and_others_by_their_own():
    images = torch.randint(0, 256, (50, 8, 8, 3), dtype=torch.uint8)
    assert normalisation(images, "cifar10")[0] == CIFAR10_NORMALISATION
    (mean, std), origin = normalisation(images, "digits")
    pixels = images.double() / 255
    assert np.allclose(mean, pixels.mean((0, 1, 2)), atol=1e-6)
    assert np.allclose(std, pixels.std((0, 1, 2), correction=0), atol=1e-6)
    assert origin == "training images"


def test_paper_rates_change_after_epochs_60_120_and_160():
    rates = [learning_rate(PRESETS["paper"], epoch) for epoch in range(200)]
    changes = [epoch for epoch in range(1, 200) if rates[epoch] != rates[epoch - 1]]
    assert changes == [60, 120, 160]
    assert np.allclose([rates[0], *(rates[epoch] for epoch in changes)], [0.1, 0.02, 0.004, 0.0008])


def test_one_cycle_rises_to_the_rate_and_falls_to_nothing():
    rates = [learning_rate(QUICK, epoch) for epoch in np.linspace(0, 4, 81)]
    assert max(rates) == pytest.approx(QUICK.lr)
    assert rates[0] < QUICK.lr / 20
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"lr": -1}, {"batch": 1}, {"augmentation": "mixup"}, {"precision": "fp8"},
     {"milestones": (60, 120)}, {"schedule": "linear"}, {"held_out": -1},
     {"held_out": 5, "held_out_until": 0}, {"held_out": 5, "held_out_until": 1.5}],
)  # fmt: skip
def test_invalid_parameters_are_refused(change):
    with pytest.raises(InputError, match=next(iter(change)).replace("_", " ")):
        TrainParams(**change)


def test_a_share_without_held_out_rows_is_refused():
    with pytest.raises(InputError, match="no rows are held out; say how many with --held-out"):
        TrainParams(held_out_until=0.6)


def test_an_epochs_order_is_a_permutation_that_the_next_epoch_does_not_repeat():
    one, again, other = (epoch_draws(50, 0, epoch) for epoch in (0, 0, 1))
    assert sorted(one.order.tolist()) == list(range(50))
    assert torch.equal(one.order, again.order)
    assert not torch.equal(one.order, other.order)


def test_flips_and_crops_equal_those_of_single_images():
    images = torch.randint(0, 256, (7, 9, 6, 3), dtype=torch.uint8)
    draws = epoch_draws(7, 0, 0)
    result = augmented(images, draws.flip, draws.shift, "crop_flip")
    for row in range(7):
        pad = (0, 0, CROP_PAD, CROP_PAD, CROP_PAD, CROP_PAD)
        top, left = draws.shift[row].tolist()
        expected = functional.pad(images[row], pad)[top : top + 9, left : left + 6]
        expected = expected.flip(1) if draws.flip[row] else expected
        assert torch.equal(result[row], expected)


def test_no_augmentation_gives_the_images_and_flip_only_flips():
    images = torch.randint(0, 256, (7, 9, 6, 3), dtype=torch.uint8)
    draws = epoch_draws(7, 0, 0)
    assert augmented(images, draws.flip, draws.shift, "none") is images
    flipped = augmented(images, torch.ones(7, dtype=torch.bool), draws.shift, "flip")
    assert torch.equal(flipped, images.flip(2))


NETWORK = "from stages.sensing.networks import cnn2 as net\n"


def test_card_names_the_code_that_was_trained_even_if_the_file_is_edited_meanwhile(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NETWORK)
    stage = SensingTraining("m", dataclasses.replace(QUICK, network=f"{path}:net"), Stripes())
    state = stage.start()
    path.write_text(NETWORK + "# edited\n")
    _, facts = trained_once(stage, state)
    assert facts.card.extra["source_sha256"] == hashlib.sha256(NETWORK.encode()).hexdigest()


def test_card_after_training_is_that_of_the_start_with_the_new_weights(tmp_path):
    stage = SensingTraining("m", QUICK, Stripes())
    state = stage.start()
    before = state.card.to_dict()
    _, facts = trained_once(dataclasses.replace(stage, model_name="m-epoch-001"), state)
    assert facts.card.to_dict() == {
        **before,
        "name": "m-epoch-001",
        "M": facts.M,
        "weights_sha256": weights_hash(state.network),
    }


def trained_once(stage, state):
    stage.step(state, 0, silent)
    return stage.model_after(state, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_network_is_checked_on_the_device_it_is_trained_on(tmp_path):
    """A network that draws from the generator of the GPU has stable output on the CPU."""
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\n"
        "from stages.sensing.networks import Cnn2\n"
        "class Net(Cnn2):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x + torch.rand_like(x) if x.is_cuda else x)\n"
    )
    params = dataclasses.replace(QUICK, network=f"{path}:Net")
    with pytest.raises(InputError, match="depend on chance"):
        SensingTraining("m", params, Stripes(), device="cuda").start()
