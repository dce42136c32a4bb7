"""Checkpoints in all common forms, and files that are not checkpoints."""

import io
import json
import os
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

from stages.errors import DataNotFoundError, InputError
from stages.sensing import weight_archive, weight_files
from stages.sensing.checkpoint import Checkpoint, read_checkpoint
from stages.sensing.networks import cnn2
from stages.sensing.weights import load_checkpoint, load_weights, weights_hash

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return cnn2(3)


@pytest.fixture(scope="module")
def weights(network: nn.Module) -> Weights:
    return dict(network.state_dict())


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def zeros(weights: Weights) -> Weights:
    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


# Which weights are taken


@pytest.mark.parametrize(
    ("form", "note"),
    [
        (lambda w: prefixed(w, "module."), None),
        (lambda w: prefixed(w, "_orig_mod.module."), None),
        (lambda w: prefixed(w, "model."), "'model.'"),
        (lambda w: prefixed(w, "net."), "'net.'"),
        (lambda w: prefixed(w, "backbone.encoder."), "'backbone.encoder.'"),
        # SWA: torch.optim.swa_utils.AveragedModel
        (lambda w: {"n_averaged": torch.tensor(3), **prefixed(w, "module.")}, "out 'n_averaged'"),
        # Lightning
        (
            lambda w: {
                "state_dict": {**prefixed(w, "model."), "criterion.weight": torch.ones(3)},
                "hyper_parameters": {"lr": 0.1},
                "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
                "pytorch-lightning_version": "2.4.0",
            },
            "left out 'criterion.weight'",
        ),
        (lambda w: {"state_dict": w, "state_dict_ema": zeros(w)}, "used the entry 'state_dict'"),
        (lambda w: {"model": w, "model_ema": zeros(w), "epoch": 3}, "holds 'model_ema'"),
    ],
)
def test_state_dict_is_found_with_a_note_if_there_is_a_choice(
    network: nn.Module, weights: Weights, tmp_path: Path, form: Callable[..., Any], note: str | None
) -> None:
    torch.save(form(weights), tmp_path / "w.ckpt")
    other = cnn2(3)
    notes = load_checkpoint(other, read_checkpoint(tmp_path / "w.ckpt"))
    assert weights_hash(other) == weights_hash(network)
    assert (notes == ()) if note is None else (note in " ".join(notes))


@pytest.mark.parametrize(
    ("form", "key", "note"),
    [
        (
            lambda w: {"state_dict": zeros(w), "state_dict_ema": w},
            "state_dict_ema",
            "the entry 'state_dict_ema'",
        ),
        (
            lambda w: {"model": zeros(w), "model_ema": {"module": 1, "model": w}},
            "model_ema",
            "the entry 'model' of 'model_ema'",
        ),
        (lambda w: {"params_ema": w, "epoch": 3}, "params_ema", "the entry 'params_ema'"),
        (lambda w: {"state_dict": w}, "state_dict", "the entry 'state_dict'"),
        (
            lambda w: {"state_dict": {"net": zeros(w), "ema": w}},
            "ema",
            "the entry 'ema' of 'state_dict'",
        ),
        (
            lambda w: {"model": {"net": zeros(w), "ema": {"state_dict": {"model": w}}}},
            "ema",
            "the entry 'model' of 'state_dict' of 'ema' of 'model'",
        ),
        (
            lambda w: prefixed(w, "teacher.") | prefixed(zeros(w), "student."),
            "teacher",
            "the names that begin with 'teacher.'",
        ),
        (
            lambda w: {"model": prefixed(w, "ema.module.") | prefixed(zeros(w), "net.")},
            "ema",
            "the names that begin with 'ema.' in the entry 'model'",
        ),
    ],
)
def test_weights_key_chooses_with_a_note(
    network: nn.Module,
    weights: Weights,
    tmp_path: Path,
    form: Callable[..., Any],
    key: str,
    note: str,
) -> None:
    torch.save(form(weights), tmp_path / "w.pt")
    other = cnn2(3)
    notes = load_checkpoint(other, read_checkpoint(tmp_path / "w.pt", key))
    assert weights_hash(other) == weights_hash(network)
    assert notes == (f"weights {tmp_path / 'w.pt'}: used {note}",)


@pytest.mark.parametrize(
    ("form", "key", "found"),
    [
        (lambda w: {"params_ema": w, "epoch": 3}, None, "'params_ema'; choose with --weights-key"),
        (lambda w: {"state_dict": w}, "ema", r"no entry 'ema'.*found 'state_dict'"),
        (
            lambda w: prefixed(w, "teacher.") | prefixed(w, "student."),
            None,
            r"more than once, under the prefixes 'teacher', 'student'; choose .*--weights-key",
        ),
        (lambda w: prefixed(w, "model.") | {"model.extra": torch.ones(1)}, None, "no 'extra'"),
        (lambda w: {0: torch.ones(1)}, None, "found '0' is Tensor"),
        (lambda w: {"optimizer": {"state": {}}, "epoch": 3}, None, "'optimizer' is dict; save"),
    ],
)
def test_ambiguous_or_missing_state_dict_is_refused(
    weights: Weights, tmp_path: Path, form: Callable[..., Any], key: str | None, found: str
) -> None:
    torch.save(form(weights), tmp_path / "w.pt")
    with pytest.raises(InputError, match=found):
        load_checkpoint(cnn2(3), read_checkpoint(tmp_path / "w.pt", key))


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda net: torch.compile(net, backend="eager"),
        lambda net: nn.Sequential(nn.Identity(), net),
    ],
)
@pytest.mark.parametrize("is_wrapped_file", [True, False])
def test_wrapped_network_takes_its_own_weights_and_those_without_wrapper(
    network: nn.Module, tmp_path: Path, wrap: Callable[..., Any], is_wrapped_file: bool
) -> None:
    torch.save((wrap(network) if is_wrapped_file else network).state_dict(), tmp_path / "w.pt")
    other = wrap(cnn2(3))
    load_weights(other, tmp_path / "w.pt")
    assert weights_hash(other) == weights_hash(wrap(network))


class Inner(nn.Module):
    """A network whose layers are all in one part, as `self.net = ...` makes it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class DenseBlock(nn.Module):
    """The names of two layers of torchvision's DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.denselayer1 = nn.Sequential()
        self.denselayer1.add_module("norm1", nn.BatchNorm2d(2))
        self.denselayer1.add_module("conv1", nn.Conv2d(2, 2, 1))
        self.classifier = nn.Linear(2, 3)


@pytest.mark.parametrize(
    ("prefix", "note"),
    [
        ("", None),
        ("module.", None),
        ("_orig_mod.", None),
        ("_orig_mod.module.", None),
        ("model.", "'model.'"),
        ("model.module.", "'model.module.'"),
    ],
)
@pytest.mark.parametrize("is_deep", [True, False])
def test_prefix_is_removed_once_if_all_names_share_a_part(
    network: nn.Module, prefix: str, note: str | None, is_deep: bool
) -> None:
    whole, other = (Inner(each) for each in (network, cnn2(3)))
    if is_deep:
        whole, other = Inner(whole), Inner(other)
    state = prefixed(whole.state_dict(), prefix)
    notes = load_checkpoint(other, Checkpoint("w.pt", state))
    assert weights_hash(other) == weights_hash(whole)
    assert (notes == ()) if note is None else (note in " ".join(notes))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model."])
@pytest.mark.parametrize("wrap", [nn.DataParallel, Inner])
def test_old_names_fit_a_network_inside_a_wrapper(prefix: str, wrap: Callable[..., Any]) -> None:
    network, other = wrap(DenseBlock()), wrap(DenseBlock())
    state = {
        prefix + name.replace("norm1", "norm.1").replace("conv1", "conv.1"): value
        for name, value in network.state_dict().items()
    }
    assert len(state.keys() & network.state_dict().keys()) in (0, 2)
    load_checkpoint(other, Checkpoint("w.pt", state))
    assert weights_hash(other) == weights_hash(network)


def test_longer_prefix_is_removed_if_the_shorter_one_brings_unknown_names(
    network: nn.Module,
) -> None:
    whole, other = Inner(network), Inner(cnn2(3))
    state = {**prefixed(whole.state_dict(), "model."), "model.loss.weight": torch.ones(3)}
    notes = load_checkpoint(other, Checkpoint("w.pt", state))
    assert weights_hash(other) == weights_hash(whole)
    assert "begin with 'model.net.'; left out 'model.loss.weight'" in notes[0]


def test_two_networks_with_a_shared_part_are_still_more_than_one(weights: Weights) -> None:
    state = prefixed(weights, "teacher.net.") | prefixed(weights, "student.net.")
    with pytest.raises(InputError, match=r"the prefixes 'teacher.net', 'student.net'; choose"):
        load_checkpoint(Inner(cnn2(3)), Checkpoint("w.pt", state))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("n_outputs", [3, 2])
@pytest.mark.parametrize("prefix", ["a{}.", "a{}.net.fc."])
def test_names_are_matched_in_time_linear_in_their_number(
    has_bias: bool, n_outputs: int, prefix: str
) -> None:
    weight = torch.ones(3, 2)
    state = {f"{prefix.format(n)}weight": weight for n in range(20_000)}
    layer = nn.Sequential()
    layer.add_module("fc", nn.Linear(2, n_outputs, bias=has_bias))
    start = time.process_time()
    with pytest.raises(InputError, match=r"weights w.pt"):
        load_checkpoint(Inner(layer), Checkpoint("w.pt", state))
    assert time.process_time() - start < 5


def test_a_wrapper_prefix_alone_does_not_match() -> None:
    state = {"module." * 100_000 + "x": torch.ones(1)}
    with pytest.raises(InputError, match="another architecture"):
        load_checkpoint(cnn2(3), Checkpoint("w.pt", state))


def test_part_that_was_wrapped_when_saved_fits(network: nn.Module, tmp_path: Path) -> None:
    """As saved by PyTorch's ImageNet example for AlexNet and VGG: `features.module.0.weight`."""
    parts = {"conv1.weight": "conv1.module.weight", "conv2.bias": "conv2._orig_mod.bias"}
    state = {parts.get(name, name): value for name, value in network.state_dict().items()}
    torch.save(prefixed(state, "module."), tmp_path / "w.pt")
    other = cnn2(3)
    load_weights(other, tmp_path / "w.pt")
    assert weights_hash(other) == weights_hash(network)


def test_dictionary_that_holds_itself_is_refused_at_once(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"x": 3}
    loop["state_dict"] = loop
    shared: dict[str, Any] = {"a": 3}
    for _ in range(60):
        shared = {"a": shared, "b": shared}
    for number, content in enumerate((loop, shared, {"model": {"model": loop}})):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(InputError, match="expected a state dict"):
            read_checkpoint(tmp_path / f"{number}.pt")
        with pytest.raises(InputError, match="no entry 'ema'"):
            read_checkpoint(tmp_path / f"{number}.pt", "ema")


def test_weight_norm_of_the_older_kind_fits_the_newer(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning):
        old = weight_norm(nn.Linear(3, 2))
    torch.save({"fc." + name: value for name, value in old.state_dict().items()}, tmp_path / "w.pt")
    new = nn.Sequential()
    new.add_module("fc", parametrizations.weight_norm(nn.Linear(3, 2)))
    load_weights(new, tmp_path / "w.pt")
    torch.testing.assert_close(new.fc.weight, old.weight)


def test_pruned_weights_do_not_fit_a_network_without_pruning(tmp_path: Path) -> None:
    pruned = nn.Sequential(nn.Linear(3, 2))
    prune.l1_unstructured(pruned[0], "weight", amount=2)
    torch.save(pruned.state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"'0.weight' is missing"):
        load_weights(nn.Sequential(nn.Linear(3, 2)), tmp_path / "w.pt")


# Files


@pytest.mark.parametrize("name", ["W.PT", "w.bin", "w.pth.tar", "w.ckpt", "w.Pth", "w", "w.model"])
def test_any_suffix_is_accepted_for_torch_files(
    network: nn.Module, tmp_path: Path, name: str
) -> None:
    torch.save(network.state_dict(), tmp_path / name)
    other = cnn2(3)
    load_weights(other, tmp_path / name)
    assert weights_hash(other) == weights_hash(network)


@pytest.mark.parametrize("name", ["w.SafeTensors", "w.SAFETENSORS", "w.bin", "w"])
def test_safetensors_is_known_by_its_content(
    network: nn.Module, weights: Weights, tmp_path: Path, name: str
) -> None:
    save_file(weights, tmp_path / name)
    other = cnn2(3)
    load_weights(other, tmp_path / name)
    assert weights_hash(other) == weights_hash(network)


def shards(folder: Path, weights: Weights, save: Callable[..., Any], suffix: str) -> dict[str, str]:
    names = sorted(weights)
    halves = {f"part-1{suffix}": names[:3], f"part-2{suffix}": names[3:]}
    for file, own in halves.items():
        save({name: weights[name] for name in own}, folder / file)
    return {name: file for file, own in halves.items() for name in own}


@pytest.mark.parametrize(
    ("save", "suffix", "index"),
    [
        (save_file, ".safetensors", "model.safetensors.index.json"),
        (torch.save, ".bin", "pytorch_model.bin.index.json"),
    ],
)
@pytest.mark.parametrize("give_folder", [True, False])
def test_sharded_checkpoint_is_read(
    network: nn.Module,
    weights: Weights,
    tmp_path: Path,
    save: Callable[..., Any],
    suffix: str,
    index: str,
    give_folder: bool,
) -> None:
    names = shards(tmp_path, weights, save, suffix)
    (tmp_path / index).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    other = cnn2(3)
    load_weights(other, tmp_path if give_folder else tmp_path / index)
    assert weights_hash(other) == weights_hash(network)


@pytest.mark.parametrize(
    "name",
    ["../w.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b.bin", "C:w.bin",
     "x" * 300, "w.index.json", "a\0b", 3, None],
)  # fmt: skip
def test_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"linear.weight": name}}))
    with pytest.raises(InputError, match="in the same folder") as caught:
        read_checkpoint(index)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "9" * 10_000, "\0"],
)
def test_file_that_is_not_an_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "w.index.json").write_text(text)
    with pytest.raises(InputError, match="expected the index of a sharded checkpoint"):
        read_checkpoint(tmp_path / "w.index.json")


def test_missing_shard_and_missing_tensor_are_named(weights: Weights, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    names = shards(tmp_path, weights, save_file, ".safetensors")
    index.write_text(json.dumps({"weight_map": {**names, "more": "part-2.safetensors"}}))
    with pytest.raises(
        InputError, match=r"'more' in part-2.safetensors, which does not contain it"
    ):
        read_checkpoint(tmp_path)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(
        DataNotFoundError, match=r"part-1.safetensors, which is not in the same folder"
    ):
        read_checkpoint(tmp_path)


def test_path_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 300), tmp_path / "w.pt" / "x"):
        (tmp_path / "w.pt").touch()
        with pytest.raises(InputError, match=r"cannot be read \(File name too long\)|no such file"):
            read_checkpoint(path)


def test_folder_without_weights_and_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder has no model"):
        read_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "w.pt")
    with pytest.raises(InputError, match="not a regular file"):
        read_checkpoint(tmp_path / "w.pt")


# What the tensors are


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_other_widths_are_cast(
    network: nn.Module, weights: Weights, tmp_path: Path, dtype: torch.dtype
) -> None:
    torch.save({name: value.to(dtype) for name, value in weights.items()}, tmp_path / "w.pt")
    other = cnn2(3)
    load_weights(other, tmp_path / "w.pt")
    torch.testing.assert_close(other.linear.weight, network.linear.weight.to(dtype).float())


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda x: x.to(torch.int8), "int8"),
        (lambda x: x.to(torch.uint8), "uint8"),
        (lambda x: x.to(torch.int64), "int64"),
        (lambda x: x > 0, "bool"),
        (lambda x: x.to(torch.complex64), "complex64"),
        (lambda x: x.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "qint8"),
        (lambda x: x.to_sparse(), r"float32 \(torch.sparse_coo\)"),
        (lambda x: x.to("meta"), "without data"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(quantize|TypedStorage)")
def test_tensors_that_are_not_floats_are_refused_by_name(
    weights: Weights, tmp_path: Path, change: Callable[[Tensor], Tensor], kind: str
) -> None:
    torch.save({**weights, "linear.weight": change(weights["linear.weight"])}, tmp_path / "w.pt")
    expected = rf"'linear.weight' is {kind}, expected float16, bfloat16, float32 or float64"
    with pytest.raises(InputError, match=expected):
        load_weights(cnn2(3), tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["qweight.pt", "qweight.safetensors"])
def test_scales_beside_quantised_weights_do_not_change_what_is_said(
    weights: Weights, tmp_path: Path, name: str
) -> None:
    content = {
        **weights,
        "linear.weight": weights["linear.weight"].to(torch.int8),
        "linear.weight_scale": torch.ones(1),
    }
    (save_file if name.endswith("tensors") else torch.save)(content, tmp_path / name)
    with pytest.raises(InputError, match=r"'linear.weight' is int8"):
        load_weights(cnn2(3), tmp_path / name)


def counted(dtype: torch.dtype) -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_buffer("position", torch.arange(3).to(dtype))
    return layer


@pytest.mark.parametrize("found", [torch.int32, torch.int64, torch.uint8])
def test_integers_fit_integers(tmp_path: Path, found: torch.dtype) -> None:
    torch.save(counted(found).state_dict(), tmp_path / "w.pt")
    load_weights(counted(torch.int64), tmp_path / "w.pt")


def test_floats_do_not_fit_integers(tmp_path: Path) -> None:
    torch.save(counted(torch.float32).state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="'position' is float32, expected int64"):
        load_weights(counted(torch.int64), tmp_path / "w.pt")


def test_averaged_batch_counters_are_not_weights(tmp_path: Path) -> None:
    network = nn.Sequential(nn.BatchNorm2d(2))
    state = {name: value.float() for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt")


def test_nan_is_refused(weights: Weights, tmp_path: Path) -> None:
    torch.save({**weights, "linear.bias": torch.full((3,), torch.nan)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"3 of 3 numbers in 'linear.bias' are NaN"):
        load_weights(cnn2(3), tmp_path / "w.pt")


# Files that promise more than they are


def archive(path: Path, change: Callable[[bytes], bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    """A file of torch.save with another pickle, or compressed."""
    torch.save({"a": torch.zeros(40_000)}, path)
    with zipfile.ZipFile(path) as whole:
        members = {each.filename: whole.read(each) for each in whole.infolist()}
    with zipfile.ZipFile(path, "w", kind) as out:
        for name, data in members.items():
            out.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return path


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_archive_is_refused_by_its_listing(tmp_path: Path, kind: int) -> None:
    path = archive(tmp_path / "w.pt", lambda data: data, kind)
    with pytest.raises(
        InputError, match=r"unpacks to 160,\d+ bytes from .*an uncompressed archive"
    ):
        read_checkpoint(path)


def test_an_archive_with_overlapping_members_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("w/data.pkl", b"x" * 10_000)
        for number in range(50):
            out.filelist.append(out.filelist[0])
            out.filelist[-1].orig_filename = f"w/data/{number}"
    with pytest.raises(InputError, match="unpacks to 510,000 bytes"):
        read_checkpoint(path)


def test_pickle_that_asks_for_memory_is_refused(tmp_path: Path) -> None:
    pickled = b"\x80\x02cbuiltins\nbytearray\nq\x00J" + struct.pack("<i", 2**31 - 1) + b"\x85R."
    with pytest.raises(InputError, match=r"would run code \(bytearray\)"):
        read_checkpoint(archive(tmp_path / "w.pt", lambda _: pickled))
    (tmp_path / "old.pt").write_bytes(pickled)
    with pytest.raises(InputError, match=r"would run code \(bytearray\)"):
        read_checkpoint(tmp_path / "old.pt")


def test_storage_that_is_larger_than_its_member_is_refused(tmp_path: Path) -> None:
    huge = b"J" + struct.pack("<i", 2**31 - 1)
    path = archive(tmp_path / "w.pt", lambda data: data.replace(b"M@\x9c", huge))
    with pytest.raises(InputError, match="damaged file or another format"):
        read_checkpoint(path)


def test_tensor_without_storage_in_the_file_is_refused(tmp_path: Path) -> None:
    size = b"J" + struct.pack("<i", 2**20)
    pickled = b"\x80\x02}X\x01\x00\x00\x00actorch\nTensor\n" + size + b"\x85Rs."
    with pytest.raises(InputError, match="larger than the file"):
        read_checkpoint(archive(tmp_path / "w.pt", lambda _: pickled))


def test_old_format_that_promises_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    huge = path.read_bytes().replace(b"K\x04", b"J" + struct.pack("<i", 2**31 - 1))
    path.write_bytes(huge.replace(struct.pack("<q", 4), struct.pack("<q", 2**31 - 1)))
    with pytest.raises(InputError, match="damaged file or another format"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
         "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
    ],
)  # fmt: skip
def test_safetensors_header_that_promises_more_is_refused(
    tmp_path: Path, header: dict[str, Any]
) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(InputError, match="not a complete safetensors file"):
        read_checkpoint(path)


def test_safetensors_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(InputError, match="not a complete safetensors file"):
        read_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin"])
def test_sparse_file_larger_than_half_of_the_memory_is_refused(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(InputError, match=r"4,398,046,511,104 bytes, expected at most .*, half"):
        read_checkpoint(tmp_path / name)


def test_stride_of_zero_is_no_larger_than_its_storage(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="another architecture"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.pt")


def test_torchscript_program_is_reported(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as out:
        for name in ("w/data.pkl", "w/constants.pkl", "w/version"):
            out.writestr(name, b"3")
    with pytest.raises(InputError, match="a TorchScript program"):
        read_checkpoint(tmp_path / "w.pt")


def test_numpy_archive_under_the_wrong_name_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="damaged file or another format"):
        read_checkpoint(tmp_path / "w.npz")


# Files that unpack to more than they show


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def called_often(call: bytes, argument: bytes, n: int) -> bytes:
    """``{"k": argument, "0": call(argument), ...}``, the argument written once."""
    calls = (text(str(at)) + call + b"h\0" for at in range(n))
    end = text("utf-32") + b"\x86Rs" if b"encode" in call else b"\x85Rs"
    return b"\x80\x02}" + text("k") + argument + b"s" + b"".join(c + end for c in calls) + b"."


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (b"c_codecs\nencode\n", text("a" * 100_000) + b"q\0"),
        (b"ccollections\nOrderedDict\n", b"]q\0(" + b"NN\x86" * 10_000 + b"e"),
        (b"ctorch\nSize\n", b"]q\0(" + b"K\1" * 10_000 + b"e"),
        (b"c__builtin__\nset\n", b"(" + b"K\1" * 10_000 + b"tq\0"),
    ],
)
def test_a_pickle_that_copies_one_object_often_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: bytes, argument: bytes
) -> None:
    monkeypatch.setattr(weight_archive, "limit_bytes", lambda: 2**27)
    file = tmp_path / "w.pt"
    pickled = called_often(call, argument, 10_000)
    for write in (  # as torch does, and as it did before 1.6
        lambda: archive(file, lambda _: pickled),
        lambda: file.write_bytes(pickled),
    ):
        write()
        with pytest.raises(InputError, match="unpacks to more than 67,108,864 bytes, half of"):
            read_checkpoint(file)


def test_a_file_whose_tensors_are_spread_while_it_is_read_is_refused(tmp_path: Path) -> None:
    call = b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n"
    archive(tmp_path / "w.pt", lambda _: called_often(call, text("a") + b"q\0", 1))
    with pytest.raises(InputError, match=r"would run code \(_rebuild_device_tensor_from_cpu_tens"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("is_large", [False, True])
def test_an_archive_with_two_lists_of_members_is_refused(tmp_path: Path, is_large: bool) -> None:
    saved = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, saved)
    with zipfile.ZipFile(saved) as source:
        start = source.start_dir
    data = saved.getvalue()
    n_end = 98 if data[-42:].startswith(b"PK\6\7") else 22
    assert n_end == 98  # torch writes the records of a large archive
    listed, end = data[start:-n_end], data[-n_end:]
    if not is_large:
        end = end[-22:-10] + struct.pack("<LLH", len(listed), start, 0)
    # The first list is where the file says it is; zipfile reads the second.
    (tmp_path / "w.pt").write_bytes(data[:start] + listed + listed + end)
    with pytest.raises(InputError, match="its list of members is not at its end"):
        read_checkpoint(tmp_path / "w.pt")


def test_an_archive_whose_end_zipfile_does_not_find_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "w.pt")
    with (tmp_path / "w.pt").open("ab") as file:
        file.write(b"PK\5\6 not whole")
    assert not zipfile.is_zipfile(tmp_path / "w.pt")
    with pytest.raises(InputError, match="found a damaged file or another format"):
        read_checkpoint(tmp_path / "w.pt")


def test_a_shard_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "x", "b": "y"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("x", "y"):  # each leads to the index again: 2^40 files to read
        (tmp_path / name).symlink_to(".")
    with pytest.raises(InputError, match="lists 'x', a folder, expected a file"):
        read_checkpoint(tmp_path)


def test_shards_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "limit_bytes", lambda: 10_000)
    names = [f"{at}.safetensors" for at in range(4)]
    for name in names:
        save_file({name: torch.zeros(500)}, tmp_path / name)  # 2 kB
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: name for name in names[:2]}}))
    assert len(read_checkpoint(index).weights) == 2
    index.write_text(json.dumps({"weight_map": {name: name for name in names}}))
    with pytest.raises(InputError, match="expected at most 5,000, half of the memory that"):
        read_checkpoint(index)
