"""Maps of stored rows, as a user makes them: rows by query, resumed, verified, refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from made import make_in
from scipy.special import softmax
from scipy.stats import entropy
from small_data import train_small, write_npz_set

from stages.explanation.explain import Explain
from stages.introspection.fit_neighbours import FitNeighbours
from stages.introspection.predictors import predictors
from stages.reflection.extract import Extract
from store.catalog import FeatureStore
from store.encoding import chunk_key, encode_chunk
from store.featureset import FeatureSet
from store.verify import verify_feature_set

N_ROWS = 30
METHODS = ("grad-cam", "counterfactual-cam", "contrast-cam", "voice")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a network, features of both splits, and a head."""
    folder = tmp_path_factory.mktemp("home")
    write_npz_set(folder / "data" / "shapes", 60, N_ROWS)
    store = FeatureStore(str(folder / "store"))
    train_small(store, folder / "data" / "shapes")
    for split in ("train", "test"):
        data = str(folder / "data" / "shapes")
        make_in(store, Extract(dataset=data, split=split, model="cnn2", shard_rows=8))
    make_in(store, FitNeighbours(features="shapes-train@cnn2", name="h", k=3))
    return folder


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command) -> Command:
    monkeypatch.setenv("INTRO_PIPE_STORE", str(home / "store"))
    monkeypatch.setenv("INTRO_PIPE_DATA", str(home / "data"))
    return intro_pipe


def explained(home: Path, **options: object) -> FeatureSet:
    stage = Explain(**{"features": "shapes-test@cnn2", **options})
    found = make_in(FeatureStore(str(home / "store")), stage, home / "data").output
    assert isinstance(found, FeatureSet)
    return found


@pytest.fixture(scope="module")
def everything(home: Path) -> FeatureSet:
    """Every map of every row; leave it as it is."""
    return explained(home, method=METHODS, contrast=("top-9",), shard_rows=7, name="everything")


@pytest.fixture(scope="module")
def features(home: Path) -> FeatureSet:
    return FeatureStore(str(home / "store")).open("shapes-test@cnn2")


def test_every_row_has_a_map_of_each_question(everything: FeatureSet, features: FeatureSet) -> None:
    samples, theirs = everything.samples(), features.samples()
    maps, classes = everything.read("maps"), everything.read("map_class")

    assert maps.shape == (N_ROWS, 12, 16, 16)
    assert maps.min() == 0
    assert 0 < maps.max() < np.inf
    assert samples["feature_row"].tolist() == list(range(N_ROWS))
    for name in ("sample_id", "label", "prediction", "confidence"):
        assert samples[name].tolist() == theirs[name].tolist()
    assert (samples["status"] == "ok").all()
    assert classes[:, 0].tolist() == theirs["prediction"].tolist()
    assert all(sorted([row[0], *row[2:11]]) == list(range(10)) for row in classes)
    probability = everything.read("map_probability")
    np.testing.assert_allclose(probability[:, 0], theirs["confidence"], rtol=1e-6)
    np.testing.assert_allclose(probability[:, 0] + probability[:, 2:11].sum(1), 1)
    is_zero = (maps == 0).all(axis=(2, 3))
    assert (everything.read("map_is_zero") == is_zero).all()
    assert samples["zero_maps"].tolist() == is_zero.sum(1).tolist()


def test_voice_is_the_variance_of_the_stored_contrast_maps(everything: FeatureSet) -> None:
    maps, samples = everything.read("maps"), everything.samples()

    expected = maps[:, 2:11].astype(np.float64).var(axis=1)
    scale = expected.max()
    np.testing.assert_allclose(maps[:, 11] / scale, expected / scale, atol=1e-5)
    np.testing.assert_allclose(
        samples["voice_mean"] / scale, expected.mean((1, 2)) / scale, atol=1e-5
    )
    assert samples["voice_iou"].between(0, 1).all()


@pytest.mark.parametrize(
    ("options", "choose"),
    [
        ({"where": "prediction != label"}, lambda s, _: s.prediction != s.label),
        (
            {"where": ("label!=1,2", "row>=10", "row<20")},
            lambda s, _: ~s.label.isin([1, 2]) & s.row.between(10, 19),
        ),
        ({"rows": ("test/00003", "12")}, lambda s, _: s.row.isin([3, 12])),
        ({"top": 4}, lambda s, _: s.row.isin(s.sort_values("confidence").row[:4])),
        (
            {"top": 3, "by": "entropy", "order": "highest"},
            lambda s, z: s.row.isin(np.argsort(entropy(softmax(z, axis=1), axis=1))[-3:]),
        ),
    ],
)
def test_rows_are_chosen(home: Path, features: FeatureSet, options: dict, choose: object) -> None:
    found = explained(home, method="grad-cam", **options).samples()

    theirs, logits = features.samples(), features.read("logits").astype(np.float64)
    assert found["feature_row"].tolist() == theirs["row"][choose(theirs, logits)].tolist()


def test_rows_on_which_f_and_the_head_disagree(home: Path, features: FeatureSet) -> None:
    store = FeatureStore(str(home / "store"))
    head = store.artifact("head", "h")
    (predict,) = list(predictors(store, head).values())[:1]
    answers = predict(features.read("features"), features.read("logits"))
    prediction = features.samples()["prediction"].to_numpy()
    expected = np.flatnonzero(answers.argmax(1) != prediction)
    assert 0 < len(expected) < N_ROWS

    found = explained(home, method="grad-cam", disagree=True).samples()

    assert found["feature_row"].tolist() == expected.tolist()
    assert found["head_prediction"].tolist() == answers.argmax(1)[expected].tolist()
    np.testing.assert_allclose(found["head_confidence"], answers.max(1)[expected])


def test_a_class_by_name_or_number_or_the_label_is_explained(home: Path) -> None:
    of = {word: explained(home, method="grad-cam", of_class=word) for word in ("3", "label")}

    assert set(of["3"].read("map_class").ravel()) == {3}
    assert of["label"].read("map_class")[:, 0].tolist() == of["label"].samples()["label"].tolist()


def test_any_layer_and_any_shard_size_give_the_same_rows(
    home: Path, everything: FeatureSet
) -> None:
    same = explained(home, method=METHODS, contrast=("top-9",), layer="conv2", shard_rows=30)
    other = explained(home, method="grad-cam", layer="conv1", batch_size=4)

    scale = everything.read("maps").max()
    np.testing.assert_allclose(
        same.read("maps") / scale, everything.read("maps") / scale, atol=1e-6
    )
    assert other.schema.array("maps").row_shape == (1, 32, 32)


def test_a_missing_shard_is_resumed_verified_and_listed(
    home: Path, everything: FeatureSet, run: Command
) -> None:
    folder = home / "store" / "maps" / everything.name
    before = {path: path.read_bytes() for path in folder.rglob("c/*/*") if path.is_file()}
    (folder / "receipts" / "00002.json").unlink()
    command = f"explain --features shapes-test@cnn2 --method {','.join(METHODS)} --contrast top-9"

    state = {row["kind"]: row for row in json.loads(run("status --json")[0])["contents"]}["maps"]
    rest, _ = run(f"{command} --shard-rows 7 --name everything --executor local")
    again, _ = run(f"{command} --shard-rows 7 --name everything --executor local --json")

    assert "1 of 5 shards computed in this run" in rest
    assert json.loads(again)["n_computed"] == 0
    assert state["name"] in {each.name for each in (home / "store" / "maps").iterdir()}
    assert {path: path.read_bytes() for path in before} == before
    assert "0 problems" in run(f"verify {everything.name}")[0]


def test_damaged_maps_are_found_and_repaired(home: Path, run: Command) -> None:
    found = explained(home, method="grad-cam", top=5, name="damaged")
    chunk = home / "store" / "maps" / found.name / "maps/c/0/0/0/0"
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes(data)

    out, _ = run(f"verify {found.name}", code=1)
    assert "altered" in out
    assert "1 of 1 damaged set repaired" in run(f"repair {found.name}")[0]


def test_images_that_are_corrupted_while_they_are_read_are_found_again(home: Path) -> None:
    store = FeatureStore(str(home / "store"))
    data = str(home / "data" / "shapes")
    stage = Extract(dataset=data, model="cnn2", corrupt=("brightness:3", "contrast:2"), limit=4)
    features = make_in(store, stage).output

    found = explained(home, features=features.name, method="grad-cam", where="severity=2")

    assert found.samples()["corruption"].tolist() == ["contrast"] * 4
    assert (found.samples()["status"] == "ok").all()
    assert "everything" not in found.name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--class 3 --contrast 3", "--contrast 3: expected classes other than the explained one"),
        ("--rows=", "--rows: expected one or more values, found none"),
        ("--contrast=", "--contrast: expected one or more values, found none"),
        ("--out {data}/shapes/test.npz", "is a file, expected a folder"),
        ("--contrast wolf", "--contrast wolf: expected a class by its number, 0 to 9"),
        ("--contrast top-10", "expected top-1 to top-9"),
        ("--class wolf", "--class wolf: expected a class"),
        ("--layer linear", "--layer linear: expected a layer whose output has a place"),
        ("--method grad", "--method: expected one of grad-cam"),
        ("--where row=99", "no row matches"),
        ("--where nothing=1", "expected COLUMN=VALUE"),
        ("--rows test/00003,99", "1 of 2 are neither a sample of"),
        ("--top 3 --by site", "--by site: expected a column of numbers"),
        ("--by entropy", "--by has no effect without --top"),
        ("--method voice --contrast 3", "--contrast has no effect without"),
        ("--head nobody", "nobody"),
        ("--dataset elsewhere", "no such data set"),
        ("--data-root /nowhere", "name the images with --dataset"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    home: Path, run: Command, words: str, expected: str
) -> None:
    before = sorted((home / "store").rglob("*"))

    _, error = run(
        f"explain --features shapes-test@cnn2 {words.format(data=home / 'data')}", code=2
    )

    assert expected in error
    assert sorted((home / "store").rglob("*")) == before


def test_images_of_another_content_are_refused(home: Path, run: Command) -> None:
    write_npz_set(home / "data" / "others", 50, N_ROWS + 10)

    _, error = run("explain --features shapes-test@cnn2 --dataset others", code=2)

    assert "is not the data set that this run was planned for" in error


def test_a_row_whose_stored_logits_are_others_fails_with_the_reason(home: Path) -> None:
    """As if the image or the network had changed unnoticed."""
    store = FeatureStore(str(home / "store"))
    data = str(home / "data" / "shapes")
    features = make_in(store, Extract(dataset=data, model="cnn2", limit=4, shard_rows=4)).output
    logits = features.read("logits")
    logits[2] += 1
    spec = features.schema.array("logits")
    chunk = (
        home / "store" / "features" / features.name / chunk_key(spec, features.shard_set.shards[0])
    )
    chunk.write_bytes(encode_chunk(spec, logits, 4))

    found = explained(home, features=features.name, method=("grad-cam", "voice"))

    status = found.samples()["status"].tolist()
    assert [each == "ok" for each in status] == [True, True, False, True]
    assert status[2].startswith(f"its logits differ from those of {features.name} by 1")
    assert np.isnan(found.read("maps")[2]).all()
    assert found.read("map_class")[2].tolist() == [-1, -1]
    assert not list(verify_feature_set(found))
