import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_data import write_image_folder

from pipeline.workspace import Workspace
from stages.data.corruptions.cells import cells_of
from stages.data.corruptions.names import CORRUPTIONS
from stages.data.known import KNOWN, data_root_path
from stages.data.opened import facts_of
from stages.data.picked import Sample
from stages.data.planned_images import planned_images
from stages.data.registry import SourceSpec, known_datasets, open_source
from stages.data.source import source_facts
from stages.errors import DataNotFoundError, InputError
from store.catalog import FeatureStore


def _arrays(path: Path, n_rows: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=np.zeros((n_rows, 8, 8), dtype=np.uint8), labels=np.arange(n_rows))


def _corrupted(folder: Path, names: tuple[str, ...]) -> None:
    folder.mkdir()
    for name in names:
        np.save(folder / f"{name}.npy", np.zeros((5, 8, 8, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.zeros(5, dtype=np.uint8))


def test_the_data_root_is_given_or_from_the_environment_or_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTRO_PIPE_DATA", str(tmp_path / "env"))
    assert data_root_path(tmp_path / "given") == tmp_path / "given"
    assert data_root_path() == tmp_path / "env"
    monkeypatch.delenv("INTRO_PIPE_DATA")
    assert data_root_path() == Path.home() / ".cache" / "intro-pipe" / "data"


@pytest.mark.parametrize("name", ["cifar10", "cifar10c", "mnist"])
def test_a_missing_data_set_is_refused_with_a_way_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataNotFoundError) as caught:
        open_source(name, data_root=tmp_path)
    message = str(caught.value)
    assert f"intro-pipe datasets --download {name}" in message
    assert "--data-root" in message
    assert "\n" not in message


def test_an_unknown_name_leads_with_the_nearest_ones(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    for name, near in (("cifar11", "cifar10 or cifar10c"), ("photograph", "photographs")):
        with pytest.raises(DataNotFoundError) as caught:
            open_source(name, data_root=tmp_path)
        start = f"{name}: no such data set (did you mean {near}?); looked at {tmp_path}/{name}"
        assert str(caught.value).startswith(start)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="no/such/place"):
        open_source(tmp_path / "no" / "such" / "place")


def test_a_url_that_may_hold_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(InputError, match=r"^that URL cannot hold a data set: expected scheme://"):
        open_source("s3://key:secret@bucket/pets")


def test_a_name_is_looked_up_under_the_data_root(tmp_path: Path) -> None:
    _arrays(tmp_path / "mine" / "test.npz")
    assert open_source("mine", data_root=tmp_path).name == "mine"


def test_names_are_fit_for_file_names(tmp_path: Path) -> None:
    _arrays(tmp_path / "my set@home.npz")
    assert open_source(tmp_path / "my set@home.npz").name == "my-set-home"


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="digits: has no split 'val', only train, test"):
        open_source("digits", "val")


@pytest.mark.parametrize("split", ["", "../train", "my val", ".", "a@b"])
def test_a_split_that_cannot_be_part_of_a_name_is_refused(split: str) -> None:
    with pytest.raises(InputError, match="expected train, test, or the name of a folder"):
        open_source("digits", split)


@pytest.mark.parametrize("options", [{"image_size": 0}, {"limit": 0}, {"limit": -3}])
def test_sizes_and_limits_below_one_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected at least 1"):
        open_source("digits", **options)


def test_a_limit_takes_the_first_rows_and_changes_the_fingerprint() -> None:
    whole, part = open_source("digits"), open_source("digits", limit=7)
    assert part.n_rows == 7
    assert (part.read(0, 7).images == whole.read(0, 7).images).all()
    assert part.fingerprint() != whole.fingerprint()


def test_a_limit_beyond_the_end_changes_nothing() -> None:
    assert open_source("digits", limit=9_999).fingerprint() == open_source("digits").fingerprint()


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, 501)])
def test_rows_outside_are_refused(start: int, stop: int) -> None:
    with pytest.raises(IndexError, match="are not within 0:500"):
        open_source("digits").read(start, stop)


def test_a_spec_opens_the_same_source_after_pickling() -> None:
    spec = SourceSpec("digits", "test", "", image_size=16, limit=9)
    source = pickle.loads(pickle.dumps(spec)).open()
    assert (source.n_rows, source.image_size) == (9, (16, 16))
    assert source.fingerprint() == open_source("digits", image_size=16, limit=9).fingerprint()


def test_the_facts_of_a_source_are_json_and_hold_its_fingerprint() -> None:
    source = open_source("digits", limit=7)
    facts = json.loads(json.dumps(source_facts(source)))
    assert (facts["n_rows"], facts["image_size"]) == (7, [32, 32])
    assert facts["resize"] == "bilinear-antialias 8x8->32x32"
    assert facts["fingerprint"] == source.fingerprint()


def test_the_list_shows_every_registered_set(tmp_path: Path) -> None:
    infos = {info.name: info for info in known_datasets(tmp_path / "nothing")}
    assert list(infos) == list(KNOWN)
    assert infos["digits"].is_on_disk
    assert not infos["cifar10c"].is_on_disk
    assert infos["cifar10c"].n_rows == {"test": 950_000}
    assert infos["cifar10c"].how_to_get == "intro-pipe datasets --download cifar10c"


def test_listed_data_sets_can_be_opened() -> None:
    info = next(info for info in known_datasets() if info.name == "digits")
    assert all(open_source("digits", split).n_rows == n for split, n in info.n_rows.items())


def test_the_list_recognises_sets_in_the_data_root(tmp_path: Path) -> None:
    _arrays(tmp_path / "arrays" / "train.npz", 6)
    _arrays(tmp_path / "single.npz")
    _corrupted(tmp_path / "mine-c", ("fog",))
    (tmp_path / "photos" / "test" / "ant").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "test" / "ant" / "0.png")
    for split in ("train", "val"):
        (tmp_path / "scans" / split / "ant").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "scans" / split / "ant" / "0.png")
    (tmp_path / "other").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    infos = {info.name: info for info in known_datasets(tmp_path)[len(KNOWN) :]}
    assert {name: info.n_rows for name, info in infos.items()} == {
        "arrays": {"train": 6},
        "mine-c": {"test": 5},
        "photos": {"test": 1},
        "scans": {"train": 1, "val": 1},
        "single.npz": {"test": 5},
    }
    assert all(info.is_on_disk and not info.problem for info in infos.values())


def test_the_list_shows_what_is_wrong_with_a_set(tmp_path: Path) -> None:
    _corrupted(tmp_path / "CIFAR-10-C", CORRUPTIONS[1:])
    np.save(tmp_path / "photos.npy", np.zeros((5, 8), dtype=np.uint8))
    problems = {info.name: info.problem for info in known_datasets(tmp_path) if info.problem}
    assert "missing: brightness" in problems["cifar10c"]
    assert "expected uint8" in problems["photos.npy"]


def test_a_slip_of_the_pen_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"digitz: no such data set \(did you mean digits"):
        open_source("digitz", data_root=tmp_path)


def test_a_sample_keeps_names_labels_and_order_and_is_part_of_a_larger_one() -> None:
    whole, less, more = (
        SourceSpec("digits", "test", "", limit=100, sample=Sample(n, 3)).open()
        for n in (100, 7, 20)
    )
    rows, few, many = (each.read(0, each.n_rows) for each in (whole, less, more))
    ids = {name: at for at, name in enumerate(rows.columns["sample_id"])}
    chosen = [ids[name] for name in few.columns["sample_id"]]

    assert whole.fingerprint() == open_source("digits", limit=100).fingerprint()
    assert chosen == sorted(chosen) != list(range(7))
    assert (few.images == rows.images[chosen]).all()
    assert (few.columns["label"] == rows.columns["label"][chosen]).all()
    assert set(few.columns["sample_id"]) < set(many.columns["sample_id"])


def test_rows_are_shuffled_with_their_labels_and_names() -> None:
    plain, shuffled, other = (
        SourceSpec("digits", "test", "", limit=100, sample=sample).open()
        for sample in (None, Sample(None, 3, is_shuffled=True), Sample(None, 4, is_shuffled=True))
    )
    rows, found = plain.read(0, 100), shuffled.read(0, 100)
    order = np.random.default_rng(3).permutation(100)

    assert (found.images == rows.images[order]).all()
    for name, values in rows.columns.items():
        assert (found.columns[name] == values[order]).all()
    part = shuffled.read(40, 47)
    assert (part.images == found.images[40:47]).all()
    assert len({each.fingerprint() for each in (plain, shuffled, other)}) == 3


def test_failed_rows_move_with_the_order(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "shapes", 12)
    broken = sorted((tmp_path / "shapes").rglob("*.png"))[4]
    broken.write_bytes(b"no image")
    sample = Sample(None, 0, is_shuffled=True)
    source = SourceSpec("shapes", "test", str(tmp_path), sample=sample).open()
    found = source.read(0, source.n_rows)
    (at,) = found.failed
    assert str(found.columns["sample_id"][at]).endswith(broken.name)
    assert not found.images[at].any()


def test_corrupted_images_are_shuffled_within_each_cell(tmp_path: Path) -> None:
    n_images, names = 6, ("fog", "snow")
    for at, name in enumerate(names):
        images = np.arange(5 * n_images) + 100 * at
        cube = np.broadcast_to(images[:, None, None, None], (5 * n_images, 8, 8, 3))
        np.save(tmp_path / f"{name}.npy", cube.astype(np.uint8))
    np.save(tmp_path / "labels.npy", np.tile(np.arange(n_images), 5))
    sample = Sample(None, 1, is_shuffled=True)
    source = SourceSpec(str(tmp_path), "test", str(tmp_path), 8, sample=sample).open()
    values = source.read(0, source.n_rows).images[:, 0, 0, 0].reshape(10, n_images)

    in_order = [100 * (cell // 5) + n_images * (cell % 5) + np.arange(6) for cell in range(10)]
    assert (np.sort(values, axis=1) == in_order).all()
    assert (values != in_order).any()
    assert list(source.read(7, 8).columns["label"]) == [values[1, 1] % n_images]


def test_a_plan_records_a_sample_and_its_images_are_found_again(tmp_path: Path) -> None:
    workspace = Workspace(FeatureStore(str(tmp_path)), str(tmp_path))
    found = {
        (limit, seed, cells, n_rows): facts_of(
            workspace,
            SourceSpec(
                "digits",
                "test",
                str(tmp_path),
                limit=limit,
                cells=cells and cells_of(cells),
                sample=Sample(n_rows, seed, is_shuffled=n_rows is None),
            ),
        )
        for limit, seed, cells, n_rows in (
            (None, 0, (), 9),
            (None, 1, (), 9),
            (50, 0, (), 9),
            (50, 0, ("fog:1",), 9),
            (50, 0, ("fog:1",), None),
        )
    }

    assert len({facts["fingerprint"] for facts in found.values()}) == len(found)
    assert found[50, 0, (), 9]["sample"] == {"of": 50, "seed": 0}
    for facts in found.values():
        assert facts_of(workspace, planned_images(workspace, facts, None)) == facts
