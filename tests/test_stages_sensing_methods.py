"""Training methods: what each adds to the training images, and how a batch is formed."""

import dataclasses
import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made import make_in
from PIL import Image, ImageOps
from pydantic import ValidationError
from scipy import stats
from small_data import train_small, write_image_folder
from stripes import Stripes
from torch.nn import functional

from pipeline.workspace import Workspace
from stages.data.corruptions.names import CURE, names_of
from stages.data.corruptions.severities import corrupt
from stages.errors import InputError
from stages.sensing.attacked import Attacked
from stages.sensing.augmentation import epoch_draws
from stages.sensing.labelled import read_labelled
from stages.sensing.methods.adversarial import ascended, attacked_images
from stages.sensing.methods.augmix import (
    NONE,
    OPERATIONS,
    applied,
    consistent_loss,
    drawn,
    mixed_views,
    mixture,
)
from stages.sensing.methods.chosen import method_of
from stages.sensing.methods.distorted import KEY, distorted
from stages.sensing.methods.method import Batch
from stages.sensing.methods.method_params import (
    METHODS,
    PLAIN,
    Adversarial,
    AugMix,
    Noise,
    in_words,
    method_from,
)
from stages.sensing.model import load_network, load_sensing
from stages.sensing.sensing_training import SensingTraining
from stages.sensing.train_params import (
    PRESET_NORMALISATION,
    PRESETS,
    TrainParams,
    held_out_rows,
    learning_rate,
    planned_params,
)
from stages.sensing.train_sensing import TrainSensing
from store.catalog import FeatureStore

QUICK = TrainParams(network="cnn2", epochs=3, batch=16, lr=0.02, schedule="one-cycle")
METHOD_CASES = [
    Adversarial(steps=2),
    Adversarial(attack="pgd", steps=2),
    Noise(per_distortion=5),
    AugMix(),
]


def of(method, **changes):
    return dataclasses.replace(QUICK, method=method, **changes)


def silent(n_rows):
    pass


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A model that tells the stripes apart."""
    stage = SensingTraining("clean", QUICK, Stripes(side=32))
    files, found = stage.model_after(step_through(stage, range(2)), 2)
    path = tmp_path_factory.mktemp("clean") / "weights.safetensors"
    path.write_bytes(files["weights.safetensors"])
    return Attacked(found.card, str(path))


def training(method, attacked, n_rows=30, **changes):
    model = attacked if getattr(method, "attack", "") == "i-fgsm" else None
    return SensingTraining("m", of(method, **changes), Stripes(n_rows, side=32), attacked=model)


def step_through(stage, units, state=None):
    state = stage.start() if state is None else state
    for unit in units:
        stage.step(state, unit, silent)
    return state


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHOD_CASES, ids=in_words)
def test_a_killed_training_resumes_to_the_same_weights(method, precision, attacked):
    stage = training(
        method, attacked, epochs=2, augmentation="crop_flip", held_out=8, held_out_until=0.5,
        precision=precision,
    )  # fmt: skip
    first = step_through(stage, (0,))
    resumed = stage.load(stage.save(first))
    whole = step_through(stage, (1,), first)
    assert stage.save(step_through(stage, (1,), resumed)) == stage.save(whole)


@pytest.mark.parametrize("method", METHOD_CASES, ids=in_words)
def test_the_rows_of_an_epoch_are_those_of_the_progress_display(method, attacked):
    stage, ticks = training(method, attacked), []
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
    params = of(Noise(per_distortion=10), held_out=10, held_out_until=0.5)
    stage = SensingTraining("m", params, Stripes(n_rows=20, side=32))
    state, out = stage.start(), held_out_rows(20, 10, 0)
    counts = []
    for unit in range(3):
        seen = []
        stage.step(state, unit, seen.append)
        counts.append(sum(seen))
    n_first = int((~torch.isin(state.data.rows, torch.from_numpy(out))).sum())
    assert counts == [n_first, n_first, 80]
    assert 10 < n_first < 70


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


def test_noise_that_does_not_fit_is_refused_before_the_images_are_read(world):
    workspace = Workspace(world.store)
    small = robust(world, method="noise", attacked=None, per_distortion=1, image_size=16)
    with pytest.raises(InputError, match="--per-distortion 500 needs as many training images"):
        robust(world, method="noise", attacked=None).plan(workspace)
    with pytest.raises(InputError, match="constants for 32x32 pixels, found 16x16"):
        small.plan(workspace)


# adversarial


def test_a_model_is_attacked_as_by_a_slow_loop(attacked):
    data, params = read_labelled(Stripes(n_rows=12, side=32)), Adversarial(steps=3)
    rows = torch.tensor([1, 4, 5, 11])
    added = attacked_images(
        data, rows, params=params, attacked=attacked, device="cpu", precision="fp32"
    )
    network, card = load_network(attacked.card, attacked.weights), attacked.card
    for place, row in enumerate(rows):
        clean = data.images[row].double() / 255
        x = clean.clone()
        for _ in range(3):
            x.requires_grad_(True)
            pixels = ((x - torch.tensor(card.mean)) / torch.tensor(card.std)).float()
            logits = network(pixels.permute(2, 0, 1)[None])
            loss = functional.cross_entropy(logits, data.labels[row][None])
            (slope,) = torch.autograd.grad(loss, x)
            x = (x.detach() + 0.01 * slope.sign()).clamp(clean - 8 / 255, clean + 8 / 255)
            x = x.clamp(0, 1)
        assert torch.equal(added.images[place], (255 * x).round().to(torch.uint8))
    assert added.labels.tolist() == data.labels[rows].tolist()
    assert added.rows.tolist() == rows.tolist()


def test_an_attack_raises_the_loss(attacked):
    data, rows = read_labelled(Stripes(side=32)), torch.arange(60)
    added = attacked_images(
        data, rows, params=Adversarial(), attacked=attacked, device="cpu", precision="fp32"
    )
    sensing = load_sensing(attacked.card, attacked.weights)
    before, after = (
        functional.cross_entropy(sensing(each)[1], data.labels, reduction="none")
        for each in (data.images, added.images)
    )
    assert (after > before).all()


@pytest.mark.parametrize("start", [None, 300.0])
def test_pixels_stay_in_their_range_and_near_the_image_after_every_step(start):
    images = torch.from_numpy(pictures(20))
    seen, generator = [], torch.Generator().manual_seed(0)

    def gradient(moved):
        seen.append(moved)
        return torch.randn(moved.shape, generator=generator)

    begun = None if start is None else torch.full(images.shape, start)
    seen.append(ascended(images, gradient, Adversarial(epsilon=0.05, step=0.04), begun))
    assert len(seen) == 11
    for moved in seen:
        assert ((moved >= 0) & (moved <= 255)).all()
        assert float((moved - images).abs().max()) <= 255 * 0.05 + 1e-4
    assert not torch.equal(seen[-1], seen[0])


def test_an_attack_of_size_zero_changes_nothing(attacked):
    data, rows = read_labelled(Stripes(n_rows=9, side=32)), torch.arange(9)
    nothing = Adversarial(epsilon=0)
    added = attacked_images(
        data, rows, params=nothing, attacked=attacked, device="cpu", precision="fp32"
    )
    assert torch.equal(added.images, data.images)
    stage = training(dataclasses.replace(nothing, attack="pgd"), attacked)
    one, two = stage_views(stage)
    assert torch.equal(one, two)


def stage_views(stage, state=None):
    """Views of the first eight images."""
    state = stage.start() if state is None else state
    draws = epoch_draws(len(state.data.labels), 0, 0)
    return state.method.views(stage._batch(state, draws, slice(0, 8)))


def test_pgd_attacks_the_network_in_eval_mode_and_leaves_it_as_it_was(attacked):
    stage = training(Adversarial(attack="pgd"), attacked, network="resnet18", epochs=1)
    state = stage.start()
    state.network.train()
    state.network.layer1.eval()
    modes = [part.training for part in state.network.modules()]
    before = stage.save(state)
    clean, moved = stage_views(stage, state)
    assert 0 < float((moved - clean).abs().max()) <= 8 + 1e-3
    assert stage.save(state) == before  # batch norm has not counted the attacked images
    assert [part.training for part in state.network.modules()] == modes
    assert all(each.requires_grad and each.grad is None for each in state.network.parameters())


def test_an_attack_needs_its_model_and_no_other_method_takes_one():
    with pytest.raises(ValidationError, match="use --attack pgd"):
        TrainSensing(dataset="digits", method="adversarial")
    with pytest.raises(ValidationError, match="--attacked has no effect without"):
        TrainSensing(dataset="digits", attacked="m")
    with pytest.raises(InputError, match="trains all layers"):
        of(Adversarial(attack="pgd"), train="last-layer")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of images, and a store with a model that was trained on them."""
    home = tmp_path_factory.mktemp("world")
    store = FeatureStore(str(home / "store"))
    store.prepare()
    photos = write_image_folder(home / "photos", 12)
    train_small(store, photos)
    return SimpleNamespace(store=store, photos=photos)


def robust(world, **changes):
    options = {"preset": "quick", "epochs": 1, "method": "adversarial", "attacked": "cnn2"}
    return TrainSensing(dataset=str(world.photos), name="robust", **{**options, **changes})


def test_a_model_of_the_store_is_attacked_and_named_in_the_plan(world):
    done = make_in(world.store, robust(world))
    plan, card = done.output.plan(), done.output.card()
    attacked = world.store.artifact("model", "cnn2").card()["card"]
    assert plan["inputs"]["attacked"]["weights"] == attacked["weights_sha256"]
    assert plan["stage"]["params"]["method"] == card["recipe"]["method"]
    assert (card["n_train"], card["n_added"]) == (12, 12)
    assert make_in(world.store, robust(world)).report.n_units_run == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 16}, "takes images of 32x32 pixels, the training has 16x16; give --image"),
        ({"classes": ("two", "one", "zero")}, "expected the classes of photos, found others"),
    ],
)
def test_a_model_for_other_images_is_not_attacked(world, changes, message):
    with pytest.raises(InputError, match=message):
        make_in(world.store, robust(world, **changes))


# augmix


def by_pillow(image, name, level, sign):
    """An operation as AugMix publishes it, at a level of 10."""
    size = width, height = image.size
    affine = {
        "shear_x": (1, sign * level * 0.3 / 10, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * level * 0.3 / 10, 1, 0),
        "translate_x": (1, 0, sign * int(level * width / 3 / 10), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, sign * int(level * height / 3 / 10)),
    }
    bilinear = Image.Resampling.BILINEAR
    if name in affine:
        return image.transform(size, Image.Transform.AFFINE, affine[name], bilinear)
    if name == "rotate":
        return image.rotate(sign * int(level * 30 / 10), bilinear)
    if name == "posterize":
        return ImageOps.posterize(image, 4 - int(level * 4 / 10))
    if name == "solarize":
        return ImageOps.solarize(image, 256 - int(level * 256 / 10))
    return getattr(ImageOps, name)(image)


def pictures(n, height=32, width=32):
    """Smooth, noisy, constant and dark images."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (n, 5, 5, 3)).astype(np.uint8)
    images = np.stack([Image.fromarray(each).resize((width, height)) for each in small])
    images[: n // 4] = generator.integers(0, 256, (n // 4, height, width, 3))
    images[n // 4] = 7
    images[-n // 4 :] //= 5
    return images


@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=OPERATIONS.__getitem__)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_operations_are_those_of_pillow(number, size):
    images, generator = pictures(80, *size), np.random.default_rng(1)
    levels = generator.uniform(0.1, 3, 80)
    signs = np.where(generator.random(80) > 0.5, 1, -1)
    found = applied(torch.from_numpy(images), np.full(80, number), levels, signs).numpy()
    expected = np.stack(
        [
            by_pillow(Image.fromarray(image), OPERATIONS[number], level, sign)
            for image, level, sign in zip(images, levels, signs, strict=True)
        ]
    )
    off = np.abs(found.astype(int) - expected)
    is_interpolated = OPERATIONS[number] in ("rotate", "shear_x", "shear_y")
    assert off.max() <= is_interpolated
    assert (off > 0).mean() < 0.003


def test_a_batch_has_different_operations_and_an_image_without_one_stays():
    images = torch.from_numpy(pictures(40))
    operations = np.arange(40) % 10 - 1
    levels, signs = np.full(40, 2.5), np.full(40, -1)
    found = applied(images, operations, levels, signs)
    for row, number in enumerate(operations):
        one = slice(row, row + 1)
        alone = applied(images[one], operations[one], levels[one], signs[one])
        assert torch.equal(found[one], alone)
        assert number != NONE or torch.equal(found[row], images[row])


def test_augmix_draws_what_is_published():
    n = 20_000
    chains = drawn(n, AugMix(), np.random.default_rng(0))
    is_op = chains.operations != NONE
    depths = is_op.sum(1)
    assert (is_op[:, :-1] >= is_op[:, 1:]).all()  # a chain has no gaps
    counts = {
        "depth": np.bincount(depths.ravel())[1:],
        "operation": np.bincount(chains.operations[is_op]),
        "sign": np.bincount(chains.signs.ravel() + 1)[[0, 2]],
    }
    assert {name: len(each) for name, each in counts.items()} == {
        "depth": 3, "operation": 9, "sign": 2,
    }  # fmt: skip
    assert {name for name, each in counts.items() if stats.chisquare(each).pvalue < 1e-3} == set()
    assert np.allclose(chains.weights.sum(0), 1, atol=1e-6)
    samples = {
        "levels": (chains.levels[is_op], stats.uniform(0.1, 2.9)),
        "weights": (chains.weights[0], stats.beta(1, 2)),  # a margin of Dirichlet(1, 1, 1)
        "shares": (chains.shares, stats.beta(1, 1)),
    }
    laws = {name: stats.kstest(values, law.cdf).pvalue for name, (values, law) in samples.items()}
    assert {name for name, pvalue in laws.items() if pvalue < 1e-3} == set()
    assert (drawn(9, AugMix(mix_depth=2), np.random.default_rng(0)).operations != NONE).all()


def test_a_mixture_is_that_of_a_slow_loop():
    images = torch.from_numpy(pictures(12))
    chains = drawn(12, AugMix(), np.random.default_rng(2))
    mixed = mixture(images, chains)
    for row in range(12):
        total = np.zeros((32, 32, 3))
        for chain in range(3):
            image = images[row][None]
            for step in range(3):
                image = applied(
                    image,
                    chains.operations[chain, step, row][None],
                    chains.levels[chain, step, row][None],
                    chains.signs[chain, step, row][None],
                )
            total += chains.weights[chain, row] * image[0].numpy()
        share = chains.shares[row]
        expected = (1 - share) * images[row].numpy() + share * total
        assert np.allclose(mixed[row].numpy(), expected, atol=1e-3)


def test_views_are_the_images_and_two_mixtures_that_depend_on_the_key():
    images = torch.from_numpy(pictures(8))
    keys = [(0, 0, 0), (0, 0, 0), (0, 1, 0), (0, 0, 8), (1, 0, 0)]
    batches = [Batch(images, torch.zeros(8), key, logits=torch.nn.Identity()) for key in keys]
    views = [mixed_views(each, params=AugMix()) for each in batches]
    clean, one, two = views[0]
    assert torch.equal(clean, images.float())
    assert not torch.equal(one, two)
    assert torch.equal(views[1][2], two)
    assert all(not torch.equal(other[1], one) for other in views[2:])
    assert ((torch.stack(views[0]) >= 0) & (torch.stack(views[0]) <= 255)).all()


def test_the_loss_is_the_jensen_shannon_divergence_of_scipy():
    generator = torch.Generator().manual_seed(0)
    outputs = tuple(3 * torch.randn(6, 4, generator=generator).double() for _ in range(3))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    found = consistent_loss(outputs, labels, weight=12)
    p = [each.softmax(1).numpy() for each in outputs]
    mean = sum(p) / 3
    divergence = np.mean([stats.entropy(each, mean, axis=1) for each in p])
    expected = float(functional.cross_entropy(outputs[0], labels)) + 12 * divergence
    assert float(found) == pytest.approx(expected, rel=1e-9)
    same = consistent_loss((outputs[0],) * 3, labels, weight=12)
    assert float(same) == pytest.approx(float(functional.cross_entropy(outputs[0], labels)))


def test_augmix_trains_all_layers():
    with pytest.raises(InputError, match="augmix trains all layers: omit --train last-layer"):
        of(AugMix(), train="last-layer")


def test_the_preset_of_augmix_is_the_publication():
    params = PRESETS["augmix"]
    assert (params.network, params.epochs, params.nesterov) == ("wrn40-2", 100, True)
    rates = [learning_rate(params, epoch) for epoch in (0, 25, 50, 100)]
    assert np.allclose(rates, [0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 1e-6], atol=1e-6)
    assert PRESET_NORMALISATION["augmix"] == ((0.5,) * 3, (0.5,) * 3)


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


def test_label_smoothing_spreads_a_share_of_the_target():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    target = torch.full((6, 4), 0.2 / 4)
    target[range(6), labels] += 0.8
    expected = -(target * logits.log_softmax(1)).sum(1).mean()

    for method in (PLAIN, Noise()):
        smoothed = dataclasses.replace(QUICK, method=method, label_smoothing=0.2)
        found = method_of(smoothed, "cpu", None).loss((logits,), labels)
        torch.testing.assert_close(found, expected)
    assert "label_smoothing" not in planned_params(QUICK)
    assert planned_params(smoothed)["label_smoothing"] == 0.2


@pytest.mark.parametrize(
    "wrong", [{"label_smoothing": 1.0}, {"label_smoothing": 0.1, "method": AugMix()}]
)
def test_label_smoothing_without_an_effect_is_refused(wrong):
    with pytest.raises(InputError, match=r"label.smoothing"):
        dataclasses.replace(QUICK, **wrong)


# leaks


def hashes_of(images):
    return [hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image in images]


@pytest.fixture(scope="module")
def cells():
    """Hashes of test images, and of corrupted ones."""
    test, rows = read_labelled(Stripes(n_rows=10, seed=1, side=32)).images.numpy(), np.arange(10)
    found = [
        corrupt(test, name, level, rows, seed=0, collection=collection)
        for collection in ("cure", "cifar10c")
        for name in names_of(collection)
        for level in (1, 5)
    ]
    images = np.concatenate([test, *found])
    # Overexposed images may be all white, whatever they were.
    return set(hashes_of(image for image in images if np.ptp(image)))


@dataclasses.dataclass(frozen=True)
class ReadAtTheEnd(Stripes):
    """Test images that no epoch may read."""

    def read(self, start, stop):
        raise AssertionError("test images were read before the end")


@pytest.mark.parametrize("method", METHOD_CASES, ids=in_words)
def test_no_test_image_and_no_corrupted_one_is_trained_on(method, attacked, cells):
    """Nothing that goes through the network has the content of a test cell, or another origin."""
    stage = dataclasses.replace(
        training(method, attacked), test=ReadAtTheEnd(n_rows=10, seed=1, side=32)
    )
    state = step_through(stage, range(1))
    views = [view.round().to(torch.uint8) for view in stage_views(stage, state)]
    seen = {*hashes_of(state.data.images.numpy()), *hashes_of(torch.cat(views).numpy())}
    assert set(hashes_of(read_labelled(Stripes(n_rows=30, side=32)).images.numpy())) <= seen
    assert seen.isdisjoint(cells)
