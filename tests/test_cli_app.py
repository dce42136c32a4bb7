"""Whole commands: exit code, stdout and one-line errors."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from small_data import train_small, write_npz_set

from cli.replay import Again
from stages.errors import InputError
from stages.sensing.build import build_network
from store.catalog import FeatureStore
from store.lease import Lease


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a model trained on a small set, ``pixels``, in the folder ``data``."""
    folder = tmp_path_factory.mktemp("home")
    write_npz_set(folder / "data" / "pixels", 300, 60)
    store = FeatureStore(str(folder / "store")).prepare()
    train_small(store, folder / "data" / "pixels")
    return folder


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command) -> Command:
    """Run a command on the store and the data of ``home``."""
    monkeypatch.setenv("INTRO_PIPE_STORE", str(home / "store"))
    monkeypatch.setenv("INTRO_PIPE_DATA", str(home / "data"))
    return intro_pipe


@pytest.fixture
def extract(run: Command) -> Callable[[str], str]:
    """Extract from a set of ``home``: what the command prints on stdout."""
    return lambda words: run(f"extract --executor local --dataset {words}")[0]


@pytest.fixture
def refusal(run: Command) -> Callable[[str], str]:
    """The one-line error with which a command refuses its options or inputs."""

    def refuse(words: str) -> str:
        out, err = run(words, code=2)
        assert out == ""
        assert err.startswith("intro-pipe: ")
        assert err.count("\n") == 1, err
        return err

    return refuse


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def process(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, in which it must import what it uses."""
    command = [sys.executable, "-m", "cli.app", *words]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended


def test_the_chain_runs_and_every_step_gives_json(
    run: Command, extract: Callable[[str], str]
) -> None:
    for split in ("train", "test"):
        assert json.loads(extract(f"pixels --split {split} --json"))["n_computed"] == 1
    words = "train-head --features pixels-train@cnn2 --epochs 20 --weight-decay 0 --layers 16"
    assert json.loads(process(*words.split(), "--json").stdout)["head"] == "cnn2-h"
    judged = process("evaluate", "--features", "pixels-test@cnn2", "--json").stdout
    rows = [row for row in json.loads(judged)["average"] if row["metric"] == "accuracy"]
    assert [row["predictor"] for row in rows] == ["f", "H"]
    asked, _ = run("query pixels-test@cnn2 --metric accuracy --json")
    assert json.loads(asked)[0]["accuracy"] == pytest.approx(rows[0]["mean"])
    assert json.loads(run("verify --json")[0])["wrong"] == 0
    kinds = {row["kind"] for row in json.loads(run("ls --json")[0])}
    assert kinds == {"features", "model", "head", "result"}
    status = json.loads(run("status --json")[0])
    assert {row["state"] for row in status["contents"]} == {"complete"}


def test_a_dry_run_lists_what_would_be_written_and_writes_nothing(
    home: Path, run: Command, extract: Callable[[str], str]
) -> None:
    before = files_in(home)
    preview = json.loads(extract("pixels --shard-rows 7 --dry-run --json"))
    assert preview["shards_to_do"] == 9
    assert preview["bytes_to_write"] == 9 * 7 * 4 * (50 + 10)
    run("corrupt --dataset pixels --dry-run")
    run("train-sensing --dataset pixels --dry-run")
    assert files_in(home) == before


def test_query_writes_csv_and_parquet(
    run: Command, extract: Callable[[str], str], tmp_path: Path
) -> None:
    extract("pixels")
    asked = "query pixels-test@cnn2 --by label --metric accuracy"
    csv, _ = run(f"{asked} --format csv")
    assert csv.splitlines()[0] == "label,n_rows,accuracy"
    assert len(csv.splitlines()) == 11
    run(f"{asked} --format parquet --out {tmp_path}/x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size > 0


def test_a_repeat_over_95_shards_takes_under_two_seconds_and_no_ray(
    home: Path, extract: Callable[[str], str]
) -> None:
    """Processor time, the best of three: other work on the machine does not count."""
    write_npz_set(home / "data" / "many", 20, 190)
    words = "--dataset many --model cnn2 --shard-rows 2"
    extract(words.removeprefix("--dataset "))
    words += " --executor ray"
    probe = (
        "import sys; sys.argv = ['intro-pipe', 'extract', *sys.argv[1:]]; import cli.app\n"
        "try: cli.app.main()\n"
        "except SystemExit: pass\n"
        "print('ray' in sys.modules, 'torch' in sys.modules, file=sys.stderr)"
    )

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run(
            [sys.executable, "-c", probe, *words.split()], capture_output=True, text=True
        )
        assert "all 95 shards exist already" in ended.stdout
        assert ended.stderr == "False False\n"
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < 2.0 for _ in range(3))


def test_status_shows_an_interrupted_set_and_resume_finishes_it(home: Path, run: Command) -> None:
    words = "extract --executor local --dataset pixels --model cnn2 --shard-rows 11 --json"
    name = json.loads(process(*words.split()).stdout)["feature_set"]  # the process has ended
    (home / "store" / "features" / name / "receipts" / "00003.json").unlink()
    journal = sorted((home / "store" / "journal").glob("*.jsonl"))[-1]
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:-1]) + "\n")  # as a kill leaves it: no outcome
    status = json.loads(run("status --json")[0])
    assert "partial" in {row["state"] for row in status["contents"]}
    assert status["runs"][0]["outcome"] == "unfinished"
    assert json.loads(run("resume --executor local")[0])["n_computed"] == 1
    run("resume", code=2)


def test_retrying_rows_of_a_missing_set_is_refused(
    refusal: Callable[[str], str],
) -> None:
    line = refusal("extract --executor local --dataset pixels --limit 7 --retry-failed")
    assert "has no rows" in line


def test_a_missing_data_set_is_refused_with_a_way_to_get_it(refusal: Callable[[str], str]) -> None:
    assert "intro-pipe datasets --download cifar10c" in refusal("extract --dataset cifar10c")


def test_a_missing_model_is_refused_with_the_command_that_trains_one(
    refusal: Callable[[str], str], tmp_path: Path
) -> None:
    line = refusal(f"extract --dataset digits --store {tmp_path}/none")
    assert "intro-pipe train-sensing --dataset digits" in line
    assert not (tmp_path / "none").exists()


def test_eight_gpus_without_any_are_refused(home: Path, refusal: Callable[[str], str]) -> None:
    before = files_in(home)
    line = refusal("extract --dataset pixels --gpus 8 --precision bf16")
    assert "requested 8 GPUs, this machine has" in line
    assert files_in(home) == before


def test_weights_that_hold_code_are_refused(
    home: Path, refusal: Callable[[str], str], tmp_path: Path
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"first": Trap()}, tmp_path / "evil.pt")
    model = f"--network cnn2 --model evil --weights {tmp_path}/evil.pt"
    assert "code" in refusal(f"extract --dataset pixels {model}")
    assert not (tmp_path / "ran").exists()
    assert not (home / "store" / "models" / "evil").exists()


def test_weights_of_another_architecture_name_the_first_key(
    home: Path, refusal: Callable[[str], str]
) -> None:
    weights = home / "store" / "models" / "cnn2" / "weights.safetensors"
    line = refusal(f"extract --dataset pixels --network resnet18 --weights {weights}")
    assert "another architecture: 'conv1.weight' is (16, 3, 5, 5) in it, (16, 3, 3, 3)" in line


def test_a_users_network_is_imported_and_extracted(
    extract: Callable[[str], str], tmp_path: Path
) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "from torch.nn import AdaptiveAvgPool2d, Flatten, Linear, Sequential\n"
        "def net(n_classes):\n"
        "    return Sequential(AdaptiveAvgPool2d(4), Flatten(), Linear(48, n_classes))\n"
    )
    torch.save(build_network(f"{code}:net", 10).state_dict(), tmp_path / "mine.pt")
    model = f"--network {code}:net --weights {tmp_path}/mine.pt --model mine"
    found = json.loads(extract(f"pixels {model} --json"))
    assert found["feature_set"].startswith("pixels-test@mine-")


def test_a_truncated_npy_is_named(refusal: Callable[[str], str], tmp_path: Path) -> None:
    np.save(tmp_path / "cut.npy", np.zeros((9, 8, 8), np.uint8))
    np.save(tmp_path / "cut-labels.npy", np.zeros(9, np.int64))
    content = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[:-50])
    assert "cut.npy" in refusal(f"extract --dataset {tmp_path}/cut.npy --model cnn2")


def test_a_store_of_a_newer_format_is_refused(
    refusal: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "store.json").write_text('{"format": 99}')
    line = refusal(f"ls --store {tmp_path}")
    assert "99" in line
    assert "upgrade" in line


def test_a_head_of_another_model_is_refused(refusal: Callable[[str], str]) -> None:
    line = refusal("evaluate --features nothing@here")
    assert "no feature set 'nothing@here'" in line
    assert line.strip().endswith(": create one with `intro-pipe extract`")


def test_verify_exits_with_one_for_a_changed_byte_and_repair_fixes_it(
    home: Path, run: Command, extract: Callable[[str], str]
) -> None:
    words = "pixels --model cnn2 --shard-rows 20 --json"
    name = json.loads(extract(words))["feature_set"]
    chunk = home / "store" / "features" / name / "features" / "c" / "1" / "0"
    content = bytearray(chunk.read_bytes())
    content[99] ^= 4
    chunk.write_bytes(bytes(content))
    broken, _ = run(f"verify {name} --json", code=1)
    assert json.loads(broken)["problems"][0]["kind"] == "altered"
    _, planned = run(f"repair {name} --dry-run", code=1)
    assert "1 shard would be quarantined" in planned
    repaired, progress = run(f"repair {name} --executor local")
    assert "1 of 1 damaged set repaired" in repaired
    assert '"n_computed": 1,' in progress
    assert (chunk.parents[3] / "quarantine/features/c/1/0").read_bytes() == content
    run(f"verify {name}")


def test_a_set_is_repaired_even_if_the_run_that_made_it_fails_later(
    home: Path, run: Command, extract: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe, for example, can fail in a step after the extraction."""
    name = json.loads(extract("pixels --model cnn2 --shard-rows 40 --json"))["feature_set"]
    found = FeatureStore(str(home / "store")).resolve(name)
    make = Again.make

    def fails_after(again: Again, *, as_json: bool) -> None:
        make(again, as_json=as_json)
        raise InputError("the next step failed")

    found.shard_set.storage.remove("logits/c/0/0")
    monkeypatch.setattr(Again, "make", fails_after)
    out, err = run(f"repair {name} --executor local")
    assert "1 of 1 damaged set repaired" in out
    assert "the next step failed" in err


def test_repair_skips_a_running_set_with_a_message(
    home: Path, run: Command, extract: Callable[[str], str]
) -> None:
    words = "pixels --model cnn2 --shard-rows 30 --json"
    name = json.loads(extract(words))["feature_set"]
    found = FeatureStore(str(home / "store")).resolve(name)
    found.shard_set.storage.remove("logits/c/0/0")
    with Lease(found.shard_set.storage, purpose="extract pixels"):
        out, err = run(f"repair {name}", code=1)
    assert "being written by extract pixels" in err
    assert "0 of 1 damaged set repaired" in out
    assert "quarantined" not in err
    run(f"repair {name} --executor local")


def test_a_missing_device_is_refused_and_leaves_the_name_free(
    home: Path, refusal: Callable[[str], str]
) -> None:
    line = refusal("train-sensing --dataset pixels --name gpu --device cuda:7")
    assert "--device cuda:7: this machine has cpu" in line
    assert not (home / "store" / "models" / "gpu").exists()


def test_a_missing_store_is_not_an_empty_store(
    refusal: Callable[[str], str], tmp_path: Path
) -> None:
    for command in ("ls", "status", "verify", "repair", "resume"):
        line = refusal(f"{command} --store {tmp_path}/slip")
        assert "there is no store at" in line
        assert "choose one with --store" in line


def test_a_file_that_cannot_be_written_is_one_line(
    extract: Callable[[str], str], refusal: Callable[[str], str]
) -> None:
    words = "pixels --model cnn2 --shard-rows 60 --json"
    name = json.loads(extract(words))["feature_set"]
    line = refusal(f"query {name} --out cells.xlsx")
    assert "cells.xlsx: expected a name that ends in .csv" in line
    line = refusal(f"query {name} --format csv --out /nowhere/x.csv")
    assert "/nowhere/x.csv: its folder does not exist" in line


def test_a_dry_run_with_a_foreign_network_leaves_no_model(
    home: Path, extract: Callable[[str], str]
) -> None:
    weights = home / "store" / "models" / "cnn2" / "weights.safetensors"
    extract(f"pixels --network cnn2 --weights {weights} --model tried --dry-run")
    assert not (home / "store" / "models" / "tried").exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("query photos@net --by corruption --by severity", "--by"),
        ("evaluate --features photos@net --by label --by corruption", "--by"),
        ("train-head --features photos@net --seeds 0 --seeds 1", "--seeds"),
        ("ood --in photos --out svhn --out textures", "--out"),
        ("extract --dataset photos --corrupt fog:2 --corrupt snow:1", "--corrupt"),
        ("export photos@net --out a.csv --scores entropy --scores energy", "--scores"),
    ],
)
def test_an_option_whose_first_value_would_be_lost_is_refused(
    intro_pipe: Command, words: str, option: str
) -> None:
    assert f"{option}: expected once, found 2 times" in intro_pipe(words, code=2)[1]
