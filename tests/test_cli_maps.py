"""Draw and evaluate stored maps of digits: sheets, numbers, and what is refused."""

import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import Command, Refusal
from made import make_in
from small_data import write_image_folder, write_npz_set

from pipeline.errors import RunFailedError
from pipeline.workspace import Workspace
from stages.errors import InputError
from stages.explanation.draw_maps import DrawMaps
from stages.explanation.evaluate_maps import EvaluateMaps, MapsCard
from stages.explanation.explain import Explain
from stages.explanation.faithfulness import MEASURES
from stages.explanation.stored_maps import StoredMaps, open_maps
from stages.explanation.tested_maps import (
    Trial,
    faithfulness_by_row,
    faithfulness_means,
    sanity_by_row,
    trial_of,
)
from stages.introspection.fit_temperature import FitTemperature
from stages.reflection.extract import Extract
from stages.sensing.models import weights_path
from stages.sensing.train_sensing import TrainSensing
from store.catalog import FeatureStore
from store.encoding import chunk_key, encode_chunk

N_ROWS = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a network of digits, a head, and maps of some rows."""
    folder = tmp_path_factory.mktemp("home")
    data = str(write_npz_set(folder / "digits", 300, 20))
    store = FeatureStore(str(folder / "store")).prepare()
    make_in(store, TrainSensing(dataset=data, preset="quick", name="cnn2", epochs=4))
    found = make_in(store, Extract(dataset=data, split="test", model="cnn2"))
    make_in(store, FitTemperature(features=found.name, name="h"))
    rows = tuple(map(str, range(2, 2 + N_ROWS)))
    methods = ("grad-cam", "counterfactual-cam", "contrast-cam", "voice")
    make_in(
        store,
        Explain(
            features=found.name, method=methods, rows=rows, head="h", dataset=data, name="found"
        ),
    )
    return folder


@pytest.fixture(scope="module")
def stored(home: Path) -> StoredMaps:
    workspace = Workspace(FeatureStore(str(home / "store")), "")
    return open_maps(workspace, "found", str(home / "digits"))


@pytest.fixture(scope="module")
def trial(home: Path, stored: StoredMaps) -> Trial:
    weights = weights_path(FeatureStore(str(home / "store")), "cnn2")
    return trial_of(stored, weights, "cpu", n_steps=4, seed=0)


@pytest.fixture(scope="module")
def sheet(home: Path) -> str:
    stage = DrawMaps(maps="found", rows=4, dataset=str(home / "digits"), out=str(home / "out"))
    make_in(FeatureStore(str(home / "store")), stage)
    return (home / "out" / "sheet.html").read_text()


def test_a_sheet_has_the_image_and_every_map_of_each_row(sheet: str, home: Path) -> None:
    assert sheet.count("<article>") == 4
    assert sheet.count("<img ") == 4 * 5
    assert all(re.findall(r'<img [^>]*alt="[^"]+"', sheet))
    assert (home / "out" / "sheet-1.png").read_bytes().startswith(b"\x89PNG")


def test_a_sheet_says_the_label_the_predictions_and_the_questions(sheet: str) -> None:
    assert len(re.findall(r"<p>label: \d</p>", sheet)) == 4
    assert len(re.findall(r"<p>f: \d (\.\d\d|1\.0|&gt;\.99)</p>", sheet)) == 4
    assert len(re.findall(r"<p>H: \d (\.\d\d|1\.0|&gt;\.99)</p>", sheet)) == 4
    for question in (r"Why \d\?", r"What if not \d\?", r"Why \d, rather than \d\?"):
        assert len(re.findall(f"<b>{question}</b>", sheet)) == 4


def test_the_score_of_an_unchanged_image_is_the_stored_probability(
    stored: StoredMaps, trial: Trial
) -> None:
    rows = stored.spaced_rows(None)
    found = faithfulness_by_row(trial, stored, rows, lambda _: None)
    (block,) = stored.blocks(rows)
    of_map = {number: found[found["map"] == number].set_index("row") for number in range(3)}

    p, q = block.probabilities[:, 0], block.probabilities[:, 2]
    for number, expected in enumerate((p, 1 - p, p / (p + q))):
        mine = of_map[number]
        assert len(mine) > 0
        assert mine["score"].to_numpy() == pytest.approx(expected[mine.index], abs=1e-5)


def test_the_measures_of_noise_do_not_depend_on_the_maps(stored: StoredMaps, trial: Trial) -> None:
    some = faithfulness_by_row(trial, stored, stored.spaced_rows(3), lambda _: None)
    every = faithfulness_by_row(trial, stored, stored.spaced_rows(None), lambda _: None)
    both = some.merge(every, on=["row", "map"], suffixes=("", "_again"))

    assert len(both) == len(some)
    for name in MEASURES:
        assert both[f"random_{name}"].to_numpy() == pytest.approx(
            both[f"random_{name}_again"].to_numpy(), abs=1e-5
        )


def test_maps_of_the_network_itself_are_the_stored_ones(stored: StoredMaps, trial: Trial) -> None:
    rows = stored.spaced_rows(None)

    found = sanity_by_row(trial, stored, rows, lambda _: None, n_randomised=[0])

    assert len(found) == 4 * N_ROWS
    assert (found["rank_correlation"].dropna() > 0.999).all()
    assert (found["ssim"] > 0.999).all()


def test_maps_change_when_layers_are_randomised(stored: StoredMaps, trial: Trial) -> None:
    found = sanity_by_row(trial, stored, stored.spaced_rows(None), lambda _: None)

    assert found.loc[found["share"] == 1, "rank_correlation"].mean() < 0.8


def test_a_contrast_map_whose_q_is_p_claims_nothing(home: Path, trial: Trial) -> None:
    store, data = FeatureStore(str(home / "store")), str(home / "digits")
    theirs = store.open("digits-test@cnn2").samples()["prediction"].tolist()
    options = {"features": "digits-test@cnn2", "dataset": data, "name": "same"}
    options |= {"method": ("grad-cam", "contrast-cam"), "contrast": str(theirs[0])}
    make_in(store, Explain(**options, rows=tuple(map(str, range(N_ROWS)))))
    same = open_maps(Workspace(store, ""), "same", data)
    is_q = {row for row in range(N_ROWS) if theirs[row] == theirs[0]}

    found = faithfulness_by_row(trial, same, same.spaced_rows(None), lambda _: None)

    assert 0 < len(is_q) < N_ROWS
    assert not set(found.loc[found["map"] == 1, "row"]) & is_q
    assert is_q <= set(found.loc[found["map"] == 0, "row"])


def test_rows_of_maps_that_are_zero_are_counted_and_left_out() -> None:
    rows = pd.DataFrame({"row": [0, 2], "map": [0, 0]})
    rows = rows.assign(**{f"{kind}{name}": 0.5 for kind in ("", "random_") for name in MEASURES})

    found = faithfulness_means(rows, 5, 1)

    assert set(found["n_rows"]) == {2}
    assert set(found["n_empty"]) == {3}


def test_an_image_that_can_no_longer_be_read_is_named(home: Path, tmp_path: Path) -> None:
    """In a data set whose hash is of a part of the files, a damaged one may be found only then."""
    store = FeatureStore(str(home / "store"))
    photos = write_image_folder(tmp_path / "digits", 4) / "test"  # without labels
    features = make_in(store, Extract(dataset=str(photos), model="cnn2")).output
    make_in(store, Explain(features=features.name, dataset=str(photos), name="photos"))
    stored = open_maps(Workspace(store, ""), "photos", str(photos))
    (damaged, *_) = sorted(photos.rglob("*.png"))
    damaged.write_bytes(damaged.read_bytes()[:40])

    with pytest.raises(InputError, match=r"image of row 0 .* cannot be read now .*: restore"):
        next(stored.blocks(stored.spaced_rows(None)))


def test_explain_draws_a_sheet_too(home: Path, intro_pipe: Command) -> None:
    out = home / "drawn"
    (out / "sheet-2.png").parent.mkdir()
    for name in ("sheet-2.png", "sheet-3.png", "notes.txt"):
        (out / name).write_text("of an earlier sheet, or another program")
    places = f"--dataset {home}/digits --store {home}/store"
    command = f"explain --features digits-test@cnn2 --top 3 --name three {places}"

    printed, _ = intro_pipe(command)
    drawn, _ = intro_pipe(f"{command} --out {out}")

    (name,) = re.findall(r"--maps (three-\w+) --out sheet", printed)
    assert f"intro-pipe draw-maps --maps {name} --out sheet {places}" in printed
    assert f"sheet: {out}/sheet.html" in drawn
    assert "its shard exists already" in drawn
    assert (out / "sheet.html").read_text().count("<article>") == 3
    assert sorted(each.name for each in out.iterdir()) == ["notes.txt", "sheet-1.png", "sheet.html"]


def test_failed_rows_are_recomputed_or_accepted(home: Path, intro_pipe: Command) -> None:
    store = FeatureStore(str(home / "store"))
    with pytest.raises(RunFailedError, match="11 of 12 rows failed"):  # a set may have 10
        maps_of_other_logits(home, list(range(11)), 12)
    (found,) = (each for each in store.sets("maps") if each.name.startswith("others-11"))
    features = found.plan["inputs"]["features"]
    command = f"explain --features {features} --dataset {home}/digits --store {home}/store"

    accepted, _ = intro_pipe(f"{command} --name others-11 --accept-failed")
    retried, _ = intro_pipe(f"{command} --name others-11 --retry-failed")

    assert "11 of 12 rows failed" in accepted
    assert "--retry-failed" in accepted
    assert "failed" not in retried
    assert (store.open("others-11", "maps").samples()["status"] == "ok").all()


def test_the_command_prints_a_line_for_each_map_that_claims_something(
    home: Path, intro_pipe: Command
) -> None:
    command = f"evaluate-maps --maps found --dataset {home}/digits --steps 3 --store {home}/store"
    printed, _ = intro_pipe(command)
    again, _ = intro_pipe(command)

    assert printed == again
    for name in ("grad-cam", "counterfactual-cam", "contrast-cam, runner-up"):
        assert len(re.findall(rf"^{name} ", printed, re.MULTILINE)) == 2
    assert len(re.findall("^voice", printed, re.MULTILINE)) == 1  # of the sanity check alone


def test_the_report_of_an_evaluation_shows_both_tables(home: Path, intro_pipe: Command) -> None:
    store = FeatureStore(str(home / "store"))
    stage = EvaluateMaps(maps="found", steps=3, dataset=str(home / "digits"), name="judged-maps")
    result = make_in(store, stage).output
    intro_pipe(f"report judged-maps --out {home}/page --store {home}/store")
    page = (home / "page" / "report.html").read_text()
    table = pd.read_csv(home / "page" / "table.csv")
    average = result.read_frame("average.parquet")

    assert "Sanity check" in page
    assert table["mean"].to_numpy() == pytest.approx(average["mean"].to_numpy())
    assert MapsCard.of(result).rows == N_ROWS


@pytest.mark.parametrize("verb", ["draw-maps", "evaluate-maps"])
def test_missing_maps_are_refused_in_one_line(home: Path, refused: Refusal, verb: str) -> None:
    error = refused(verb, "--maps", "nothing", "--store", str(home / "store"))

    assert error.count("\n") == 1
    assert "no maps 'nothing'" in error


def maps_of_other_logits(home: Path, rows: list[int], n_rows: int, **options: object) -> str:
    """Maps of the first rows, of which some fail: their stored logits are those of others."""
    store, data = FeatureStore(str(home / "store")), str(home / "digits")
    stage = Extract(dataset=data, split="train", model="cnn2", limit=n_rows)
    features = make_in(store, stage).output
    spec, (shard,) = features.schema.array("logits"), features.shard_set.shards
    chunk = home / "store" / "features" / features.name / chunk_key(spec, shard)
    intact = chunk.read_bytes()
    logits = features.read("logits")
    logits[rows] = -logits[rows]
    chunk.write_bytes(encode_chunk(spec, logits, n_rows))
    name = f"others-{len(rows)}"
    try:
        asked = Explain(features=features.name, dataset=data, name=name, **options)
        return str(make_in(store, asked).output.name)
    finally:
        chunk.write_bytes(intact)


def test_maps_of_which_every_row_failed_are_refused(home: Path) -> None:
    name = maps_of_other_logits(home, [0, 1, 2], 3, accept_failed=True)
    store = FeatureStore(str(home / "store"))
    before = store.artifacts("result")

    with pytest.raises(InputError, match="every row failed"):
        make_in(store, DrawMaps(maps=name, dataset=str(home / "digits")))

    assert [each.name for each in store.artifacts("result")] == [each.name for each in before]


@pytest.mark.parametrize(
    ("n_rows", "expected"), [(None, [0, 2, 3, 5]), (2, [0, 3]), (9, [0, 2, 3, 5])]
)
def test_rows_that_failed_are_neither_drawn_nor_tested(
    home: Path, n_rows: int | None, expected: list[int]
) -> None:
    name = maps_of_other_logits(home, [1, 4], 6)

    stored = open_maps(Workspace(FeatureStore(str(home / "store")), ""), name, f"{home}/digits")

    assert stored.spaced_rows(n_rows).tolist() == expected
