"""Networks of torchvision and timm with random weights: f and z against plain PyTorch."""

import pytest
import torch
from torch import Tensor, nn

from stages.sensing.build import build_network
from stages.sensing.logit_layers import logit_layers
from stages.sensing.model import describe, sensing_of
from stages.sensing.probe import noise_images
from stages.sensing.torchvision_ops import define_missing_operators

define_missing_operators()
pytest.importorskip("timm")

LEAN = {
    "torchvision:mnasnet0_5": 32,
    "timm:dpn48b": 32,  # a convolution behind the average
    "timm:deit_tiny_distilled_patch16_224,img_size=32": 32,  # the mean of two layers
    "timm:swiftformer_xs": 32,  # the same, and a trace that differs from the network
    "timm:swin_tiny_patch4_window7_224,img_size=56": 56,  # buffers of five dimensions
}
OTHERS = {
    "torchvision:alexnet": 64,
    "torchvision:vgg11_bn": 32,
    "torchvision:resnet18": 32,
    "torchvision:resnext50_32x4d": 32,
    "torchvision:wide_resnet50_2": 32,
    "torchvision:regnet_y_400mf": 32,
    "torchvision:densenet121": 32,
    "torchvision:mobilenet_v2": 32,
    "torchvision:mobilenet_v3_small": 32,
    "torchvision:shufflenet_v2_x0_5": 32,
    "torchvision:efficientnet_b0": 32,
    "torchvision:efficientnet_v2_s": 32,
    "torchvision:convnext_tiny": 32,
    "torchvision:vit_b_16,image_size=32": 32,
    "torchvision:swin_t": 32,
    "torchvision:swin_v2_t": 32,
    "torchvision:maxvit_t": 224,
    "torchvision:googlenet,transform_input=true": 32,
    "torchvision:inception_v3,transform_input=true": 75,
    "timm:resnet18": 32,
    "timm:resnetv2_50x1_bit": 32,
    "timm:regnetx_002": 32,
    "timm:densenet121": 32,
    "timm:mobilenetv3_small_050": 32,
    "timm:mobilenetv4_conv_small": 32,
    "timm:efficientnet_lite0": 32,
    "timm:convnextv2_atto": 32,
    "timm:vit_tiny_patch16_224,global_pool=avg,img_size=32": 32,
    "timm:deit3_small_patch16_224,img_size=32": 32,
    "timm:cait_xxs24_224,img_size=32": 32,
    "timm:swinv2_tiny_window8_256,img_size=64": 64,
    "timm:beit_base_patch16_224,img_size=32": 32,
    "timm:eva02_tiny_patch14_224,img_size=28": 28,
    "timm:mixer_s32_224": 224,
    "timm:resmlp_12_224": 224,
    "timm:vgg11": 32,
    "timm:inception_v3": 96,
    "timm:dla34": 32,
    "timm:levit_128s": 224,
    "timm:efficientformer_l1": 224,
    "timm:repvit_m0_9": 64,
    "timm:mobilevit_xxs": 64,
    "timm:crossvit_tiny_240": 240,
    "timm:nfnet_l0": 64,
    "timm:poolformer_s12": 32,
    "timm:mvitv2_tiny": 224,
    "timm:lambda_resnet26t": 64,
}


def with_random_weights(name: str) -> nn.Module:
    """Also where a network begins with zeros; batch norm has statistics."""
    torch.manual_seed(0)
    network = build_network(name, 3)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if key.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif key.endswith("running_var"):
                value.uniform_(0.8, 1.2)
        for value in network.parameters():
            if value.ndim > 1 and not value.any():
                value.normal_(0, 0.05)
    return network.eval()


def check(name: str, size: int) -> None:
    """z is the network's output, and its gradient to the weights of the last layers is f."""
    network, images = with_random_weights(name), noise_images((size, size))[:2]
    card = describe(
        network, name="m", network_name=name, class_names=(), image_size=size, family="x"
    )
    sensing = sensing_of(network, card, images, is_new=True)
    features, logits = sensing(images)

    mean, std = (torch.tensor(each)[:, None, None] for each in (card.mean, card.std))
    expected: Tensor = network((images.permute(0, 3, 1, 2) / 255 - mean) / std)
    weights = [layer.weight for layer in logit_layers(network, card.last_layer)]
    gradients = torch.autograd.grad(expected[0, 1], weights)
    row = torch.cat([each[1].flatten() for each in gradients])
    for found, wanted in ((logits, expected.detach()), (features[0], row)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    again = features @ sensing.weight.T + (0 if sensing.bias is None else sensing.bias)
    torch.testing.assert_close(logits, again, rtol=1e-4, atol=1e-5 * float(again.abs().max()))


@pytest.mark.parametrize(("name", "size"), LEAN.items())
def test_each_kind_of_network_gives_its_own_numbers(name: str, size: int) -> None:
    check(name, size)


@pytest.mark.soak
@pytest.mark.parametrize(("name", "size"), OTHERS.items())
def test_many_networks_give_their_own_numbers(name: str, size: int) -> None:
    check(name, size)
