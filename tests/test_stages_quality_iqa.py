"""The stages iqa and train-quality: data sets, tables and corruptions, resuming, and refusals."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Refusal
from made import make_in
from PIL import Image
from quality_pairs import (
    noisy,
    photograph,
    save,
    write_csiq,
    write_kadid10k,
    write_live_md,
    write_tid2013,
)
from safetensors.numpy import save as encoded_arrays

from pipeline.errors import RunFailedError
from stages.contents import contents
from stages.errors import DataNotFoundError, InputError
from stages.metrics.agreement import spearman
from stages.quality.autoencoder_files import WEIGHTS_KEY, content_of, decoded_weights
from stages.quality.iqa import Iqa
from stages.quality.opinion_sets import opinion_set
from stages.quality.pairs import Pairs
from stages.quality.quality_result import QualityCard, read_table
from stages.quality.train_quality import TrainQuality
from stages.report.report import Report
from store.catalog import FeatureStore


@pytest.fixture(scope="module")
def tid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tid2013(tmp_path_factory.mktemp("data") / "tid2013")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"w1": (9, 192), "b1": (9,), "w2": (192, 9), "b2": (192,)}
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    path.write_bytes(
        encoded_arrays({name: rng.normal(size=shape) * 0.3 for name, shape in shapes.items()})
    )
    return path


@pytest.fixture(scope="module")
def done(
    tid: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FeatureStore, str]:
    """A store with the result of TID2013 by all measures that fit its small images."""
    store = FeatureStore(str(tmp_path_factory.mktemp("quality") / "store")).prepare()
    stage = Iqa(
        dataset=str(tid),
        measures=("psnr", "ssim", "unique", "introspective-unique"),
        reading=("paper_w1", "surprisal_w2"),
        weights=str(weights),
        resamples=0,
        shard_pairs=4,
    )
    return store, make_in(store, stage).name


def scores_of(store: FeatureStore, name: str) -> pd.DataFrame:
    card = QualityCard.of(store.artifact("result", name))
    return store.open(card.scores, "quality").samples()


# Data sets in their published layouts


def test_tid2013_is_read_with_names_in_any_case(tid: Path) -> None:
    found = opinion_set(tid)
    assert (found.name, len(found.pairs)) == ("tid2013", 10)
    assert found.references == ("reference_images/I01.BMP", "reference_images/i02.bmp")
    pair = found.pairs[2]
    assert (pair.distorted, pair.mos) == ("distorted_images/i01_01_3.bmp", 3.1)
    assert (pair.std, pair.distortion, pair.level) == (0.13, "01", 3)
    assert all((tid / name).is_file() for name in found.files())


def test_live_md_has_both_parts_and_the_deviation_over_subjects(tmp_path: Path) -> None:
    found = opinion_set(write_live_md(tmp_path))
    assert [pair.reference for pair in found.pairs[:3]] == [
        "Part 1/blurjpeg/a.bmp",
        "Part 1/blurjpeg/b.bmp",
        "Part 1/blurjpeg/b.bmp",
    ]
    assert [pair.mos for pair in found.pairs] == [13, 26, 39] * 2
    # Subjects gave 10, 12, 14 and 16: a variance of (9 + 1 + 1 + 9) / 3.
    assert found.pairs[0].std == pytest.approx((20 / 3) ** 0.5)
    assert {pair.distortion for pair in found.pairs} == {"blur and JPEG", "blur and noise"}


def test_csiq_is_read_from_its_workbook(tmp_path: Path) -> None:
    first, second = opinion_set(write_csiq(tmp_path)).pairs
    assert (first.reference, first.distorted) == (
        "src_imgs/1600.png",
        "dst_imgs/awgn/1600.AWGN.1.png",
    )
    assert (first.mos, first.std) == (0.062, 0.061)
    assert (second.distortion, second.level) == ("jpeg 2000", 2)
    assert second.distorted == "dst_imgs/jpeg2000/1600.jpeg2000.2.png"


def test_kadid10k_has_variances(tmp_path: Path) -> None:
    first, _ = opinion_set(write_kadid10k(tmp_path)).pairs
    assert (first.reference, first.distorted) == ("images/I01.png", "images/I01_07_01.png")
    assert (first.mos, first.std) == (4.57, pytest.approx(0.7))
    assert (first.distortion, first.level) == ("07", 1)


LISTS = {
    "mos_std.txt has 3 values and mos_with_names.txt 10": ("mos_std.txt", "0.1\n" * 3),
    "mos.txt has 11 values": ("mos.txt", "1\n" * 11),
    "line 1 is 'nonsense'": ("mos_with_names.txt", "nonsense\n"),
    "expected a finite number": ("mos_std.txt", "0.1\n" * 9 + "nan\n"),
}


@pytest.mark.parametrize("message", LISTS)
def test_a_list_that_does_not_fit_is_refused_and_nothing_is_written(
    tid: Path, tmp_path: Path, refused: Refusal, message: str
) -> None:
    name, text = LISTS[message]
    shutil.copytree(tid, tmp_path / "tid")
    (tmp_path / "tid" / name).write_text(text)
    assert message in refused("iqa", "--dataset", "tid")


def test_a_folder_in_no_known_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"expected TID2013 .* use --pairs"):
        opinion_set(tmp_path)
    with pytest.raises(DataNotFoundError, match="no such folder"):
        opinion_set(tmp_path / "nowhere")


# Scores and results


def test_a_result_has_scores_of_every_pair(done: tuple[FeatureStore, str]) -> None:
    frame = scores_of(*done)
    assert len(frame) == 10
    assert set(frame["status"]) == {"ok"}
    for measure in ("psnr", "ssim", "unique", "paper_w1", "surprisal_w2"):
        first = frame[frame["reference"] == "reference_images/I01.BMP"]
        assert spearman(first["level"].to_numpy(float), first[measure].to_numpy()) < -0.8


def test_scores_that_follow_the_opinions_agree_with_them(done: tuple[FeatureStore, str]) -> None:
    store, name = done
    rows = read_table(store.artifact("result", name), "agreement")
    psnr = rows[(rows["measure"] == "psnr") & (rows["start"] == "multistart")]
    values = psnr.set_index("metric")["value"]
    assert values["srcc"] > 0.9
    assert values["plcc"] > 0.95
    assert set(rows["n_pairs"]) == {10}


def test_the_same_command_computes_nothing_again(
    done: tuple[FeatureStore, str], tid: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, name = done
    stage = Iqa(
        dataset=str(tid),
        measures=("psnr", "ssim", "unique", "introspective-unique"),
        reading=("paper_w1", "surprisal_w2"),
        weights=str(weights),
        resamples=0,
        shard_pairs=4,
    )
    monkeypatch.setattr("stages.quality.scoring.Scoring.compute", None)
    assert make_in(store, stage).name == name
    other = stage.model_copy(update={"seed": 1})  # another result of the same scores
    made = make_in(store, other)
    assert made.name != name
    assert (
        QualityCard.of(made.output).scores == QualityCard.of(store.artifact("result", name)).scores
    )


def test_shards_do_not_change_scores(
    done: tuple[FeatureStore, str], tid: Path, store: FeatureStore
) -> None:
    made = make_in(store, Iqa(dataset=str(tid), resamples=0, shard_pairs=64))
    columns = ["sample_id", "psnr", "ssim"]
    pd.testing.assert_frame_equal(scores_of(store, made.name)[columns], scores_of(*done)[columns])


def test_an_interrupted_run_computes_only_the_missing_shards(
    tid: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.quality.scoring import Scoring

    computed, compute = [], Scoring.compute

    def failing(self: Scoring, state: object, shard: object, tick: Callable[[int], None]) -> object:
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(shard)
        return compute(self, state, shard, tick)  # type: ignore[arg-type]  # passed through

    stage = Iqa(dataset=str(tid), measures=("psnr",), resamples=0, shard_pairs=3)
    monkeypatch.setattr(Scoring, "compute", failing)
    with pytest.raises(KeyboardInterrupt):
        make_in(store, stage)
    (row,) = [each for each in contents(store) if each["kind"] == "quality"]
    assert (row["state"], row["progress"]) == ("partial", "2 of 4 shards")
    computed.clear()
    make_in(store, stage)
    assert len(computed) == 2


def write_pairs(folder: Path, rows: list[str], header: str = "reference,distorted,mos") -> Path:
    image = photograph(0)
    save(folder / "clean.png", image)
    for level in range(1, 9):
        save(folder / f"noisy-{level}.png", noisy(image, level))
    path = folder / "pairs.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_pairs_that_cannot_be_compared_are_failed_rows_with_a_reason(
    tmp_path: Path, store: FeatureStore, weights: Path
) -> None:
    broken = ["broken.png", "missing.png", "wide.png", "flat.png", "deep.png", "nul\0.png"]
    rows = [f"clean.png,{name},1" for name in broken]
    rows += [f"clean.png,noisy-{level}.png,{9 - level}" for level in range(1, 9)]
    rows += ["nowhere.png,noisy-1.png,3", "tiny.png,tiny.png,5"]
    path = write_pairs(tmp_path, rows)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    save(tmp_path / "wide.png", photograph(0, (64, 72)))
    save(tmp_path / "flat.png", np.full((64, 64, 3), 7, np.uint8))
    Image.fromarray(np.full((64, 64), 9, np.uint16)).save(tmp_path / "deep.png")
    save(tmp_path / "tiny.png", photograph(0, (12, 12)))
    made = make_in(
        store, Iqa(pairs=str(path), measures=("psnr", "unique"), weights=str(weights), resamples=0)
    )
    frame = scores_of(store, made.name).set_index("distorted")

    for name, reason in {
        "broken.png": "distorted image cannot be read",
        "missing.png": "distorted image missing.png does not exist",
        "wide.png": "64x72 pixels, expected 64x64, the size of its reference",
        "flat.png": "unique: all its patches are equal",
        "tiny.png": "unique: 6x6 pixels at half size",
        "deep.png": "more than 8 bits a channel",
        "nul\0.png": "embedded null byte",
    }.items():
        assert reason in frame.loc[name, "status"], name
    assert "reference nowhere.png does not exist" in frame["status"].iloc[14]
    assert np.isfinite(frame.loc["flat.png", "psnr"])
    assert np.isnan(frame.loc["flat.png", "unique"])
    assert QualityCard.of(made.output).n_failed == 8
    counts = read_table(made.output, "agreement").groupby("measure")["n_pairs"].first()
    assert counts.to_dict() == {"psnr": 9, "unique": 8}  # 8 and flat.png; equal images are infinite


def test_too_many_failed_pairs_are_refused_until_they_are_accepted(
    tmp_path: Path, store: FeatureStore
) -> None:
    rows = ["clean.png,noisy-1.png,5"] + [f"clean.png,gone-{at}.png,1" for at in range(11)]
    path = write_pairs(tmp_path, rows)
    stage = Iqa(pairs=str(path), resamples=0)
    with pytest.raises(RunFailedError, match=r"11 of 12 rows failed.*does not exist"):
        make_in(store, stage)
    assert not [found for found in store.artifacts("result") if found.is_complete()]
    with pytest.raises(RunFailedError, match="11 of 12 rows failed"):
        make_in(store, stage.model_copy(update={"retry_failed": True}))
    made = make_in(store, stage.model_copy(update={"accept_failed": True}))
    assert QualityCard.of(made.output).n_failed == 11
    with pytest.raises(InputError, match="was made without the failed pairs"):
        make_in(store, stage.model_copy(update={"retry_failed": True}))


def test_pairs_without_opinions_are_scored(tmp_path: Path, store: FeatureStore) -> None:
    path = write_pairs(tmp_path, ["clean.png,noisy-1.png"], "reference,distorted")
    made = make_in(store, Iqa(pairs=str(path)))
    assert len(read_table(made.output, "agreement")) == 0
    assert read_table(made.output, "pairs")["psnr"].iloc[0] > 20


MANIFESTS = {
    "found no distorted": ("reference,image", "a.png,b.png"),
    "row 1 has mos 'good', expected a finite number": (
        "reference,distorted,mos",
        "a.png,b.png,good",
    ),
    "row 1 has no distorted, expected a path": ("reference,distorted,mos", "a.png,,1"),
    "pairs 1 and 2 are the same, a.png and b.png": ("reference,distorted", "a.png,b.png\n" * 2),
    "a.png and b.png, has a standard deviation of -1": (
        "reference,distorted,std",
        "a.png,b.png,-1",
    ),
    "level 1.5, expected a whole number": ("reference,distorted,level", "a.png,b.png,1.5"),
    "level 1e+300, expected a whole number": ("reference,distorted,level", "a.png,b.png,1e300"),
    "pairs.csv: expected a pair per row": ("reference,distorted", ""),
}


@pytest.mark.parametrize("message", MANIFESTS)
def test_a_table_of_another_form_is_refused(tmp_path: Path, refused: Refusal, message: str) -> None:
    header, row = MANIFESTS[message]
    (tmp_path / "pairs.csv").write_text(f"{header}\n{row}\n")
    assert message in refused("iqa", "--pairs", "pairs.csv")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "expected one of --dataset, --pairs and --references"),
        ("--references .", "expected --references and --corrupt together"),
        ("--pairs p.csv --measure unique", "need an autoencoder: give its --weights"),
        ("--pairs p.csv --weights w.mat", "have no effect without the measure unique"),
        ("--pairs p.csv --measure fsim", "expected one of psnr, ssim"),
        ("--pairs nowhere.csv", "no such file"),
        ("--pairs folder.csv", "expected a regular file, found a folder"),
        ("--dataset nowhere", "no such folder"),
        ("--pairs p.csv --measure unique --weights no.mat", "weights no.mat: no such file"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, refused: Refusal, words: str, message: str
) -> None:
    (tmp_path / "p.csv").write_text("reference,distorted\na.png,b.png\n")
    (tmp_path / "folder.csv").mkdir()
    found = refused("iqa", *words.split())
    assert message in found.replace(f"{tmp_path}/", "")


def test_corrupted_photographs_are_those_of_extract(tmp_path: Path, store: FeatureStore) -> None:
    from stages.data.corruptions.cells import cells_of
    from stages.data.registry import SourceSpec
    from stages.data.resize import Resize
    from stages.quality.measures import MEASURES, View

    for seed in (0, 1):
        save(tmp_path / "photos" / f"{seed}.png", photograph(seed, (48, 48)))
    stage = Iqa(
        references=str(tmp_path / "photos"),
        corrupt=("gaussian_noise", "contrast"),
        corruption_seed=3,
        resamples=0,
    )
    made = make_in(store, stage)
    frame = scores_of(store, made.name)
    assert len(frame) == 20
    assert frame["sample_id"].iloc[1] == "contrast/1/1.png"
    source = SourceSpec(
        str(tmp_path / "photos"),
        "test",
        "",
        image_size=Resize((48, 48)),
        cells=cells_of(["gaussian_noise", "contrast"], 3),
    ).open()
    row = 17  # gaussian noise of severity 4, the second image
    corrupted = source.read(row, row + 1).images[0]
    views = View(photograph(1, (48, 48))), View(corrupted)
    assert frame["psnr"].iloc[row] == pytest.approx(MEASURES["psnr"].compare(*views, None))
    monotony = read_table(made.output, "monotony").set_index(["measure", "distortion"])
    assert monotony.loc[("psnr", "gaussian_noise"), "monotony"] == pytest.approx(1)
    assert monotony.loc[("psnr", "contrast"), "always_falls"] == 1


def test_a_changed_image_is_another_plan(tmp_path: Path, store: FeatureStore) -> None:
    path = write_pairs(tmp_path, ["clean.png,noisy-1.png,5"])
    first = make_in(store, Iqa(pairs=str(path), resamples=0)).name
    save(tmp_path / "noisy-1.png", noisy(photograph(0), 5))
    assert make_in(store, Iqa(pairs=str(path), resamples=0)).name != first


# Training


def test_training_makes_a_quality_model_that_iqa_uses(tid: Path, store: FeatureStore) -> None:
    images = tid / "reference_images"
    (images / "broken.png").write_bytes(b"no image")
    try:
        made = make_in(
            store,
            TrainQuality(images=str(images), name="own", patches=60, hidden=16, iterations=5),
        )
    finally:
        (images / "broken.png").unlink()
    card = made.output.card()
    assert (card["n_images"], card["n_left_out"], card["n_patches"]) == (2, 1, 120)
    model = decoded_weights(made.output.read(WEIGHTS_KEY), "own")
    assert model.w1.shape == (16, 192)
    assert card["weights_content"] == content_of(model)
    stage = Iqa(
        dataset=str(tid), measures=("unique", "introspective-unique"), model="own", resamples=0
    )
    frame = scores_of(store, make_in(store, stage).name)
    assert frame["unique"].between(0, 1).all()
    assert {row["kind"] for row in contents(store)} == {"quality", "quality-model", "result"}


def test_a_folder_without_photographs_is_refused(tmp_path: Path, store: FeatureStore) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected photographs"):
        make_in(store, TrainQuality(images=str(tmp_path / "empty")))
    Image.new("RGB", (4, 4)).save(tmp_path / "empty" / "small.png")
    with pytest.raises(InputError, match="none of 1 images can be read and is at least 8x8"):
        make_in(store, TrainQuality(images=str(tmp_path / "empty")))
    save(tmp_path / "empty" / "flat.png", np.full((16, 16, 3), 7, np.uint8))
    with pytest.raises(InputError, match=r"all 100 patches are equal, expected photographs"):
        make_in(store, TrainQuality(images=str(tmp_path / "empty")))
    with pytest.raises(InputError, match="expected at most 1,048,576: use fewer"):
        make_in(store, TrainQuality(images=str(tmp_path / "empty"), patches=2**20))


# Reports


def test_the_report_shows_agreement_and_monotony(
    done: tuple[FeatureStore, str], tmp_path: Path
) -> None:
    store, name = done
    made = make_in(store, Report(results=[name], out=str(tmp_path / "page")))
    page = (tmp_path / "page" / "report.html").read_text()
    for part in ("Introspective-UNIQUE", "multistart", "srcc", "Monotony", "tid2013", "<svg"):
        assert part in page
    assert "only 2 references" in page
    assert made.output.card()["figures"] == ["quality-scatter", "quality-monotony"]
    assert (tmp_path / "page" / "figures" / "quality-scatter.svg").is_file()


def test_a_report_of_quality_refuses_other_metrics(done: tuple[FeatureStore, str]) -> None:
    store, name = done
    with pytest.raises(InputError, match="has a table of its own"):
        make_in(store, Report(results=[name], metrics=("accuracy",)))


def test_pairs_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected pairs of images, found none"):
        Pairs("x", tmp_path, (), "manifest")


def test_reproduce_table_12_writes_a_report(
    tid: Path, weights: Path, tmp_path: Path, store: FeatureStore
) -> None:
    from stages.recipes.run import Reproduce

    shutil.copytree(tid, tmp_path / "data" / "tid2013")
    write_live_md(tmp_path / "data" / "live-md")
    changes = ("measures=[psnr,introspective-unique]", f"weights={weights}", "resamples=0")
    make_in(store, Reproduce(recipe="table-12", changes=changes), tmp_path / "data")
    results = [QualityCard.of(each) for each in store.artifacts("result")]
    assert {(card.dataset, card.n_pairs) for card in results} == {("tid2013", 10), ("live-md", 6)}
    (report,) = store.artifacts("report")
    page = report.read("report.html").decode()
    assert "Image quality against opinions of people" in page
    assert "live-md" in page
