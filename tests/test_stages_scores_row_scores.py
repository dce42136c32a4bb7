"""Scores in the store: their values, joins, resuming, a cluster, and a lazy data frame."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask
import duckdb
import numpy as np
import pandas as pd
import polars
import pytest
from cells import UNREAD, cells, small_head
from conftest import Command
from made import make_in
from nodes import nodes
from numpy.typing import NDArray

from pipeline.activity import costs_of
from pipeline.fields import Labelled
from pipeline.journal import runs
from stages.contents import contents
from stages.errors import InputError
from stages.evaluation.recognition import query
from stages.scores.asked_scores import asked_scores, columns_of_scores, values_of
from stages.scores.row_scores import ARRAYS, lazy_scores, row_scores
from stages.scores.score_rows import ScoreRows
from store.catalog import FeatureStore
from store.encoding import chunk_key, encode_chunk
from store.errors import StoreError
from store.featureset import FeatureSet
from store.verify import verify_feature_set

NAMES = ("energy", "exgrad", "mahalanobis")
HEADS = (Labelled(label="H", name="h"),)
SCORE = ScoreRows(features="shapes@net", scores=NAMES, heads=HEADS, training="train@net")
WORDS = (
    "score --features shapes@net --score energy,exgrad,mahalanobis --head H=h --training train@net"
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store with the rows to score, training rows, a head and the scores."""
    store = FeatureStore(str(tmp_path_factory.mktemp("template") / "store")).prepare()
    cells(store)
    small_head(store, cells(store, "train", n_rows=132))
    make_in(store, SCORE)
    return store


@pytest.fixture
def scored(template: FeatureStore, tmp_path: Path) -> FeatureStore:
    """A copy of it."""
    return FeatureStore(str(shutil.copytree(template.location, tmp_path / "store")))


def expected(store: FeatureStore) -> pd.DataFrame:
    """The same, computed in memory."""
    found = store.open("shapes@net")
    scores = asked_scores(store, found, NAMES, store.open("train@net"), HEADS)
    values = values_of(scores, *map(found.read, ARRAYS))
    ids = {"row": np.arange(84), "sample_id": found.samples()["sample_id"]}
    return pd.DataFrame({**ids, **dict(zip(columns_of_scores(scores), values, strict=True))})


def test_columns_are_the_scores_of_each_row(template: FeatureStore) -> None:
    found = template.open("shapes@net", "scores").samples()

    assert list(found) == ["row", "sample_id", *NAMES, *(f"H_{name}" for name in NAMES)]
    pd.testing.assert_frame_equal(found, expected(template), check_dtype=False)
    assert found.loc[UNREAD, "energy":].isna().all()
    assert found.drop(index=UNREAD).notna().all(axis=None)


def test_duckdb_polars_and_pandas_join_them_to_the_samples(template: FeatureStore) -> None:
    f = template.open("shapes@net").shard_set.storage.location
    s = template.open("shapes@net", "scores").shard_set.storage.location
    samples, scores = (f"{place}/samples" for place in (f, s))
    by_sql = duckdb.sql(
        f"select corruption, avg(energy) from '{samples}/*.parquet' join '{scores}/*.parquet' "
        "using (sample_id) where status = 'ok' group by 1 order by 1"
    ).fetchall()
    frame = pd.read_parquet(samples).merge(pd.read_parquet(scores), on="sample_id")
    by_pandas = frame.groupby("corruption")["energy"].mean()
    frame = polars.read_parquet(samples).join(polars.read_parquet(scores), on="sample_id")
    of_rows = frame.filter(polars.col("status") == "ok").group_by("corruption")
    by_polars = of_rows.agg(polars.mean("energy")).sort("corruption").rows()
    assert len(by_sql) == 2
    for name, mean in (*by_sql, *by_polars):
        assert mean == pytest.approx(by_pandas[name])


def test_a_second_run_computes_what_is_missing_and_what_has_other_features(
    scored: FeatureStore,
) -> None:
    assert make_in(scored, SCORE).report.n_computed == 0
    scores = scored.open("shapes@net", "scores")
    scores.shard_set.storage.remove("receipts/00003.json")
    assert make_in(scored, SCORE).report.n_computed == 1

    recompute(scored.open("shapes@net"), lambda rows: np.nan_to_num(rows, nan=1))
    assert n_outdated(scored) == [1]
    storage = scored.open("shapes@net").shard_set.storage
    receipt = storage.read("receipts/00003.json")
    storage.remove("receipts/00003.json")
    assert n_outdated(scored) == [1]  # the other shards are known to be older
    storage.write("receipts/00003.json", receipt)
    assert make_in(scored, SCORE).report.n_computed == 1
    assert scored.open("shapes@net", "scores").samples().notna().all(axis=None)
    assert n_outdated(scored) == [0]


def n_outdated(store: FeatureStore) -> list[int]:
    """How many shards of each set of scores are out of date, as `ls` says it."""
    details = [row["detail"] for row in contents(store) if row["kind"] == "scores"]
    said = [re.search(r"(\d) shards? computed from features or training rows", d) for d in details]
    return [int(found[1]) if found else 0 for found in said]


def recompute(found: FeatureSet, change: Callable[[NDArray[np.float32]], Any]) -> None:
    """Change the features and logits of the shard with the failed row in place."""
    shard = found.shard_set.shards[UNREAD // 10]
    files = {key: found.shard_set.storage.read(key) for key in found.shard_set.receipt(shard).files}
    for name in ARRAYS:
        spec, rows = found.schema.array(name), change(found.read_chunk(name, shard))
        files[chunk_key(spec, shard)] = encode_chunk(spec, rows, 10)
    found.shard_set.discard([shard], lambda: None)
    found.shard_set.commit(shard, files, {"failed": {}})


def test_scores_are_fitted_again_after_training_rows_were_recomputed(scored: FeatureStore) -> None:
    near = SCORE.model_copy(update={"scores": ("knn",), "heads": ()})
    found = scored.open("shapes@net")
    scoring = row_scores(scored, found, NAMES, HEADS, "train@net")
    make_in(scored, near)
    recompute(scored.open("train@net"), lambda rows: rows * 2)
    assert n_outdated(scored) == [9, 9]

    with pytest.raises(InputError, match="recomputed meanwhile"):
        scoring.check(scoring.plan(found, None))
    for stage in (near, SCORE):  # knn scales rows to length 1: its values remain the same
        made = make_in(scored, stage)
        assert made.job.preview.facts["shards_to_do"] == made.report.n_computed == 9
        assert make_in(scored, stage).report.n_computed == 0
    pd.testing.assert_frame_equal(made.output.samples(), expected(scored), check_dtype=False)


def test_scores_that_are_fitted_to_their_own_rows_are_up_to_date(scored: FeatureStore) -> None:
    near = {"scores": ("knn",), "heads": (), "training": "shapes@net", "name": None}
    make_in(scored, SCORE.model_copy(update=near))
    assert n_outdated(scored) == [0, 0]
    recompute(scored.open("shapes@net"), lambda rows: rows * 2)
    assert sorted(n_outdated(scored)) == [1, 9]  # the first scores read other training rows


def test_they_are_listed_verified_and_stale_without_the_network(
    template: FeatureStore, monkeypatch: pytest.MonkeyPatch, intro_pipe: Command
) -> None:
    monkeypatch.setenv("INTRO_PIPE_STORE", template.location)
    (row,) = [each for each in contents(template) if each["kind"] == "scores"]
    assert (row["state"], row["rows"]) == ("stale", 84)
    assert row["detail"] == "9 of 9 shards; model 'net' was deleted"  # there never was one
    assert list(verify_feature_set(template.open("shapes@net", "scores"))) == []
    said = json.loads(intro_pipe(f"{WORDS} --json")[0])
    assert (said["scores"], said["n_computed"]) == (row["name"], 0)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--score odin", "unknown score 'odin'"),
        ("--score knn", "score knn: expected --training"),
        ("--score energy --training train@net", "--training: none of the scores is fitted"),
        ("--score knn --training shapes@net", "expected at least 50"),
        ("--score energy --head gone", "head 'gone' does not exist"),
    ],
)
def test_what_cannot_be_scored_is_refused_and_nothing_is_written(
    store: FeatureStore,
    monkeypatch: pytest.MonkeyPatch,
    intro_pipe: Command,
    words: str,
    why: str,
) -> None:
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)
    cells(store, n_rows=36)
    cells(store, "train", n_rows=132)
    assert why in intro_pipe(f"score --features shapes@net {words}", 2)[1]
    assert list(store.sets("scores")) == []


def test_a_lazy_frame_has_the_scores_of_f_and_of_heads(template: FeatureStore) -> None:
    frame = lazy_scores(template, "shapes@net", NAMES, heads={"H": "h"}, training="train@net")
    assert frame.npartitions == 9
    with dask.config.set(scheduler="synchronous"):
        pd.testing.assert_frame_equal(frame.compute(), expected(template), check_dtype=False)


@pytest.mark.parametrize(
    ("names", "heads", "why"),
    [
        ([], {}, "expected a list of names"),
        ("energy", {}, "expected a list of names"),
        (["energy"], {"f": "h"}, "found 'f'"),
        (["energy"], {"H": "gone"}, "head 'gone' does not exist"),
    ],
)
def test_a_lazy_frame_of_what_cannot_be_scored_is_refused_at_once(
    template: FeatureStore, names: Sequence[str], heads: dict[str, str], why: str
) -> None:
    with pytest.raises((InputError, StoreError), match=why):
        lazy_scores(template, "shapes@net", names, heads=heads)


def test_no_head_leaves_the_columns_of_f(template: FeatureStore) -> None:
    none, found = [Labelled(label="none", name="none")], template.open("shapes@net")
    assert row_scores(template, found, ["energy"], none, None).columns == ("energy",)


def test_two_processes_compute_the_same_as_a_query(template: FeatureStore) -> None:
    names = ("energy", "exgrad")
    with dask.config.set(scheduler="processes", num_workers=2):
        means = lazy_scores(template, "shapes@net", names)[list(names)].mean().compute()
    found = template.open("shapes@net")
    (row,) = query(found, metrics=(), scores=asked_scores(template, found, names)).rows
    assert means.to_dict() == pytest.approx({name: row[name] for name in names})


@pytest.mark.ray
@pytest.mark.soak
def test_two_nodes_of_a_cluster_write_the_same_scores(scored: FeatureStore) -> None:
    shutil.rmtree(Path(scored.location, "scores"))
    with nodes() as cluster:
        for name in ("a", "b"):
            cluster.add(name, n_cpus=1)  # room for one worker
        words = [*WORDS.split(), "--store", scored.location, "--json", "--workers", "2"]
        ended = subprocess.run(
            [sys.executable, "-m", "cli.app", *words, "--address", cluster.address],
            env=cluster.environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["n_computed"] == 9
    newest = next(each for each in runs(scored.location) if each.verb == "score")
    assert len({row["where"] for row in costs_of(newest.events)}) == 2
    found = scored.open("shapes@net", "scores").samples()
    pd.testing.assert_frame_equal(found, expected(scored), check_dtype=False)
