"""The command line as people use it: a process, its exit code, its stdout and its one line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import train_small, write_npz_set

from stages.sensing.build import build_network
from store.catalog import FeatureStore
from store.lease import Lease

COMMANDS = [
    "datasets",
    "corrupt",
    "train-sensing",
    "extract",
    "train-head",
    "fit-temperature",
    "fit-neighbours",
    "evaluate",
    "analyse",
    "predict",
    "report",
    "run",
    "reproduce",
    "query",
    "ls",
    "status",
    "verify",
    "repair",
    "resume",
    "demo",
]


def run(*words: str, code: int = 0, **places: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **{key: str(value) for key, value in places.items()}}
    ended = subprocess.run(
        [sys.executable, "-m", "cli.app", *words], env=env, capture_output=True, text=True
    )
    assert ended.returncode == code, ended.stderr
    return ended


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a model trained on a small set, ``pixels``, which lies under ``data``."""
    folder = tmp_path_factory.mktemp("home")
    write_npz_set(folder / "data" / "pixels", 300, 60)
    store = FeatureStore(str(folder / "store")).prepare()
    train_small(store, folder / "data" / "pixels")
    return folder


def places(home: Path) -> dict[str, Path]:
    return {"INTRO_PIPE_STORE": home / "store", "INTRO_PIPE_DATA": home / "data"}


def extract(home: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    local = ["extract", "--executor", "local"]
    return run(*local, *words, code=code, **places(home))


def refusal(home: Path, *words: str) -> str:
    """The one line with which a command ends that was asked for something that does not fit."""
    ended = run(*words, code=2, **places(home))
    assert ended.stdout == ""
    assert ended.stderr.startswith("intro-pipe: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    assert f"Example: intro-pipe {command}" in run(command, "--help").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_json_on_request(command: str) -> None:
    assert "--json" in run(command, "--help").stdout


def test_the_chain_runs_and_every_step_gives_json(home: Path) -> None:
    for split in ("train", "test"):
        found = extract(home, "--dataset", "pixels", "--split", split, "--json")
        assert json.loads(found.stdout)["n_computed"] == 1
    words = "train-head --features pixels-train@cnn2 --epochs 20 --weight-decay 0 --json"
    head = run(*words.split(), "--layers", "16", **places(home))
    assert json.loads(head.stdout)["head"] == "cnn2-h"
    judged = run("evaluate", "--features", "pixels-test@cnn2", "--json", **places(home))
    rows = [row for row in json.loads(judged.stdout)["average"] if row["metric"] == "accuracy"]
    assert [row["predictor"] for row in rows] == ["f", "H"]
    asked = run("query", "pixels-test@cnn2", "--metric", "accuracy", "--json", **places(home))
    assert json.loads(asked.stdout)[0]["accuracy"] == pytest.approx(rows[0]["mean"])
    assert json.loads(run("verify", "--json", **places(home)).stdout)["wrong"] == 0
    kinds = {row["kind"] for row in json.loads(run("ls", "--json", **places(home)).stdout)}
    assert kinds == {"features", "model", "head", "result"}
    status = json.loads(run("status", "--json", **places(home)).stdout)
    assert {row["state"] for row in status["contents"]} == {"complete"}


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(home: Path) -> None:
    before = files_in(home)
    found = extract(home, "--dataset", "pixels", "--shard-rows", "7", "--dry-run", "--json")
    preview = json.loads(found.stdout)
    assert preview["shards_to_do"] == 9
    assert preview["bytes_to_write"] == 9 * 7 * 4 * (50 + 10)
    run("corrupt", "--dataset", "pixels", "--dry-run", **places(home))
    run("train-sensing", "--dataset", "pixels", "--dry-run", **places(home))
    assert files_in(home) == before


def test_query_writes_csv_and_parquet(home: Path, tmp_path: Path) -> None:
    extract(home, "--dataset", "pixels")
    asked = ["query", "pixels-test@cnn2", "--by", "label", "--metric", "accuracy"]
    csv = run(*asked, "--format", "csv", **places(home)).stdout
    assert csv.splitlines()[0] == "label,n_rows,accuracy"
    assert len(csv.splitlines()) == 11
    run(*asked, "--format", "parquet", "--out", str(tmp_path / "x.parquet"), **places(home))
    assert (tmp_path / "x.parquet").stat().st_size > 0


def test_a_repeat_over_95_shards_answers_in_two_seconds_without_ray(home: Path) -> None:
    write_npz_set(home / "data" / "many", 20, 190)
    words = ["--dataset", "many", "--model", "cnn2", "--shard-rows", "2"]
    extract(home, *words)
    probe = (
        "import sys; sys.argv = ['intro-pipe', 'extract', *sys.argv[1:]]; import cli.app\n"
        "try: cli.app.main()\n"
        "except SystemExit: pass\n"
        "print('ray' in sys.modules, 'torch' in sys.modules, file=sys.stderr)"
    )
    env = {**os.environ, **{key: str(value) for key, value in places(home).items()}}
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-c", probe, *words], env=env, capture_output=True, text=True
        )
        seconds.append(time.monotonic() - started)
    assert "all 95 shards were there already" in ended.stdout
    assert ended.stderr == "False False\n"
    assert min(seconds) < 2.0


def test_status_shows_an_interrupted_set_and_resume_finishes_it(home: Path) -> None:
    words = ["--dataset", "pixels", "--model", "cnn2", "--shard-rows", "11"]
    name = json.loads(extract(home, *words, "--json").stdout)["feature_set"]
    (home / "store" / "features" / name / "receipts" / "00003.json").unlink()
    journal = sorted((home / "store" / "journal").glob("*.jsonl"))[-1]
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:-1]) + "\n")  # as a kill leaves it: no outcome
    status = json.loads(run("status", "--json", **places(home)).stdout)
    assert "partial" in {row["state"] for row in status["contents"]}
    assert status["runs"][0]["outcome"] == "unfinished"
    resumed = run("resume", **places(home))
    assert json.loads(resumed.stdout)["n_computed"] == 1
    assert run("resume", code=2, **places(home)).stderr.count("\n") == 1


def test_nothing_can_be_tried_again_of_a_set_that_is_not_there(home: Path) -> None:
    words = ["extract", "--dataset", "pixels", "--limit", "7", "--retry-failed"]
    assert "has no rows" in refusal(home, *words)


def test_a_missing_data_set_says_how_to_get_it(home: Path) -> None:
    line = refusal(home, "extract", "--dataset", "cifar10c")
    assert "intro-pipe datasets --download cifar10c" in line


def test_no_model_says_which_command_trains_one(home: Path, tmp_path: Path) -> None:
    line = refusal(home, "extract", "--dataset", "digits", "--store", str(tmp_path / "none"))
    assert "intro-pipe train-sensing --dataset digits" in line
    assert not (tmp_path / "none").exists()


def test_eight_gpus_without_any_are_refused(home: Path) -> None:
    before = files_in(home)
    line = refusal(home, "extract", "--dataset", "pixels", "--gpus", "8", "--precision", "bf16")
    assert "8 GPUs were asked for, this machine has" in line
    assert files_in(home) == before


def test_weights_that_hold_code_are_refused(home: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"first": Trap()}, tmp_path / "evil.pt")
    words = ["--network", "cnn2", "--model", "evil", "--weights", str(tmp_path / "evil.pt")]
    line = refusal(home, "extract", "--dataset", "pixels", *words)
    assert "code" in line
    assert not (tmp_path / "ran").exists()
    assert not (home / "store" / "models" / "evil").exists()


def test_weights_of_another_architecture_name_the_first_key(home: Path) -> None:
    weights = home / "store" / "models" / "cnn2" / "weights.safetensors"
    words = ["--network", "resnet18", "--weights", str(weights)]
    line = refusal(home, "extract", "--dataset", "pixels", *words)
    assert "another architecture: 'conv1.weight' is (16, 3, 5, 5) in it, (16, 3, 3, 3)" in line


def test_a_network_of_the_users_own_is_taken_in_and_extracted(home: Path, tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "from torch.nn import AdaptiveAvgPool2d, Flatten, Linear, Sequential\n"
        "def net(n_classes):\n"
        "    return Sequential(AdaptiveAvgPool2d(4), Flatten(), Linear(48, n_classes))\n"
    )
    torch.save(build_network(f"{code}:net", 10).state_dict(), tmp_path / "mine.pt")
    words = ["--network", f"{code}:net", "--weights", str(tmp_path / "mine.pt"), "--model", "mine"]
    found = extract(home, "--dataset", "pixels", *words, "--json")
    assert json.loads(found.stdout)["feature_set"].startswith("pixels-test@mine-")


def test_a_truncated_npy_is_named(home: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "cut.npy", np.zeros((9, 8, 8), np.uint8))
    np.save(tmp_path / "cut-labels.npy", np.zeros(9, np.int64))
    content = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[:-50])
    line = refusal(home, "extract", "--dataset", str(tmp_path / "cut.npy"), "--model", "cnn2")
    assert "cut.npy" in line


def test_a_store_of_a_newer_format_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"format": 99}')
    line = refusal(home, "ls", "--store", str(tmp_path))
    assert "99" in line
    assert "upgrade" in line


def test_a_head_of_another_model_is_refused(home: Path) -> None:
    line = refusal(home, "evaluate", "--features", "nothing@here")
    assert "no feature set 'nothing@here'" in line


def test_verify_ends_with_one_where_a_byte_was_changed_and_repair_mends_it(home: Path) -> None:
    words = ["--dataset", "pixels", "--model", "cnn2", "--shard-rows", "20"]
    name = json.loads(extract(home, *words, "--json").stdout)["feature_set"]
    chunk = home / "store" / "features" / name / "features" / "c" / "1" / "0"
    content = bytearray(chunk.read_bytes())
    content[99] ^= 4
    chunk.write_bytes(bytes(content))
    broken = run("verify", name, "--json", code=1, **places(home))
    assert json.loads(broken.stdout)["problems"][0]["kind"] == "altered"
    planned = run("repair", name, "--dry-run", code=1, **places(home))
    assert "1 shards would be taken back" in planned.stderr
    mended = run("repair", name, **places(home))
    assert "1 of 1 hurt sets mended" in mended.stdout
    assert '"n_computed": 1,' in mended.stderr
    assert (chunk.parents[3] / "quarantine/features/c/1/0").read_bytes() == content
    run("verify", name, **places(home))


def test_repair_leaves_a_set_at_work_alone_and_says_so(home: Path) -> None:
    words = ["--dataset", "pixels", "--model", "cnn2", "--shard-rows", "30"]
    name = json.loads(extract(home, *words, "--json").stdout)["feature_set"]
    found = FeatureStore(str(home / "store")).resolve(name)
    found.shard_set.storage.remove("logits/c/0/0")
    with Lease(found.shard_set.storage, purpose="extract pixels"):
        ended = run("repair", name, code=1, **places(home))
    assert "being written by extract pixels" in ended.stderr
    assert "0 of 1 hurt sets mended" in ended.stdout
    assert "taken back" not in ended.stderr
    run("repair", name, **places(home))


def test_a_device_that_is_not_there_is_refused_and_leaves_the_name_free(home: Path) -> None:
    line = refusal(
        home, "train-sensing", "--dataset", "pixels", "--name", "gpu", "--device", "cuda:7"
    )
    assert "--device cuda:7: this machine has cpu" in line
    assert not (home / "store" / "models" / "gpu").exists()


def test_a_store_that_is_not_there_is_no_empty_store(home: Path, tmp_path: Path) -> None:
    for command in ("ls", "status", "verify", "repair", "resume"):
        line = refusal(home, command, "--store", str(tmp_path / "slip"))
        assert "there is no store at" in line


def test_a_file_that_cannot_be_written_is_one_line(home: Path) -> None:
    words = ["--dataset", "pixels", "--model", "cnn2", "--shard-rows", "60", "--json"]
    name = json.loads(extract(home, *words).stdout)["feature_set"]
    line = refusal(home, "query", name, "--format", "csv", "--out", "/nowhere/x.csv")
    assert "/nowhere/x.csv: there is no such folder" in line


def test_a_dry_run_with_a_foreign_network_leaves_no_model(home: Path) -> None:
    weights = home / "store" / "models" / "cnn2" / "weights.safetensors"
    words = ["--network", "cnn2", "--weights", str(weights), "--model", "tried", "--dry-run"]
    extract(home, "--dataset", "pixels", *words)
    assert not (home / "store" / "models" / "tried").exists()
