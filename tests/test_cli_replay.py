"""The command of a journal: what is repeated, and what the user has to name."""

import json
import os
import socket
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import cells
import pytest
from conftest import Command, Refusal
from hostile import MARKER
from small_data import write_npz as write_images

from cli.app import commands
from cli.replay import Again, Named, images_of, replayed
from cli.verbs import _kind, parsed
from pipeline.errors import JournalError, RecipeError
from pipeline.fields import Place, mark_of
from pipeline.journal import Journal, Run, last_unfinished
from pipeline.workspace import Execution, Workspace
from stages.errors import InputError, StageError
from stages.recipes.run import Reproduce
from stages.sensing.trust import trust
from stages.verbs import MODULES, stage_of
from store.catalog import FeatureStore


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user is in ``here``; the run was started in ``there``; each has its own data root."""
    for name in ("here", "there", "root"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("INTRO_PIPE_DATA", str(tmp_path / "root"))


def options_of(words: tuple[str, ...]) -> dict[str, Any]:
    """The options of a command, by parameter."""
    command = commands()[words[0]]
    context = command.context_class(command)
    given, _, _ = command.make_parser(context).parse_args(list(words[1:]))
    known = {each.name: each for each in command.params}
    values = {
        key: known[key].process_value(context, given[key])
        for key in given
        if given[key] not in (None, [], ())
    }
    return {key: value for key, value in values.items() if value not in (None, ())}


def with_stage(run: Run) -> Run:
    """The run as version 0.5 writes its journal: with the stage and the data root."""
    if run.verb not in MODULES:
        return run
    given = options_of(run.command)
    root = given.get("data_root", run.environment.get("INTRO_PIPE_DATA", ""))
    with chdir(run.folder if Path(run.folder).is_dir() else "."):
        asked = parsed(stage_of(run.verb), given)
    return replace(run, stage=json.loads(json.dumps(asked.to_json())), data_root=root)


@pytest.fixture(params=["command", "stage"])
def recorded(request: pytest.FixtureRequest) -> Any:
    """Makes the journals of a run: of version 0.4 and before, and of later ones."""
    return with_stage if request.param == "stage" else lambda run: run


@pytest.fixture
def old_replay(tmp_path: Path) -> Any:
    """Replays the words of a run of version 0.4 that was started in ``there``."""

    def replay(*words: str, **named: Any) -> Again:
        environment = {"INTRO_PIPE_DATA": str(tmp_path / "root")}
        run = Run(words, str(tmp_path / "there"), environment, "unfinished", 0.0, "first")
        return replayed(run, str(tmp_path / "store"), Named(**named))

    return replay


@pytest.fixture
def replay(tmp_path: Path, recorded: Any) -> Any:
    """The same for a run of either kind."""

    def replay(*words: str, **named: Any) -> Again:
        environment = {"INTRO_PIPE_DATA": str(tmp_path / "root")}
        run = Run(words, str(tmp_path / "there"), environment, "unfinished", 0.0, "first")
        return replayed(recorded(run), str(tmp_path / "store"), Named(**named))

    return replay


# The parser


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "expected one of corrupt, "),
        (["query", "x", "--out", "/home/you/.bashrc"], "expected one of corrupt, "),
        (["predict", "--head", "h", "x.png", "--export", "f"], "expected one of corrupt, "),
        (["resume"], "expected one of corrupt, "),
        (["demo", "--store", "x"], "expected one of corrupt, "),
        (["-c", "import os"], "expected one of corrupt, "),
        (["extract", "--dataset"], "requires an argument"),
        (["extract", "--addr", "ray://evil:1"], "No such option"),
        (["extract", "--dataset", "digits", "more"], "unexpected more"),
        (["extract", "--dry-run=yes"], "does not take a value"),
    ],
    ids=" ".join,
)
def test_a_journal_gives_only_arguments_that_our_parser_accepts(
    old_replay: Any, words: list[str], why: str
) -> None:
    with pytest.raises(JournalError, match=why):
        old_replay(*words)


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        ({"stage": "query"}, "expected one of corrupt, "),
        ({"stage": "resume"}, "expected one of corrupt, "),
        ({"stage": "run"}, "recipe"),
        ({"stage": "run", "recipe": "x", "store": "/y"}, "--store: "),
        ({"stage": "run", "recipe": "x", "changes": "a=1"}, "--set: "),
        ({"stage": "extract"}, "expected one data set"),
        ({"stage": "extract", "dataset": 5}, "--dataset: "),
        ({"stage": "extract", "dataset": ["digits"]}, "--dataset: "),
        ({"stage": "extract", "dataset": "digits", "address": "ray://evil:1"}, "--address: "),
        ({"stage": "extract", "dataset": "digits", "limit": -1}, "--limit: "),
        ({"stage": "extract", "dataset": "digits", "limit": "1"}, "--limit: "),
        ({"stage": "extract", "dataset": "digits", "classes": "/etc/passwd"}, "--classes: "),
        ({"stage": "train-head", "features": "a", "epochs": float("nan")}, "--epochs: "),
    ],
    ids=str,
)
def test_a_journal_gives_only_fields_that_the_stage_accepts(
    tmp_path: Path, stage: dict[str, object], why: str
) -> None:
    root = str(tmp_path / "root")
    run = Run((), str(tmp_path), {}, "failed", 0.0, "first", stage=stage, data_root=root)
    with pytest.raises(JournalError, match=why):
        replayed(run, str(tmp_path / "store"), Named())


def test_a_stage_whose_command_is_hostile_is_made_without_it(tmp_path: Path) -> None:
    stage = {"stage": "extract", "dataset": "digits"}
    run = Run(("rm", "-rf", "/"), "/", {}, "failed", 0.0, "first", stage=stage)
    assert replayed(run, "/mine", Named()).asked == stage_of("extract")(dataset="digits")


def test_a_default_that_has_changed_does_not_change_a_run(tmp_path: Path) -> None:
    stage = json.loads(json.dumps(stage_of("extract")(dataset="digits").to_json()))
    run = Run((), str(tmp_path), {}, "failed", 0.0, "first", stage=stage)
    asked = replayed(run, str(tmp_path / "store"), Named()).asked
    assert asked.model_fields_set == set(stage) - {"stage"}


def fields_of(again: Again) -> dict[str, Any]:
    """The fields that are not at their defaults."""
    return again.asked.model_dump(mode="json", exclude_defaults=True)


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("extract --dataset digits --retry-failed", {"dataset": "digits", "retry_failed": True}),
        (
            "train-head --features=a --layers= --seeds=0,1",
            {"features": "a", "layers": [], "seeds": [0, 1]},
        ),
        (
            "report b a --title=--store",
            {
                "results": [
                    {"label": "b", "name": "b"},
                    {"label": "a", "name": "a"},
                ],
                "title": "--store",
            },
        ),
        (
            "run --set a=1 --set=b=2 -- {there}/x.yaml",
            {"recipe": "{there}/x.yaml", "changes": ["a=1", "b=2"], "folder": "{there}"},
        ),
        (
            "evaluate --features=a --head=H=h --head=T=t --resamples=5",
            {
                "features": "a",
                "heads": [
                    {"label": "H", "name": "h"},
                    {"label": "T", "name": "t"},
                ],
                "resamples": 5,
            },
        ),
        (
            "evaluate --features=a --beside=b --beside-label=g --beside-head=G=h",
            {
                "features": "a",
                "beside": "b",
                "beside_label": "g",
                "beside_heads": [{"label": "G", "name": "h"}],
            },
        ),
    ],
)
def test_the_other_options_mean_the_same(
    tmp_path: Path, replay: Any, words: str, fields: dict[str, Any]
) -> None:
    there = str(tmp_path / "there")
    again = replay(*words.format(there=there).split())
    found = fields_of(again)
    assert json.loads(json.dumps(found).replace(there, "{there}")) == json.loads(json.dumps(fields))
    # A resumed run can be resumed.
    resumed = replace(again.run, stage=again.asked.to_json(), data_root=again.data_root)
    assert replayed(resumed, again.store, Named()).asked == again.asked


HARMLESS = {
    "about", "against", "also", "arrays", "attack", "attacked", "augmentation", "beside",
    "beside_heads", "beside_label", "by",
    "calibration", "changes", "collection", "colour_map", "confidences", "contrast", "corrupt",
    "corruption", "corruptions", "denoise", "detectors", "dropout", "ensembles", "epsilon",
    "features", "figures", "flip_labels", "from_model", "head", "heads", "held_out_until",
    "input_scale", "interpolation", "kinds", "last_layer", "layer", "layer_loss", "layers", "loss",
    "losses", "maps", "mean", "measures", "method", "methods", "metrics", "model", "name",
    "normalisation", "notes", "odin", "odin_epsilon", "of_class", "optimiser", "order", "paper",
    "precision", "predictive", "preset", "profile", "projection", "query", "reading", "reads",
    "resize", "result", "results", "rounding", "rows", "scaling", "schedule", "scores", "seeds",
    "select_on", "source", "split", "statistics", "std", "step", "strategies", "structure",
    "target", "test_split", "through", "title", "train", "training", "validation", "value_range",
    "variant", "weights_key", "where",
    "keep", "probabilities", "rates", "snapshot_features", "snapshots", "space", "test",
    "table", "to",  # keys of recipes; `to` is a folder below the data root, see below
    "recipe",  # of reproduce, a name; that of run has a mark
}  # fmt: skip
"""Options with texts that name nothing beyond the store. A new option is one, or has a mark."""


def test_every_field_that_names_a_place_has_a_mark() -> None:
    stages = [stage_of(verb) for verb in MODULES]
    unmarked = {
        name
        for stage in stages
        for name, field in stage.model_fields.items()
        if mark_of(field, Place) is None and _kind(field) is str and name not in HARMLESS
    }
    assert unmarked == set()
    for stage in stages:
        fields = stage.model_fields
        assert not fields.keys() & {"store", "data_root", *Execution.model_fields}
        outputs = {name for name in fields if mark_of(fields[name], Place) is Place.OUTPUT}
        assert outputs <= {"out"}


# Where a run takes place

ADDRESS = "ray://evil.example:10001"


@pytest.mark.parametrize(
    "words",
    [
        ["--address", ADDRESS],
        [f"--address={ADDRESS}"],
        ["--address", "auto", "--workers=3", "--address", ADDRESS],
        ["--executor", "local", "--device=cuda:1", "--memory", "2G", "--gpus", "8"],
    ],
    ids=" ".join,
)
def test_a_journal_does_not_say_where_a_command_runs(replay: Any, words: list[str]) -> None:
    again = replay("extract", *words, "--dataset", "digits")
    assert fields_of(again) == {"dataset": "digits"}
    assert again.execution == {}
    (note,) = [line for line in again.notes() if "not taken from the journal" in line]
    assert words[-1].split("=")[-1] in note


def test_a_journal_does_not_say_where_a_recipe_runs(tmp_path: Path, replay: Any) -> None:
    again = replay("reproduce", "table-5", "--address", ADDRESS, "--status", "--dry-run")
    assert again.asked == Reproduce(recipe="table-5", folder=str(tmp_path / "there"))
    assert again.execution == {}
    assert f"--address={ADDRESS}" in again.notes()[1]


def test_the_user_says_where_a_command_runs(replay: Any) -> None:
    again = replay(
        "extract", "--dataset", "digits", "--address", ADDRESS, address="auto", workers=2
    )
    assert fields_of(again) == {"dataset": "digits"}
    assert again.execution == {"address": "auto", "workers": 2}
    assert again.ignored == []
    unused = replay("train-head", "--features", "x", address="auto")
    assert fields_of(unused) == {"features": "x"}
    assert unused.execution == {}
    assert "train-head does not use --address" in unused.notes()


def test_the_environment_is_that_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Any
) -> None:
    monkeypatch.setenv("PYTHONPATH", "mine")
    theirs = {
        "INTRO_PIPE_STORE": "/z",
        "INTRO_PIPE_DATA": str(tmp_path / "root"),
        "INTRO_PIPE_ADDRESS": ADDRESS,
    }
    words = ("extract", "--store", "/x", "--store=/y", "--dataset", "digits")
    run = recorded(Run(words, "/", theirs, "failed", 0.0, "first"))
    before, mine = dict(os.environ), FeatureStore(str(tmp_path / "mine")).prepare().location
    again = replayed(run, mine, Named(executor="local"))
    assert (fields_of(again), again.store) == ({"dataset": "digits"}, mine)
    assert again.execution == {"executor": "local"}
    with pytest.raises(StageError, match="no model for digits"):
        again.make(as_json=False)
    assert dict(os.environ) == before


def test_a_copied_store_prints_where_it_is_now(tmp_path: Path, recorded: Any) -> None:
    here = str(tmp_path / "copy")
    facts: Any = ("/there", {"INTRO_PIPE_STORE": "/old"}, "failed", 0.0, "first")
    for words in (("--store", "/old"), ("--store=/old",), ()):
        run = recorded(Run(("extract", *words, "--dataset", "digits"), *facts))
        (line,) = replayed(run, here, Named()).notes()
        command = f"intro-pipe extract --store={here} --dataset digits"
        assert line == f"started in /there: {command}"
        run = recorded(Run(("report", "x", "--out=y", *words), *facts))
        with pytest.raises(JournalError, match="run the command yourself") as raised:
            replayed(run, here, Named())
        assert "/old" not in str(raised.value)
        assert f"--store={here}" in str(raised.value)


# What is read


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("extract --dataset ./photos", {"dataset": "{there}/photos"}),
        ("extract --dataset photos", {"dataset": "{there}/photos"}),
        ("extract --dataset in-root", {"dataset": "in-root"}),
        ("extract --dataset digits", {"dataset": "digits"}),
        ("extract --dataset nowhere", {"dataset": "nowhere"}),
        ("extract --dataset a,b", {"dataset": "{there}/a,b"}),
        ("extract --dataset digits --weights w.pt", {"weights": "{there}/w.pt"}),
        ("extract --dataset digits --network mine.py:net", {"network": "{there}/mine.py:net"}),
        ("extract --dataset digits --network resnet50", {"network": "resnet50"}),
        (
            "extract --dataset digits --network torchvision:alexnet",
            {"network": "torchvision:alexnet"},
        ),
        (
            "train-sensing --dataset digits --network sub/mine.py:net",
            {"network": "{there}/sub/mine.py:net"},
        ),
        ("extract --dataset digits --classes names.txt", {"classes": ["a", "b"]}),
        (
            "active-learn --dataset digits --ask 5 --labels x.csv",
            {"labels": ["{there}/x.csv"]},
        ),
        (
            "active-learn --dataset digits --corrupted ../there/photos",
            {"images": "{there}/../there/photos"},
        ),
        (
            "ood --in digits --out svhn,./photos,digits",
            {"outside": ["svhn", "{there}/photos", "digits"]},
        ),
        ("run my.yaml", {"recipe": "{there}/my.yaml"}),
    ],
)
def test_places_are_found_from_any_folder(
    tmp_path: Path,
    replay: Any,
    words: str,
    fields: dict[str, Any],
) -> None:
    there = str(tmp_path / "there")
    for place in ("there/photos", "root/in-root", "there/in-root", "there/a,b", "there/digits"):
        (tmp_path / place).mkdir()
    (tmp_path / "there" / "names.txt").write_text("a\nb\n")
    found = json.loads(
        json.dumps(
            fields_of(replay(*words.split(), out="o" if "--ask" in words else None))
        ).replace(there, "{there}")
    )
    assert found == found | json.loads(json.dumps(fields))


def test_the_data_root_is_found_from_any_folder(tmp_path: Path, replay: Any) -> None:
    again = replay("extract", "--dataset", "digits", "--data-root=data")
    assert again.data_root == str(tmp_path / "there" / "data")
    assert replay("extract", "--dataset", "digits").data_root == str(tmp_path / "root")


@pytest.mark.parametrize(
    "words",
    [
        "extract --dataset digits --weights https://evil.example/w.pt",
        "extract --dataset digits --weights file:///etc/passwd",
        "extract --dataset digits --weights simplecache::s3://evil/w",
        "extract --dataset memory://x",
        "extract --dataset digits --weights {store}/../../x://y",
        "train-sensing --dataset digits --network http://evil/net.py:net",
        "ood --in digits --out svhn,s3://evil/x",
        "run reference://x",
    ],
)
def test_a_journal_says_nothing_that_is_fetched(tmp_path: Path, replay: Any, words: str) -> None:
    with pytest.raises(JournalError, match="a URL to fetch cannot be taken from a journal"):
        replay(*words.format(store=tmp_path / "store").split())


@pytest.mark.parametrize(
    "words",
    ["run pipe", "active-learn --dataset digits --ask 5 --labels ./pipe",
     "extract --dataset digits --weights pipe", "extract --dataset digits --weights link",
     "extract --dataset digits --weights /dev/null", "train-sensing --dataset ./pipe"],
)  # fmt: skip
def test_a_journal_names_no_pipe_and_no_device(tmp_path: Path, replay: Any, words: str) -> None:
    os.mkfifo(tmp_path / "there/pipe")
    (tmp_path / "there/link").symlink_to("pipe")
    with pytest.raises(JournalError, match="is a pipe or a device, expected a file"):
        replay(*words.split(), out="o" if "--ask" in words else None)


@pytest.mark.parametrize("file", ["pipe", "link", "/dev/null"])
def test_a_list_of_classes_in_an_old_journal_is_no_pipe_and_no_device(
    tmp_path: Path, old_replay: Any, file: str
) -> None:
    """Later journals have the names of the classes, not the file."""
    os.mkfifo(tmp_path / "there/pipe")
    (tmp_path / "there/link").symlink_to("pipe")
    with pytest.raises(JournalError, match="is a pipe or a device, expected a file"):
        old_replay("extract", "--dataset", "digits", "--classes", file)


@pytest.mark.parametrize("file", ["nets.py", "nets/__init__.py"])
def test_a_module_of_the_runs_folder_is_not_imported(
    tmp_path: Path, replay: Any, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Not even if the user has named it there."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = tmp_path / "there" / file
    place.parent.mkdir(exist_ok=True)
    place.write_text(f"open({str(tmp_path / MARKER)!r}, 'a')")
    with chdir(tmp_path / "there"):
        trust("nets:make")
    again = replay("extract", "--dataset", "digits", "--network", "nets:make", "--weights", "w")
    with pytest.raises(StageError, match="the journal would run code, nets:make"):
        again.make(as_json=False)
    assert not (tmp_path / MARKER).exists()


# What is written


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["report", "x", "--out", "/home/you/.ssh"], ["--out /home/you/.ssh"]),
        (["report", "x", "--out=../x"], ["--out ../x"]),
        (["corrupt", "--dataset", "digits", "--out", "x"], ["--out x"]),
        (["corrupt", "--dataset", "digits", "--data-root", "/srv"], ["--data-root /srv"]),
        (
            ["corrupt", "--dataset", "digits", "--out=a", "--data-root=/srv"],
            ["--out a --data-root /srv"],
        ),
        (["analyse", "--features", "x", "--out", "a b"], ["--out 'a b'"]),
        (["active-learn", "--ask", "5", "--dataset", "x"], ["--out to-label"]),
        (["active-learn", "--dataset", "x", "--ask=5", "--out", "/x"], ["--out /x"]),
        (["run", "x.yaml", "--data-root=."], ["--data-root "]),
        (["reproduce", "table-5", "--data-root", "/"], ["--data-root /"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_journal_does_not_say_what_is_written(
    replay: Any, words: list[str], named: list[str]
) -> None:
    with pytest.raises(JournalError, match=r"writes outside the store") as raised:
        replay(*words)
    assert named[0] in str(raised.value)


def test_a_data_root_of_the_runs_environment_is_not_written(tmp_path: Path, recorded: Any) -> None:
    theirs: Any = (str(tmp_path), {"INTRO_PIPE_DATA": str(tmp_path / "theirs")}, "failed", 0.0, "r")
    for words in (("corrupt", "--dataset", "digits"), ("run", "x.yaml")):
        run = recorded(Run(words, *theirs))
        with pytest.raises(JournalError, match=f"--data-root {tmp_path}/theirs"):
            replayed(run, str(tmp_path), Named())
        again = replayed(run, str(tmp_path), Named(data_root=str(tmp_path / "mine")))
        assert again.data_root == str(tmp_path / "mine")
    reads = recorded(Run(("extract", "--dataset", "digits"), *theirs))
    assert replayed(reads, str(tmp_path), Named()).data_root == str(tmp_path / "theirs")


def test_the_set_of_a_stage_below_the_data_root_is_not_written_elsewhere(tmp_path: Path) -> None:
    """Its name below the root, which recipes and programs give, counts more than --out."""
    stage = {"stage": "corrupt", "dataset": "digits", "to": "x"}
    run = Run((), "/", {}, "failed", 0.0, "r", stage=stage, data_root="/srv")
    for named in (Named(), Named(out="d")):
        with pytest.raises(JournalError, match="--data-root /srv"):
            replayed(run, str(tmp_path), named)


def test_the_user_chooses_the_output_name(replay: Any) -> None:
    assert fields_of(replay("report", "x", "--out", "/a", out="b"))["out"] == "b"
    asked = replay("active-learn", "--dataset=digits", "--ask=5", out="c")
    assert fields_of(asked) == {"dataset": "digits", "ask": 5, "out": "c"}
    corrupt = replay("corrupt", "--dataset=digits", "--out=x", "--data-root=/srv", out="d")
    assert fields_of(corrupt) == {"dataset": "digits", "out": "d"}
    assert corrupt.data_root == "/srv"
    detection = replay("ood", "--in=digits", "--out=svhn", out="e")  # what ood has there is read
    assert fields_of(detection) == {"inside": "digits", "outside": ["svhn"]}
    assert detection.unused == ["--out"]


# Whole commands


def journal_of(store: Path, folder: Path, *words: str, place: str = "") -> None:
    """A store from someone else whose last run is unfinished."""
    FeatureStore(str(store)).prepare()
    journal = Journal.of(str(store), words)
    facts = {"host": "elsewhere", "pid": 1, "process_started": ""}
    environment = {"INTRO_PIPE_DATA": str(folder)}
    journal.note(
        "started", command=list(words), folder=str(folder), environment=environment, **facts
    )
    journal.note("work", title="extract", place=place, unit="shard", units=1)


PLANTS = (
    "bottleneck",
    "numexpr",
    "lz4",
    "sitecustomize",
    "usercustomize",
    "numpy",
    "cli",
    "stages",
)
"""Modules that libraries look for, installed or not, and our own."""


def plant(folder: Path) -> None:
    """Modules that leave a marker in their folder when they are imported."""
    folder.mkdir(exist_ok=True)
    for name in PLANTS:
        (folder / f"{name}.py").write_text(f"open({str(folder / MARKER)!r}, 'a').write(__name__)\n")


@pytest.fixture
def shell(tmp_path: Path) -> Any:
    """Run a command in ``here``; returns exit code and stderr."""

    def run(*words: str, code: int) -> str:
        command = [sys.executable, "-P", "-m", "cli.app", *words]
        ended = subprocess.run(
            command, cwd=tmp_path / "here", capture_output=True, text=True, check=False
        )
        assert ended.returncode == code, ended.stderr
        return ended.stderr

    return run


def test_resume_does_not_work_in_the_folder_of_the_run(tmp_path: Path, shell: Any) -> None:
    there, store = tmp_path / "there", tmp_path / "store"
    plant(there)
    write_images(there / "images.npz", 20)
    words = ["train-sensing", "--dataset", "./images.npz", "--preset", "quick", "--epochs", "1"]
    journal_of(store, there, *words)
    error = shell("resume", "--store", str(store), code=0)
    command = f"intro-pipe train-sensing --store={store} --dataset ./images.npz"
    assert f"started in {there}: {command}" in error
    assert (store / "models" / "cnn2" / "model.json").exists()
    assert not (there / MARKER).exists()
    assert not any((tmp_path / "here").iterdir())
    assert "nothing to resume" in shell("resume", "--store", str(store), code=2)


def test_repair_does_not_work_in_the_folder_of_the_run(tmp_path: Path, shell: Any) -> None:
    there, store = tmp_path / "there", tmp_path / "store"
    plant(there)
    found = cells.cells(FeatureStore(str(store)).prepare())
    found.shard_set.storage.write("features/c/0/0", b"")
    place = found.shard_set.storage.location
    journal_of(store, there, "evaluate", "--features", "none", place=place)
    error = shell("repair", "--store", str(store), code=1)
    assert f"started in {there}: intro-pipe evaluate" in error
    assert "no feature set 'none'" in error  # it ran and reached the store
    assert not (there / MARKER).exists()
    assert not any((tmp_path / "here").iterdir())


def test_repair_continues_after_a_refused_journal(tmp_path: Path, intro_pipe: Command) -> None:
    found = cells.cells(FeatureStore(str(tmp_path / "store")).prepare())
    place, out = found.shard_set.storage.location, tmp_path / "out"
    commands = (["corrupt", "--dataset=digits"], ["report", "x"], ["query", "x"])
    for shard, words in enumerate(commands):
        found.shard_set.storage.write(f"features/c/{shard}/0", b"")
        journal_of(tmp_path / "store", tmp_path, *words, "--out", str(out), place=place)
        _, error = intro_pipe(f"repair --store {tmp_path}/store", code=1)
        assert "run the command yourself" in error
    assert not out.exists()
    assert not any((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    ("command", "form"),
    [
        ("resume", "--address ray://{here}"),
        ("resume", "--address={here} --workers=1"),
        ("repair", "--address={here}"),
    ],
)
def test_an_address_of_a_journal_is_not_connected_to(
    tmp_path: Path, intro_pipe: Command, command: str, form: str
) -> None:
    store = tmp_path / "store"
    found = cells.cells(FeatureStore(str(store)).prepare())
    found.shard_set.storage.write("features/c/0/0", b"")
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"127.0.0.1:{server.getsockname()[1]}"
        words = ["extract", "--dataset", "digits", *form.format(here=here).split()]
        journal_of(store, tmp_path, *words, place=found.shard_set.storage.location)
        code = {"resume": 2, "repair": 1}[command]
        _, error = intro_pipe(f"{command} --store {store} --executor local", code=code)
        assert "no model for digits" in error  # it ran as far as it can
        assert here in error  # a note says what was left out
        server.settimeout(0)
        with pytest.raises(BlockingIOError):  # no process has connected
            server.accept()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["report", "x", "--out", "{out}"], "writes outside the store"),
        (["corrupt", "--dataset", "digits", "--out", "{out}"], "writes outside the store"),
        (["corrupt", "--dataset", "digits", "--data-root", "{out}"], "writes outside the store"),
        (["corrupt", "--dataset", "digits"], "writes outside the store"),
        (["extract", "--dataset", "digits", "--weights", "ftp://x/y"], "a URL to fetch"),
        (["query", "x", "--out", "{out}"], "expected one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_forbidden_content_of_a_journal_is_refused_in_one_line(
    tmp_path: Path,
    refused: Refusal,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    why: str,
) -> None:
    monkeypatch.delattr(os, "execve")
    out = tmp_path / "out"
    journal_of(tmp_path / "store", tmp_path / "there", *(word.format(out=out) for word in words))
    assert why in refused("resume", "--executor", "local")


def started(store: Path, words: list[str], **facts: object) -> Journal:
    """The journal of a run on another machine."""
    journal = Journal.of(str(store), words)
    journal.note(
        "started", **{"command": words, "folder": "/", "environment": {}, "pid": 1} | facts
    )
    return journal


@pytest.mark.parametrize("is_old", [True, False])
def test_a_resumed_run_that_was_resumed_again_leaves_nothing_to_resume(
    tmp_path: Path, *, is_old: bool
) -> None:
    """Version 0.4 and before recorded the first run in the environment."""
    store = tmp_path / "store"
    journal_of(store, tmp_path, "extract", "--dataset", "first")
    first = last_unfinished(str(store))
    for words, event in ((["extract", "--dataset=/first"], "failed"), (["extract"], "done")):
        name = last_unfinished(str(store)).first_name
        old: Any = {"environment": {"INTRO_PIPE_REPLAYED": name}}
        journal = started(store, words, **(old if is_old else {"resumes": name}))
        journal.note(event)
    assert name == first.name
    with pytest.raises(JournalError, match="nothing to resume"):
        last_unfinished(str(store))


def test_the_same_stage_leaves_nothing_to_resume(tmp_path: Path) -> None:
    """However it was spelled on the command line, or in a program."""
    stage = {"stage": "extract", "dataset": "digits"}
    started(tmp_path, ["extract", "--dataset", "digits"], stage=stage).note("failed")
    started(tmp_path, [], stage={**stage, "dataset": "cifar10"}).note("done")
    assert last_unfinished(str(tmp_path)).stage == stage
    started(tmp_path, [], stage=stage).note("done")
    with pytest.raises(JournalError, match="nothing to resume"):
        last_unfinished(str(tmp_path))


# Recipes, whose paths are relative to where they are run

RELATIVE = """\
recipe: r
parameters: {dataset: ./photos, network: n.py:f}
steps:
  hard: {stage: corrupt, dataset: $dataset, to: hard}
  f: {stage: train-sensing, dataset: $dataset, network: $network}
  x: {stage: extract, images: hard, model: f}
"""


@pytest.mark.parametrize(
    ("changes", "dataset", "network"),
    [
        ([], "{there}/photos", "{there}/n.py:f"),
        (["dataset=photos"], "{there}/photos", "{there}/n.py:f"),
        (["dataset=digits", "network=cnn2"], "digits", "cnn2"),
        (["dataset=in-root", "network=../m.py:f"], "in-root", "{there}/../m.py:f"),
    ],
)
def test_relative_paths_in_a_recipe_are_found_from_any_folder(
    tmp_path: Path, replay: Any, changes: list[str], dataset: str, network: str
) -> None:
    for place in ("there/photos", "here/photos", "here/hard", "there/hard", "root/in-root"):
        (tmp_path / place).mkdir()
    (tmp_path / "there/r.yaml").write_text(RELATIVE)
    again = replay("run", "r.yaml", *[word for change in changes for word in ("--set", change)])
    workspace = Workspace(FeatureStore(again.store), again.data_root)
    stages = {each.step: each.stage for each in again.asked.job(workspace).recipe.instances}
    there = str(tmp_path / "there")
    assert stages["f"].dataset == dataset.format(there=there)
    assert stages["f"].network == network.format(there=there)
    assert stages["x"].images == "hard"  # a step, and no path


@pytest.mark.parametrize("words", ["", "--set w=http://evil.example:80/w.pt"])
def test_a_recipe_of_a_journal_fetches_nothing(tmp_path: Path, replay: Any, words: str) -> None:
    given = "recipe: r\ntitle: t\nparameters: {w: 'file:///etc/passwd'}\n"
    step = "{stage: import-model, network: cnn2, weights: $w, dataset: digits}"
    (tmp_path / "there/r.yaml").write_text(f"{given}steps:\n  m: {step}\n")
    again = replay("run", "r.yaml", *words.split())
    workspace = Workspace(FeatureStore(again.store), again.data_root, resumes=again.run)
    with pytest.raises(InputError, match="the recipe of the journal names a URL to fetch"):
        again.asked.job(workspace)
    assert again.asked.networks() == []  # a URL with a port is no code


def test_a_network_of_a_recipe_is_run_from_any_folder_if_it_is_trusted(
    tmp_path: Path, replay: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "there/r.yaml").write_text(RELATIVE)
    for folder in ("here", "there"):
        (tmp_path / folder / "n.py").write_text(f"raise ValueError('{folder}')")
    again = replay("run", "r.yaml", "--set", "network=n.py:f", "--set", "dataset=digits")
    with pytest.raises(StageError, match=f"the journal would run code, {tmp_path}/there/n.py:f"):
        again.make(as_json=False)
    with chdir(tmp_path / "there"):
        trust("n.py:f")
    with pytest.raises(RecipeError, match=r"n\.py.*ValueError: there"):
        again.make(as_json=False)


def test_a_recipe_that_was_edited_is_resumed_as_it_is_now(tmp_path: Path, replay: Any) -> None:
    recipe = tmp_path / "there/r.yaml"
    recipe.write_text(RELATIVE)
    again = replay("run", "r.yaml")
    recipe.write_text(RELATIVE.replace("recipe: r", "recipe: other"))
    workspace = Workspace(FeatureStore(again.store), again.data_root)
    assert again.asked.job(workspace).recipe.name == "other"


@pytest.mark.parametrize("text", ["x" * 5000, "/etc", "digits", "", ".", "a: b\nc: d", "\\0"])
def test_other_texts_of_a_recipe_are_not_paths(tmp_path: Path, replay: Any, text: str) -> None:
    steps = f"steps: {{f: {{stage: train-sensing, dataset: {json.dumps(text)}}}}}"
    (tmp_path / "there/r.yaml").write_text(f"recipe: r\ntitle: {json.dumps(text)}\n{steps}")
    again = replay("run", "r.yaml")
    job = again.asked.job(Workspace(FeatureStore(again.store), again.data_root))
    assert job.recipe.title == text


# Where the images of a run are


@pytest.mark.parametrize("words", ["extract --dataset photos", "reproduce table-5", "elsewhere"])
def test_a_name_under_the_data_root_comes_before_the_folder_of_the_run(
    tmp_path: Path, words: str
) -> None:
    """The data set as the run opened it."""
    (tmp_path / "there" / "photos").mkdir()
    run = Run(
        tuple(words.split()),
        str(tmp_path / "there"),
        {"INTRO_PIPE_DATA": "../root"},
        "done",
        0.0,
        "r",
    )
    limit = None if "extract" in words else 7
    place = str(tmp_path / "there" / "photos")
    root = tmp_path / "there" / "../root"
    assert images_of(run, "photos", 7) == (place, root, limit, ())
    (tmp_path / "root" / "photos").mkdir()
    assert images_of(run, "photos", 7) == ("photos", root, limit, ())


def test_rows_and_data_root_are_those_of_the_command(tmp_path: Path) -> None:
    words = f"extract --dataset digits --limit 5 --data-root {tmp_path}"
    run = Run(tuple(words.split()), "/", {"INTRO_PIPE_DATA": "/x"}, "done", 0.0, "r")
    assert images_of(run, "other", 7) == ("digits", tmp_path, 5, ())


@pytest.mark.parametrize("words", ["--dataset s3://theirs/x", "--dataset x --limit lots"])
def test_images_are_nowhere_that_a_journal_may_not_name(words: str) -> None:
    run = Run(("extract", *words.split()), "/", {}, "done", 0.0, "r")
    with pytest.raises(JournalError):
        images_of(run, "x", 7)


def test_a_stage_without_a_data_set_of_its_own_names_none(tmp_path: Path) -> None:
    stage = {"stage": "extract", "images": "x"}
    run = Run((), "/", {}, "done", 0.0, "r", stage=stage, data_root=str(tmp_path))
    assert images_of(run, "other", 7) == ("other", tmp_path, 7, ())
