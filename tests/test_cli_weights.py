"""`extract --weights` with all kinds of files: correct logits, or a one-line error and no store."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cli.app import main
from stages.sensing.card import CIFAR10_MEAN, CIFAR10_STD
from stages.sensing.networks import cnn2
from store.catalog import FeatureStore

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The exit code of `extract --network cnn2 --weights FILE ...`, in a folder with six images."""
    monkeypatch.chdir(tmp_path)
    np.savez("test.npz", images=IMAGES, labels=np.arange(6) % 3)

    def extract(path: str, *words: str) -> int:
        options = "--dataset test.npz --store s --executor local --network cnn2 --image-size 8"
        argv = ["intro-pipe", "extract", *options.split(), "--weights", path, *words]
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return extract


def logits_of(network: nn.Module) -> torch.Tensor:
    pixels = (torch.from_numpy(IMAGES) / 255 - torch.tensor(CIFAR10_MEAN)) / torch.tensor(
        CIFAR10_STD
    )
    with torch.no_grad():
        found: torch.Tensor = network.eval()(pixels.permute(0, 3, 1, 2))
    return found


@pytest.mark.parametrize(
    ("form", "words", "note"),
    [
        (lambda w: {f"model.{k}": v for k, v in w.items()}, (), "names that begin with 'model.'"),
        (lambda w: {"state_dict": {}, "model_ema": w}, ("--weights-key", "model_ema"), ""),
        (lambda w: {"state_dict": w, "state_dict_ema": w}, (), "used the entry 'state_dict'"),
    ],
)
def test_logits_are_those_of_the_network(
    extracted: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    form: Callable[..., Any],
    words: tuple[str, ...],
    note: str,
) -> None:
    network = cnn2(3)
    torch.save(form(network.state_dict()), "W.PT")
    assert extracted("W.PT", *words) == 0
    assert note in capsys.readouterr().err
    (found,) = FeatureStore("s").feature_sets()
    stored = torch.from_numpy(np.asarray(found.array("logits")))
    torch.testing.assert_close(stored, logits_of(network), rtol=1e-4, atol=1e-4)


def compressed(weights: dict[str, Any], path: Path) -> None:
    torch.save({name: torch.zeros_like(value) for name, value in weights.items()}, path)
    with zipfile.ZipFile(path) as whole:
        members = {each.filename: whole.read(each) for each in whole.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(name, data)


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (
            lambda w, path: torch.save({k: v.char() for k, v in w.items()}, path),
            "is int8, expected",
        ),
        (lambda w, path: torch.save({k: v + 0j for k, v in w.items()}, path), "is complex64, exp"),
        (compressed, "expected an uncompressed archive"),
        (lambda w, path: torch.save({"ema": w}, path), "choose with --weights-key"),
        (lambda w, path: path.mkdir(), "the folder has no model.safetensors.index.json"),
        (
            lambda w, path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
            "damaged file or another format",
        ),
    ],
)
def test_other_file_is_refused_in_one_line(
    extracted: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    write: Callable[..., Any],
    problem: str,
) -> None:
    write(dict(cnn2(3).state_dict()), Path("w.pt"))
    assert extracted("w.pt") == 2
    said = capsys.readouterr().err
    assert problem in said
    assert said.count("\n") == 1
    assert not Path("s").exists()


def test_key_without_network_is_refused(
    extracted: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "extract --dataset test.npz --store s --executor local --weights-key ema"
    monkeypatch.setattr("sys.argv", ["intro-pipe", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--weights-key" in capsys.readouterr().err
