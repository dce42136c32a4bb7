import os

import pytest
import torch
from torch import nn

from stages.errors import DataNotFoundError, InputError
from stages.sensing.checkpoint import read_checkpoint
from stages.sensing.networks import cifar_resnet, cnn2
from stages.sensing.weights import load_weights, save_weights, weights_hash


class RunsCode:
    def __reduce__(self):
        return (os.system, ("true",))


@pytest.fixture
def network():
    return cnn2(10)


def test_weights_come_back_from_safetensors(network, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(save_weights(network))
    other = cnn2(10)
    load_weights(other, tmp_path / "w.safetensors")
    assert weights_hash(other) == weights_hash(network)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": weights},
        lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {"net": {f"module._orig_mod.{k}": v for k, v in weights.items()}},
    ],
)
def test_wrappers_and_prefixes_of_training_scripts_are_removed(network, tmp_path, wrap):
    torch.save(wrap(network.state_dict()), tmp_path / "w.pt")
    other = cnn2(10)
    load_weights(other, tmp_path / "w.pt")
    assert weights_hash(other) == weights_hash(network)


def test_hash_is_of_the_content_and_not_of_the_memory_layout(network):
    before = weights_hash(network)
    network.to(memory_format=torch.channels_last)
    assert weights_hash(network) == before
    with torch.no_grad():
        network.linear.bias[0] += 1
    assert weights_hash(network) != before


def test_tied_weights_are_saved():
    first = nn.Linear(3, 3)
    tied = nn.Sequential(first, first)
    assert save_weights(tied)


@pytest.mark.parametrize("content", [{"a": RunsCode()}, nn.Linear(2, 2)])
def test_checkpoint_that_holds_code_is_refused(network, tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match="would run code") as caught:
        load_weights(network, tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"these are no weights at all"])
def test_file_of_something_else_is_refused(network, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        load_weights(network, tmp_path / name)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_truncated_file_is_refused(network, tmp_path, name):
    torch.save(network.state_dict(), tmp_path / "w.pt")
    (tmp_path / "w.safetensors").write_bytes(save_weights(network))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=name):
        load_weights(network, tmp_path / name)


def test_missing_file_is_not_found(network, tmp_path):
    with pytest.raises(DataNotFoundError, match="no such file"):
        load_weights(network, tmp_path / "w.pt")


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {}])
def test_a_missing_state_dict_is_reported(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match="expected a state dict"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("theirs", "ours", "key"),
    [
        ("resnet18", "resnet34", r"'layer1.2.conv1.weight' is missing"),
        ("resnet34", "resnet18", r"no 'layer1.2.bn1.bias'"),
        ("resnet34", "resnet50", r"'layer1.0.conv1.weight' is \(16, 16, 3, 3\) in it"),
    ],
)
def test_first_key_that_differs_is_named(tmp_path, theirs, ours, key):
    (tmp_path / "w.safetensors").write_bytes(save_weights(cifar_resnet(theirs, 10)))
    with pytest.raises(InputError, match=key):
        load_weights(cifar_resnet(ours, 10), tmp_path / "w.safetensors")


def test_a_different_number_of_classes_is_reported_as_such(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(save_weights(cifar_resnet("resnet18", 100)))
    with pytest.raises(InputError, match=r"trained for 100 classes, the network is built for 10"):
        load_weights(cifar_resnet("resnet18", 10), tmp_path / "w.safetensors")


def test_batch_counters_may_be_missing(tmp_path):
    network = cifar_resnet("resnet18", 10)
    weights = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    torch.save(weights, tmp_path / "w.pth")
    load_weights(cifar_resnet("resnet18", 10), tmp_path / "w.pth")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>404</html>", b"\n<HTML>", b"<?xml v?>"])
def test_a_web_page_is_not_treated_as_code(network, tmp_path, page):
    (tmp_path / "w.pth").write_bytes(page)
    with pytest.raises(InputError, match="found a damaged file or another format"):
        load_weights(network, tmp_path / "w.pth")


def test_a_single_difference_is_not_counted(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    torch.save({"weight": state["weight"]}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="'bias' is missing from it; name the network"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.pt")
