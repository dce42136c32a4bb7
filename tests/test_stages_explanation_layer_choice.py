"""Layers and maps of real architectures: both ways, a slow loop, and pytorch-grad-cam."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.errors import InputError
from stages.explanation.gradient_maps import gradients_at
from stages.explanation.layer_choice import chosen_layer, combining, is_pooled
from stages.explanation.maps import directions
from stages.explanation.questions import Question, questions_of
from stages.explanation.target_layer import TargetLayer, layers_in
from stages.sensing.build import build_network
from stages.sensing.model import ARRANGEMENTS, Sensing, describe, sensing_of
from stages.sensing.torchvision_ops import import_torchvision

import_torchvision()  # pytorch_grad_cam imports it too
from pytorch_grad_cam import GradCAM  # noqa: E402
from torchvision.models import VisionTransformer  # noqa: E402

N_CLASSES = 5
NAMES = tuple("abcde")
QUESTIONS = questions_of(["grad-cam", "counterfactual-cam", "contrast-cam"], ["top-1", "e"], NAMES)
ASKED = torch.tensor([[0, 0, 3, 4], [2, 2, 1, 4]])
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

# Network -> side of its images, layer in front of the pooling, grid, whether f is its mean.
CHOICES = {
    "resnet18": (16, "layer3", (4, 4), True),
    "cnn2": (16, "conv2", (8, 8), False),
    "torchvision:resnet18": (64, "layer4", (2, 2), True),
    "torchvision:vgg16": (32, "features.29", (2, 2), False),
    "torchvision:densenet121": (64, "features", (2, 2), False),
    "torchvision:alexnet": (64, "features.11", (3, 3), False),
    "torchvision:squeezenet1_1": (64, "features", (3, 3), False),
    "vit": (32, "encoder.layers.encoder_layer_1.ln_1", (4, 4), False),
    "timm:vit_tiny_patch16_224,img_size=64": (64, "blocks.11.norm1", (4, 4), False),
}
LAST_LAYERS = {"torchvision:squeezenet1_1": "classifier.1"}  # its head cannot be imported


def _small(network: nn.Module) -> nn.Module:
    """Small fully connected layers in place of those of 100 million weights."""
    found = getattr(network, "classifier", None)
    if isinstance(found, nn.Sequential) and isinstance(found[-1], nn.Linear):
        width = next(each for each in found if isinstance(each, nn.Linear)).in_features
        network.classifier = nn.Sequential(
            nn.Linear(width, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, N_CLASSES)
        )
    return network


@cache
def network_of(name: str) -> nn.Module:
    with torch.device("meta"):
        network = (
            VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=N_CLASSES)
            if name == "vit"
            else _small(build_network(name, N_CLASSES))
        )
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for key, tensor in network.state_dict().items():
        if key.endswith("running_var") or (tensor.ndim == 1 and key.endswith("weight")):
            tensor.fill_(1)
        elif key.endswith("running_mean") or key.endswith("num_batches_tracked"):
            tensor.fill_(0)
        else:
            scale = (2 / max(1, tensor[0].numel())) ** 0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return network


def pixels_for(name: str) -> Tensor:
    side = CHOICES[name][0]
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@cache
def sensing(name: str) -> Sensing:
    network = network_of(name)
    card = describe(
        network,
        name="net",
        network_name=name,
        class_names=NAMES,
        image_size=CHOICES[name][0],
        family="set",
    )
    return Sensing(network, card, "fp32", ARRANGEMENTS[1])


def layer_of(name: str) -> TargetLayer:
    if name not in LAST_LAYERS:
        return chosen_layer(sensing(name), pixels_for(name))
    layers = layers_in(network_of(name), LAST_LAYERS[name], pixels_for(name))
    return layers[-1]


def signed(name: str, layer: TargetLayer) -> Tensor:
    """Maps of all questions before the ReLU, by backward passes of the plain network."""
    network, pixels = network_of(name), pixels_for(name)
    combine, logits = gradients_at(network, layer, lambda: network(pixels))
    return combine(directions(QUESTIONS, logits, ASKED))


def score(question: Question, logits: Tensor, asked: int) -> Tensor:
    """What the derivative of a question is taken of, with its sign."""
    if question.method == "contrast-cam":
        return functional.cross_entropy(logits[None], torch.tensor([asked]))
    return logits[asked] * (-1 if question.method == "counterfactual-cam" else 1)


def slow(name: str, layer: TargetLayer, row: int, question: Question, asked: int) -> Tensor:
    """The signed map of one image by one backward pass of its own."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        seen.append(output.clone())
        seen[-1].retain_grad()
        return seen[-1].clone()  # an in-place ReLU overwrites the copy

    network = network_of(name)
    handle = network.get_submodule(layer.name).register_forward_hook(keep)
    try:
        logits = network(pixels_for(name)[row : row + 1].requires_grad_(True))[0]
        score(question, logits, asked).backward()
    finally:
        handle.remove()
    assert seen[-1].grad is not None
    values, gradient = layer.spatial(seen[-1].detach())[0], layer.spatial(seen[-1].grad)[0]
    found = torch.zeros(values.shape[1:])
    for channel, slope in zip(values, gradient, strict=True):
        found += slope.mean() * channel
    return found


def library(name: str, layer: str, reshape: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Maps of all questions before the ReLU, by pytorch-grad-cam."""
    network, pixels = network_of(name), pixels_for(name)
    module = network.get_submodule(layer)
    maps = []
    for at, question in enumerate(QUESTIONS):
        with GradCAM(network, [module], reshape_transform=reshape) as cam:
            cam.activations_and_grads(pixels.clone().requires_grad_(True))
            logits = cam.outputs = network(pixels.clone().requires_grad_(True))
            sum(
                score(question, z, int(q)) for z, q in zip(logits, ASKED[:, at], strict=True)
            ).backward()
            values = cam.activations_and_grads.activations[-1].numpy()
            gradient = cam.activations_and_grads.gradients[0].numpy()
            found = cam.get_cam_image(pixels, module, None, values, gradient)
        maps.append(torch.from_numpy(found))
    return torch.stack(maps, dim=1)


@pytest.mark.parametrize("name", CHOICES)
def test_the_default_is_the_layer_in_front_of_the_pooling(name: str) -> None:
    _, layer, grid, has_closed_form = CHOICES[name]

    found = layer_of(name)

    assert (found.name, found.grid) == (layer, grid)
    if name not in LAST_LAYERS:
        assert is_pooled(sensing(name), found, pixels_for(name)) is has_closed_form


@pytest.mark.parametrize("name", CHOICES)
def test_batched_passes_equal_a_loop_over_images_and_maps(name: str) -> None:
    layer = layer_of(name)

    found = signed(name, layer)

    for row in range(2):
        for at, question in enumerate(QUESTIONS):
            expected = slow(name, layer, row, question, int(ASKED[row, at]))
            torch.testing.assert_close(found[row, at], expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("torchvision:resnet18", "layer4"),
        ("torchvision:vgg16", "features.29"),
        ("torchvision:alexnet", "features.11"),
        ("torchvision:squeezenet1_1", "features.12.expand3x3_activation"),
        # The library keeps no copy: behind `features` a ReLU overwrites what it recorded.
        ("torchvision:densenet121", "features.denseblock4"),
        ("vit", "encoder.layers.encoder_layer_1.ln_1"),
    ],
)
def test_maps_equal_those_of_pytorch_grad_cam(name: str, layer: str) -> None:
    last_layer = LAST_LAYERS.get(name) or sensing(name).card.last_layer
    layers = {each.name: each for each in layers_in(network_of(name), last_layer, pixels_for(name))}
    target = layers[layer]
    reshape = target.spatial if target.layout == "tokens" else None

    torch.testing.assert_close(signed(name, target), library(name, layer, reshape), **CLOSE)


@pytest.mark.parametrize("name", [name for name, choice in CHOICES.items() if choice[3]])
def test_the_closed_form_equals_backward_passes(name: str) -> None:
    model, layer, pixels = sensing(name), layer_of(name), pixels_for(name)
    found = []
    for in_closed_form in (True, False):
        combine, logits = combining(model, layer, pixels, in_closed_form=in_closed_form)
        found.append(combine(directions(QUESTIONS, logits, ASKED)))

    torch.testing.assert_close(found[0], found[1], **CLOSE)
    torch.testing.assert_close(found[0], signed(name, layer), **CLOSE)


def test_a_network_that_keeps_its_layers_calls_them() -> None:
    name = "resnet18"
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    model = sensing_of(network_of(name), sensing(name).card, images, keeps_layers=True)

    assert not model.arrangement.is_folded
    assert chosen_layer(model, pixels_for(name)).name == "layer3"


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("layer9", "expected a layer whose output has a place in the image"),
        ("linear", "expected a layer whose output has a place in the image.*layer3"),
        ("pool", "expected a layer"),
    ],
)
def test_a_layer_without_places_is_refused(layer: str, expected: str) -> None:
    with pytest.raises(InputError, match=f"^--layer {layer}: {expected}"):
        chosen_layer(sensing("resnet18"), pixels_for("resnet18"), layer)


def test_a_layer_that_the_logits_do_not_depend_on_is_refused() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
            self.linear = nn.Linear(4, N_CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            self.idle(x)
            found: Tensor = self.linear(self.used(x).mean((2, 3)))
            return found

    network, pixels = Idle().eval().requires_grad_(False), torch.randn(2, 3, 8, 8)
    combine, _ = gradients_at(network, TargetLayer("idle", (6, 6)), lambda: network(pixels))

    with pytest.raises(InputError, match="--layer idle: the logits do not depend on its output"):
        combine(torch.ones(2, 1, N_CLASSES))
