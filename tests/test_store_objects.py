"""A store in a bucket: the same guarantees over a network that throttles, loses and delays."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bucket import FAULTS, SECRET, Gate
from squares import Squares, plan_of

from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from pipeline.runner import run_map
from store import objects
from store.catalog import FeatureStore
from store.errors import FormatError, LeaseError, NotFoundError, SweptError, WriteError
from store.featureset import FeatureSet
from store.lease import Lease
from store.objects import ObjectStorage
from store.shards import shards_of
from store.shardset import receipt_key
from store.verify import repair, verify_feature_set

SHARD_ROWS = 5
TESTS = Path(__file__).parent


def run(place: str, folder: Path, n_rows: int = 10) -> FeatureSet:
    """Make a set of squares at a place, or what is missing of it."""
    made = FeatureStore(place).prepare().create(plan_of(n_rows, SHARD_ROWS))
    stage = Squares(SHARD_ROWS, str(folder))
    run_map(
        stage, made.shard_set, LocalExecutor(1), Journal.of(place, ["squares"]), title="squares"
    )
    return made


def bytes_of(made: FeatureSet) -> dict[str, bytes]:
    """Everything in a set that follows from its plan."""
    storage = made.shard_set.storage
    keys = [key for key in storage.keys("") if not key.startswith(("lease/", "receipts/"))]
    vouched = {
        receipt_key(shard): repr(made.shard_set.receipt(shard).files).encode()
        for shard in made.shard_set.shards
    }
    return {**{key: storage.read(key) for key in keys}, **vouched}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return bytes_of(run(str(folder / "store"), folder))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_over_a_bad_network_equals_one_in_a_folder(
    gate: Gate, place: str, tmp_path: Path, undisturbed: dict[str, bytes], fault: str
) -> None:
    gate.faults = (fault,)
    gate.share = 0.06 if fault == "slow" else 0.1
    made = run(place, tmp_path)
    gate.share = 0.0
    assert gate.met[fault] >= 2
    assert bytes_of(made) == undisturbed
    assert [problem for problem in verify_feature_set(made) if not problem.is_harmless] == []


def test_a_lost_response_is_not_mistaken_for_another_driver(gate: Gate, place: str) -> None:
    storage = ObjectStorage(place)
    staged = storage.stage("receipt", b"ours")
    gate.faults, gate.share = ("lose the answer",), 0.3
    for number in range(8):
        assert storage.create(f"key-{number}", b"ours")
        assert storage.publish_new(staged, f"receipt-{number}")
    assert gate.met["lose the answer"] >= 8
    gate.share = 0.0
    assert not storage.create("key-0", b"another's")


def test_a_missing_store_is_reported_in_one_line(
    gate: Gate, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "WAITS_S", ())
    gate.faults, gate.share = ("refuse",), 1.0
    with pytest.raises(OSError, match=f"[^\n]+: '{place}/key'$"):
        ObjectStorage(place).read("key")
    with pytest.raises(WriteError, match=f"cannot write {place}/key: [^\n]+$"):
        ObjectStorage(place).write("key", b"")


def test_a_missing_bucket_is_reported_at_once(gate: Gate) -> None:
    with pytest.raises(WriteError, match=r"cannot write s3://nowhere/store/store.json: .*bucket"):
        FeatureStore("s3://nowhere/store").prepare()
    with pytest.raises(NotFoundError, match="there is no store at s3://nowhere/store"):
        FeatureStore("s3://nowhere/store").require()
    assert len(gate.requests) < 20


@pytest.mark.parametrize(
    "url",
    ["s3://user:password@bucket/store", "s3://bucket/store?key=password", "s3://bucket/store#password",
     "simplecache::s3://bucket/password"],
)  # fmt: skip
def test_a_url_with_a_password_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(FormatError, match="come from the environment") as refused:
        FeatureStore(url)
    assert "password" not in str(refused.value)


@pytest.mark.parametrize("url", ["s3://", "s3:///store", "s3://bucket//x", "s3://bucket/../x"])
def test_a_url_without_a_place_is_refused(url: str) -> None:
    with pytest.raises(FormatError, match="expected scheme://bucket/prefix"):
        FeatureStore(url)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(FormatError, match=r"nonesuch:// cannot be opened: .*nonesuch"):
        FeatureStore("nonesuch://bucket/store")


def test_a_store_that_cannot_refuse_is_refused(gate: Gate, place: str) -> None:
    gate.forgets = "if-none-match"
    with pytest.raises(WriteError, match="cannot keep two drivers apart"):
        FeatureStore(place).prepare()


def test_a_second_driver_is_refused_with_the_name_of_the_first(place: str) -> None:
    with (
        Lease(ObjectStorage(place), purpose="extract"),
        pytest.raises(LeaseError, match=f"{place} is being written by extract \\(pid"),
        Lease(ObjectStorage(place), purpose="other"),
    ):
        pass


def test_a_listing_that_lags_hides_no_driver_and_no_shard(
    gate: Gate, place: str, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    FeatureStore(place).prepare().create(plan_of(10, SHARD_ROWS))
    storage = ObjectStorage(place).child(f"features/{name_of(place)}")
    list(storage.keys("lease")), list(storage.keys("receipts"))  # what later ones will say
    gate.lag_s = 3600.0
    made = run(place, tmp_path)
    assert len(made.shard_set.missing()) == 2  # as far as one can see
    again = run(place, tmp_path)  # computes all, and finds them there
    assert [Squares(SHARD_ROWS, str(tmp_path)).attempts(index) for index in range(2)] == [2] * 2
    with (
        Lease(storage, purpose="third"),
        pytest.raises(LeaseError, match="by third"),
        Lease(storage, purpose="fourth"),
    ):
        pass
    gate.lag_s = 0.0
    assert bytes_of(again) == undisturbed
    assert list(storage.keys("lease")) == [f"lease/0000000{number}.json" for number in (1, 2, 3)]


def name_of(place: str) -> str:
    (made,) = FeatureStore(place).feature_sets()
    return made.name


def test_a_driver_that_was_swept_cannot_publish_the_receipt(place: str, tmp_path: Path) -> None:
    shards = FeatureStore(place).prepare().create(plan_of(5, 5)).shard_set
    output = Squares(5, str(tmp_path)).compute(1, shards.shards[0], lambda _: None)
    staged = shards.stage(shards.shards[0], output.files, output.facts)
    with Lease(shards.storage, purpose="another driver"):
        with pytest.raises(SweptError, match="another driver has taken over"):
            shards.publish(staged)
        assert shards.missing() == shards.shards


def test_a_shard_costs_a_few_requests(gate: Gate, place: str, tmp_path: Path) -> None:
    """Those of the driver come one after the other, and limit how many workers it can serve."""
    shards = FeatureStore(place).prepare().create(plan_of(5, 5)).shard_set
    output = Squares(5, str(tmp_path)).compute(1, shards.shards[0], lambda _: None)
    with Lease(shards.storage, purpose="test") as lease:
        staged = shards.stage(shards.shards[0], output.files, output.facts)
        n_before = len(gate.requests)
        lease.check()
        shards.publish(staged)
        assert len(gate.requests) - n_before <= 20


def test_the_next_driver_continues_after_a_kill(
    place: str, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    command = [sys.executable, "squares.py", place, str(tmp_path), "10", "5", "0.3", "0"]
    with subprocess.Popen(command, cwd=TESTS) as driver:
        made = None
        while made is None or len(made.shard_set.missing()) > 1:
            time.sleep(0.05)
            made = next(FeatureStore(place).feature_sets(), None)
        driver.send_signal(signal.SIGKILL)
    missing = {shard.index for shard in made.shard_set.missing()}
    assert missing
    made = run(place, tmp_path)
    stage = Squares(SHARD_ROWS, str(tmp_path))
    for shard in shards_of(10, SHARD_ROWS):
        assert stage.attempts(shard.index) <= 1 + (shard.index in missing)
    assert bytes_of(made) == undisturbed


def test_a_flipped_byte_is_found_and_brought_back(
    place: str, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    made = run(place, tmp_path)
    storage = made.shard_set.storage
    data = bytearray(storage.read("square/c/1/0"))
    data[17] ^= 1
    storage.write("square/c/1/0", bytes(data))
    problems = list(verify_feature_set(made))
    assert [(problem.kind, problem.key) for problem in problems] == [("altered", "square/c/1/0")]
    assert [shard.index for shard in repair(made.shard_set, problems)] == [1]
    quarantined = set(storage.keys("quarantine"))
    assert quarantined == {"quarantine/square/c/1/0"}
    for key in quarantined:
        storage.remove(key)
    assert bytes_of(run(place, tmp_path)) == undisturbed


def test_what_was_written_opens_in_zarr_and_pandas(place: str, tmp_path: Path) -> None:
    import pandas as pd
    import zarr

    made = run(place, tmp_path)
    url = f"{place}/features/{made.name}"
    square = zarr.open_array(f"{url}/square", mode="r")[:]
    assert square[7].tolist() == [7, 49]
    assert (made.array("square").compute() == square).all()
    assert pd.read_parquet(f"{url}/samples/part-00001.parquet")["row"].tolist() == [5, 6, 7, 8, 9]


def test_no_process_keeps_what_another_must_not_read(
    place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = run(place, tmp_path)
    storage = ObjectStorage(place)
    everything = itertools.chain(map(storage.read, storage.keys()), [repr(made).encode()])
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert not any(SECRET.encode() in data for data in everything)
    assert not re.search(SECRET, "".join(capfd.readouterr()))
