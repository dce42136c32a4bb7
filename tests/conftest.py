"""Small real stores: a set of ten numbers and their squares in shards of 4, 4 and 2 rows."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import fsspec.config
import pytest
from hypothesis import settings
from squares import Squares, plan_of

from store import objects
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.shards import Shard

if TYPE_CHECKING:
    from bucket import Gate

Fill = Callable[..., FeatureSet]
Command = Callable[..., tuple[str, str]]
Refusal = Callable[..., str]

# The width of the tester's terminal, which workers get as well; tests that are about it set it.
os.environ.pop("COLUMNS", None)

# No test can cut the power, so waiting until data are on the disk would only take time.
os.fsync = lambda descriptor: None

# An example may wait for a busy machine; `make soak` asks for the long one.
settings.register_profile("short", max_examples=50, deadline=None)
settings.register_profile("soak", max_examples=5_000, deadline=None)
settings.load_profile("short")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(str(tmp_path / "store")).prepare()


@pytest.fixture
def begun(store: FeatureStore) -> FeatureSet:
    """A set with a plan and no row."""
    return store.create(plan_of(10, 4))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """A complete set, made once; leave it as it is."""
    return fill(FeatureStore(str(tmp_path_factory.mktemp("template"))).create(plan_of(10, 4)))


@pytest.fixture
def numbers(store: FeatureStore, template: FeatureSet) -> FeatureSet:
    """A complete set of the test's own."""
    place = f"{store.location}/features/{template.name}"
    shutil.copytree(template.shard_set.storage.location, place)
    return store.resolve(template.name)


def fill(found: FeatureSet, shards: Iterable[Shard] | None = None, **options: Any) -> FeatureSet:
    """Compute and commit these shards, or those that are missing."""
    with TemporaryDirectory() as attempts:
        stage = Squares(found.shard_set.chunk_rows, attempts, **options)
        for shard in found.shard_set.missing() if shards is None else shards:
            output = stage.compute(1, shard, lambda n_rows: None)
            found.shard_set.commit(shard, output.files, output.facts)
    return found


@pytest.fixture(name="fill")
def fill_fixture() -> Fill:
    return fill


@pytest.fixture
def intro_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process: what it prints on stdout and on stderr.

    It must end with the exit code; what it refuses with 2 is one line, behind notes if there are
    some.
    """
    from cli.app import main

    def command(words: str, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["intro-pipe", *words.split()])  # what main() reads
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        if code == 2 and "Usage:" not in said.err:
            assert said.err.splitlines()[-1].startswith("intro-pipe: ")
            assert said.err.count("intro-pipe: ") == 1
        return said.out, said.err

    return command


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refusal:
    """Run a command in ``tmp_path`` that must be refused, and return its one line on stderr.

    It must print nothing else, write nothing, and run no code of the files in `hostile`.
    """
    from hostile import MARKER

    from cli.app import main

    monkeypatch.chdir(tmp_path)
    for name in ("STORE", "DATA"):
        monkeypatch.setenv(f"INTRO_PIPE_{name}", str(tmp_path / name.lower()))

    def refuse(*words: str, code: int = 2) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["intro-pipe", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, error = capsys.readouterr()
        assert not MARKER.exists()
        assert (ended.value.code, out) == (code, ""), error
        assert error.count("\n") == 1, error
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return refuse


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """A real S3 API on the loopback, with an empty bucket called bucket."""
    from bucket import serve_bucket

    with serve_bucket("bucket") as port:
        yield port


@pytest.fixture
def gate(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator["Gate"]:
    """The way to the bucket that this process and its children take; it lets everything pass."""
    from bucket import Gate, environment

    with Gate(s3_port).served() as gate:
        for name, value in environment(gate.server_port).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setitem(fsspec.config.conf, "s3", json.loads(os.environ["FSSPEC_S3"]))
        monkeypatch.setattr(objects, "WAITS_S", (0.01, 0.02, 0.05, 0.1, 0.2, 0.4))
        monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)  # that is our business
        objects._file_system.cache_clear()  # it knows another way
        yield gate
        objects._file_system.cache_clear()


@pytest.fixture
def place(gate: "Gate", request: pytest.FixtureRequest) -> str:
    """The URL of an empty place in the bucket."""
    return f"s3://bucket/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount` to make a tiny disk with")
    if mounted.returncode:
        pytest.skip(f"a tiny disk cannot be mounted: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(autouse=True, scope="session")
def _no_home_is_touched() -> Iterator[None]:
    """The networks that tests name are written down in a place that goes away."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", folder)
        yield
