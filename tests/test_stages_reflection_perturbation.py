"""Perturbed extraction compared with autograd for single images through the plain network."""

import dataclasses
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from made import extract, make_in
from small_data import train_small, write_npz_set

from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.introspection.head_target import HeadTarget
from stages.introspection.predictors import open_head
from stages.introspection.train_head import TrainHead
from stages.reflection.extraction import Extraction
from stages.reflection.footprint import footprint
from stages.reflection.named_layer import ARRAY, NamedLayer
from stages.reflection.perturbation import Odin, Pgd
from stages.reflection.rank_one import last_layer_gradient
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.input_gradient import input_gradient
from stages.sensing.model import load_sensing
from stages.sensing.models import choose_model, weights_path
from stages.sensing.weights import load_weights
from store.catalog import FeatureStore

LEVEL = 1 / 255


@dataclasses.dataclass(frozen=True)
class World:
    """A store with a trained network, its features and a head; the images it is tried on."""

    store: FeatureStore
    data: Path
    card: ModelCard
    images: torch.Tensor

    @property
    def weights(self):
        return weights_path(self.store, self.card.name)

    @property
    def sensing(self):
        return load_sensing(self.card, self.weights)

    def stage(self, *perturbations, **changes):
        source = SourceSpec(str(self.data), "test", "")
        stage = Extraction(
            source, self.card, self.weights, shard_rows=8, perturbations=perturbations
        )
        return dataclasses.replace(stage, **changes)

    def extract(self, *perturbations, store=None, **changes):
        return extract(store or self.store, self.stage(*perturbations, **changes))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    data = write_npz_set(folder / "few", 120, 12)
    store = FeatureStore(str(folder / "store")).prepare()
    train_small(store, data)
    card = choose_model(store, "few", None)
    images = torch.from_numpy(SourceSpec(str(data), "test", "").open().read(0, 12).images)
    world = World(store, data, card, images)
    train = world.extract(source=SourceSpec(str(data), "train", ""))
    head = TrainHead(
        features=train.name,
        name="h",
        layers=(20,),
        epochs=40,
        weight_decay=0.0,
        batch_size=16,
        seeds=(0, 7),
    )
    make_in(store, head)
    return world


class Slow:
    """The plain network, unfolded, in float64, with its normalisation inside: pixels in [0, 1]."""

    def __init__(self, world):
        self.network = build_network(world.card.network, world.card.n_classes).eval()
        load_weights(self.network, world.weights)
        self.network.double()
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float64)[:, None, None]
            for values in (world.card.mean, world.card.std)
        )
        self.taken = []
        last = self.network.get_submodule(world.card.last_layer)
        last.register_forward_pre_hook(lambda _, given: self.taken.append(given[0]))

    def vectors(self, pixels):
        """Features and logits of one image ``[3, H, W]``."""
        logits = self.network(((pixels - self.mean) / self.std)[None])
        return self.taken.pop()[0], logits[0]

    def gradient(self, pixels, loss):
        leaf = pixels.clone().requires_grad_(True)
        loss(*self.vectors(leaf)).backward()
        return leaf.grad

    def images_of(self, world):
        return [image.permute(2, 0, 1).double() / 255 for image in world.images]


def odin_by_hand(world, epsilon, temperature):
    slow = Slow(world)
    moved = []
    for image in slow.images_of(world):

        def loss(features, logits):
            return torch.nn.functional.cross_entropy(
                (logits / temperature)[None], logits.argmax()[None]
            )

        ascent = slow.gradient(image, loss)
        moved.append(image - epsilon * torch.where(ascent >= 0, 1.0, -1.0))
    return moved


def pgd_by_hand(world, toward, *, epsilon=1, step=1, steps=10, start=None, logits_of=None):
    """In whole levels, one image at a time, last iterate."""
    slow = Slow(world)
    uniform = torch.full((world.card.n_classes,), 1 / world.card.n_classes, dtype=torch.float64)

    def loss(features, logits):
        z = logits if logits_of is None else logits_of(features, logits)
        if toward == "uniform":
            return torch.nn.functional.cross_entropy(z[None], uniform[None])
        return torch.distributions.Categorical(logits=z).entropy()

    moved = []
    for row, image in enumerate(slow.images_of(world)):
        levels = (image * 255).round()
        added = torch.zeros_like(levels) if start is None else start[row]
        for _ in range(steps):
            added = added - step * slow.gradient((levels + added) / 255, loss).sign()
            added = added.clamp(-epsilon, epsilon).trunc()
            added = (levels + added).clamp(0, 255) - levels
        moved.append((levels + added) / 255)
    return moved


def rows_of(world, moved):
    slow = Slow(world)
    with torch.no_grad():
        pairs = [slow.vectors(image) for image in moved]
    return [torch.stack(each).numpy() for each in zip(*pairs, strict=True)]


def levels_of(moved):
    return torch.stack([image.permute(1, 2, 0) * 255 for image in moved]).numpy()


def share_of_equal_pixels(found, expected):
    """Rounding may turn the sign of a gradient that is nearly 0, of a few pixels in a thousand."""
    return (np.abs(found - expected) < 1e-3).mean()


def test_odin_moves_images_as_autograd_does_one_by_one(world):
    found = Odin(0.0014, 1000.0).of(world.sensing)(world.images)

    assert (
        share_of_equal_pixels(found.numpy(), levels_of(odin_by_hand(world, 0.0014, 1000.0))) > 0.99
    )


def test_odin_features_are_those_of_the_perturbed_images(world):
    found = world.extract(Odin(0.01))
    features, logits = rows_of(world, odin_by_hand(world, 0.01, 1000.0))
    plain = world.extract()

    np.testing.assert_allclose(found.read("features"), features, atol=3e-4)
    np.testing.assert_allclose(found.read("logits"), logits, atol=3e-4)
    assert np.abs(found.read("logits") - plain.read("logits")).max() > 0.01


def test_gradients_of_a_layer_are_those_of_the_perturbed_images(world):
    """The gradient of the last layer is known: δ ⊗ f, of the perturbed image."""
    layer = NamedLayer(world.card.last_layer, "bce")

    found = world.extract(Odin(0.01), layer=layer)

    gradients = last_layer_gradient(found.read("features"), found.read("logits"), loss="bce")
    np.testing.assert_allclose(found.read(ARRAY), gradients.dense(), atol=1e-6)
    assert found.plan["stage"]["version"] == 2  # version 1 stored other gradients


def test_a_gradient_of_zero_counts_as_upwards(world):
    still = torch.full_like(world.images, 7)
    sensing = world.sensing
    sensing.taps[0].weight.zero_()

    assert Odin(1 / 255).of(sensing)(still) == pytest.approx(torch.full(still.shape, 6.0))


@pytest.mark.parametrize("toward", ["uniform", "confident"])
def test_pgd_moves_images_as_autograd_does_one_by_one(world, toward):
    found = Pgd(toward).of(world.sensing)(world.images).numpy()
    expected = levels_of(pgd_by_hand(world, toward))

    assert share_of_equal_pixels(found, expected) > 0.99
    assert (found == np.round(found)).all()
    assert 0 < np.abs(found - world.images.numpy()).max() <= 1
    assert found.min() >= 0
    assert found.max() <= 255


def test_pgd_in_a_larger_box_starts_at_random_in_whole_levels(world):
    """The start is of the image and the seed alone, so it is the same in any batch."""
    attack = Pgd("uniform", epsilon=4 * LEVEL, step=2 * LEVEL, steps=3, seed=5)
    start = torch.trunc(4 * attack._start(world.images)).permute(0, 3, 1, 2).double()
    found = attack.of(world.sensing)(world.images)
    by_hand = pgd_by_hand(world, "uniform", epsilon=4, step=2, steps=3, start=start)
    alone = attack.of(world.sensing)(world.images[3:4])

    assert share_of_equal_pixels(found.numpy(), levels_of(by_hand)) > 0.99
    assert share_of_equal_pixels(alone.numpy(), found[3:4].numpy()) > 0.99
    assert start.abs().max() == 3
    assert not torch.equal(attack._start(world.images), Pgd("uniform", seed=6)._start(world.images))


def test_pgd_less_than_a_level_is_not_cut_to_whole_ones(world):
    """The paper's text has .0014, which is .357 of a level."""
    found = Pgd("uniform", epsilon=0.0014).of(world.sensing)(world.images)
    added = (found - world.images).abs()

    assert added.max() == pytest.approx(0.357, abs=1e-4)
    assert added.max() > 0.3


@pytest.mark.parametrize(("toward", "is_surer"), [("uniform", False), ("confident", True)])
def test_pgd_makes_f_less_sure_or_surer(world, toward, is_surer):
    attacked, plain = world.extract(Pgd(toward)), world.extract()
    sure, before = attacked.samples()["confidence"], plain.samples()["confidence"]

    assert ((sure > before) == is_surer).mean() > 0.9


def target_of(world, seed=None):
    return HeadTarget(world.store.location, "h", seed)


def test_the_adaptive_attack_goes_down_the_loss_of_the_head(world):
    """One image at a time, the head's logits from the vectors of the plain network."""
    target = target_of(world, 7)
    head = open_head(world.store.artifact("head", "h"), 7).double()

    def logits_of(features, logits):
        return head(features[None], logits[None])[0]

    found = Pgd("uniform", target=target).of(world.sensing)(world.images).numpy()
    expected = levels_of(pgd_by_hand(world, "uniform", logits_of=logits_of))
    of_f = Pgd("uniform").of(world.sensing)(world.images).numpy()

    assert share_of_equal_pixels(found, expected) > 0.98
    assert share_of_equal_pixels(of_f, expected) < 0.95


def test_perturbations_follow_one_another(world):
    both = world.extract(Pgd("uniform"), Odin(0.01))
    sensing = world.sensing
    moved = Odin(0.01).of(sensing)(Pgd("uniform").of(sensing)(world.images))

    np.testing.assert_allclose(both.read("logits"), sensing(moved)[1].numpy(), atol=1e-4)
    assert both.plan["name"] == "few+pgd+odin-test@cnn2"


def test_batches_of_any_size_move_images_alike(world, tmp_path):
    other = FeatureStore(str(tmp_path / "other")).prepare()
    first = world.extract(Pgd("confident"))
    second = world.extract(Pgd("confident"), store=other, batch_rows=5)

    assert first.name == second.name
    np.testing.assert_allclose(first.read("logits"), second.read("logits"), atol=1e-3)


def test_a_variant_is_a_separate_set_and_hides_no_other(world):
    plain = world.extract()
    variants = [
        world.extract(*each)
        for each in (
            [Odin()],
            [Odin(0.01)],
            [Pgd("uniform")],
            [Pgd("uniform", target=target_of(world))],
        )
    ]

    assert len({each.name for each in (plain, *variants)}) == 5
    assert world.store.open("few-test@cnn2").name == plain.name
    assert "perturbations" not in plain.plan["stage"]["params"]
    assert {each.plan["name"] for each in variants} == {"few+odin-test@cnn2", "few+pgd-test@cnn2"}


def test_a_head_is_named_by_its_weights_in_the_plan(world):
    said = target_of(world).to_dict()

    assert said["seed"] == 0
    assert said["files"] == {
        key: vouched["sha256"]
        for key, vouched in world.store.artifact("head", "h").card()["files"].items()
    }


def test_gradients_take_memory_that_is_reckoned_with(world):
    stage = world.stage()
    source = stage.source.open()
    args = (source, world.card, stage.schema(source), 8)
    plain, perturbed = (
        footprint(*args, precision="fp32", layer=None, is_perturbed=each, device="cpu")
        for each in (False, True)
    )

    assert perturbed.image > 1.2 * plain.image


def test_the_gradient_leaves_no_trace_in_the_network(world):
    sensing = world.sensing
    before = sensing(world.images)[1]
    input_gradient(sensing, world.images, lambda features, logits: logits.sum(dim=1))

    assert torch.equal(sensing(world.images)[1], before)
    assert all(each.grad is None for each in sensing.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Odin(epsilon=-0.1),
        lambda: Odin(temperature=0.0),
        lambda: Pgd("sideways"),
        lambda: Pgd("uniform", epsilon=0.0),
        lambda: Pgd("uniform", step=2.0),
        lambda: Pgd("uniform", steps=0),
    ],
)
def test_settings_that_cannot_be_are_refused(make):
    with pytest.raises(InputError, match=r"^(odin|pgd): expected .* found"):
        make()


def test_both_sides_of_every_sign_are_tried(world):
    """The tests above compare something: gradients of both signs occur in every image."""
    gradient = input_gradient(world.sensing, world.images, lambda f, z: z.amax(dim=1))

    assert all((gradient[row].sign() == s).any() for row, s in product(range(12), (-1, 1)))


def test_pgd_of_the_code_base_computes_in_float32_and_loses_levels(world):
    """Step by step as that code does, with pixels in [0, 1]."""
    attack = Pgd("uniform", epsilon=4 * LEVEL, step=LEVEL, steps=6, rounding="code")
    clean = world.images.float()
    x = clean / 255
    delta = (4 * attack._start(world.images)).int().float()
    delta = ((x + delta / 255).clamp(0, 1) - x) * 255
    for _ in range(6):
        gradient = input_gradient(
            world.sensing, clean + delta, lambda f, z: z.logsumexp(dim=1) - z.mean(dim=1)
        )
        delta = (delta - gradient.sign()).int().float().clamp(-4, 4)
        delta = ((x + delta / 255).clamp(0, 1) - x) * 255

    found = attack.of(world.sensing)(world.images)
    exact = dataclasses.replace(attack, rounding="exact").of(world.sensing)(world.images)

    assert torch.equal(found, clean + delta)
    assert (found - clean).abs().mean() < (exact - clean).abs().mean()
    assert "rounding" not in dataclasses.replace(attack, rounding="exact").to_dict()
