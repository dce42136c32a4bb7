"""Training methods: what each adds to the training images, and how a batch is formed."""

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from stripes import Stripes

from stages.data.corruptions.names import CURE
from stages.data.corruptions.severities import corrupt
from stages.errors import InputError
from stages.sensing.labelled import read_labelled
from stages.sensing.methods.distorted import KEY, distorted
from stages.sensing.methods.method_params import METHODS, PLAIN, Noise, method_from
from stages.sensing.model import load_sensing
from stages.sensing.sensing_training import SensingTraining
from stages.sensing.train_params import TrainParams, held_out_rows, planned_params
from stages.sensing.train_sensing import TrainSensing

QUICK = TrainParams(network="cnn2", epochs=3, batch=16, lr=0.02, schedule="one-cycle")
METHOD_CASES = [Noise(per_distortion=5)]


def of(method, **changes):
    return dataclasses.replace(QUICK, method=method, **changes)


def silent(n_rows):
    pass


def step_through(stage, units, state=None):
    state = stage.start() if state is None else state
    for unit in units:
        stage.step(state, unit, silent)
    return state


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHOD_CASES, ids=lambda method: method.name)
def test_a_killed_training_resumes_to_the_same_weights(method, precision):
    params = of(method, augmentation="crop_flip", held_out=8, held_out_until=0.6)
    stage = SensingTraining("m", dataclasses.replace(params, precision=precision), Stripes(side=32))
    whole = step_through(stage, range(3))
    resumed = stage.load(stage.save(step_through(stage, range(1))))
    assert stage.save(step_through(stage, (1, 2), resumed)) == stage.save(whole)


@pytest.mark.parametrize("method", METHOD_CASES, ids=lambda method: method.name)
def test_the_rows_of_an_epoch_are_those_of_the_progress_display(method):
    stage, ticks = SensingTraining("m", of(method), Stripes(side=32)), []
    stage.step(stage.start(), 0, ticks.append)
    assert sum(ticks) == stage.rows_per_unit


def test_m_and_the_accuracy_are_those_of_the_clean_images(tmp_path):
    stage = SensingTraining("m", of(Noise(per_distortion=5)), Stripes(side=32))
    files, found = stage.model_after(step_through(stage, range(2)), 2)
    path, data = tmp_path / "weights.safetensors", read_labelled(Stripes(side=32))
    path.write_bytes(files["weights.safetensors"])
    _, logits = load_sensing(found.card, path)(data.images)
    assert pytest.approx(float(logits.max(1).values.mean()), rel=1e-5) == found.M
    assert (found.n_train, found.n_added, found.n_held_out) == (60, 30, 0)


# noise


def test_noise_distorts_random_images_at_random_levels():
    source = Stripes(n_rows=40, side=32, broken=(0,))
    data = read_labelled(source)
    rows = torch.arange(5, 39)
    added = distorted(data, rows, params=Noise(per_distortion=30), seed=3)
    assert added.images.shape == (180, 32, 32, 3)
    levels = []
    for place, (image, row) in enumerate(
        zip(added.images.numpy(), added.rows.numpy(), strict=True)
    ):
        index = data.rows.tolist().index(row)
        assert index in rows
        assert added.labels[place] == data.labels[index]
        block, name = data.images[index][None].numpy(), CURE[place // 30]
        same = [
            level
            for level in range(1, 6)
            if np.array_equal(
                corrupt(block, name, level, np.array([row]), KEY + 3, collection="cure")[0], image
            )
        ]
        levels.append(same[0])
    assert {len(set(added.rows[at : at + 30].tolist())) for at in range(0, 180, 30)} == {30}
    assert min(np.bincount(levels)[1:]) > 20


def test_images_added_from_held_out_rows_are_held_out_with_them():
    params = of(Noise(per_distortion=20), held_out=30, held_out_until=0.5)
    stage = SensingTraining("m", params, Stripes(side=32))
    state, out = stage.start(), held_out_rows(60, 30, 0)
    counts = []
    for unit in range(3):
        seen = []
        stage.step(state, unit, seen.append)
        counts.append(sum(seen))
    n_first = int((~torch.isin(state.data.rows, torch.from_numpy(out))).sum())
    assert counts == [n_first, n_first, 180]
    assert 30 < n_first < 120


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Stripes(side=16), "constants for 32x32 pixels, found 16x16; give --image-size 32"),
        (Stripes(n_rows=4, side=32), "needs as many training images, found 4; give"),
    ],
)
def test_noise_refuses_images_that_it_cannot_distort(source, message):
    with pytest.raises(InputError, match=message):
        SensingTraining("m", of(Noise(per_distortion=5)), source).start()


# parameters


def test_a_plan_names_the_method_unless_it_is_plain():
    assert "method" not in planned_params(QUICK)
    planned = planned_params(of(Noise()))["method"]
    assert planned == {"name": "noise", "per_distortion": 500}


def test_options_of_another_method_are_refused():
    with pytest.raises(InputError, match="--per-distortion has no effect with --method plain"):
        method_from("plain", {"per_distortion": 5})
    with pytest.raises(ValidationError, match="option of --method noise"):
        TrainSensing(dataset="digits", per_distortion=5)


def test_every_method_is_found_by_its_name():
    assert METHODS["plain"] == PLAIN
    assert {name: method.name for name, method in METHODS.items()} == {n: n for n in METHODS}
