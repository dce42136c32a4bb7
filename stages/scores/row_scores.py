"""Score the rows of a feature set: a map over its shards, or a lazy data frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.executors import Executor
from pipeline.fields import Labelled
from pipeline.make import ShardJob
from pipeline.stage import Preview
from pipeline.terminal import counted
from pipeline.work import ShardOutput, Tick
from stages.errors import InputError
from stages.introspection.contenders import check_contenders, contenders_of, planned_heads
from stages.metrics.definitions import REFERENCE
from stages.scores.asked_scores import Scored, asked_scores, check_asked, column_of, values_of
from store.catalog import FeatureStore
from store.encoding import chunk_key, encode_rows
from store.featureset import FeatureSet
from store.plan import Plan, fingerprint
from store.receipts import INPUTS
from store.schema import Schema
from store.shards import Shard
from store.shardset import ShardSet

if TYPE_CHECKING:
    import dask.dataframe as dd

SCORES = "scores"
"""Kind of the sets, and their folder in the store."""

ARRAYS = ("features", "logits")
"""What scores are computed from."""

JOINING = (("row", "int64"), ("sample_id", "string"))
"""Columns that scores share with the samples."""


@dataclass(frozen=True)
class RowScores:
    """Scores of a feature set by name; every process can open what the names stand for.

    Attributes:
        store: location of the store.
        features: full name of the feature set.
        scores: names of scores, each once.
        heads: label and name of each head.
        training: full name of the features that scores are fitted to.
        training_files: hash of the files of these features; see `ShardSet.content`.
    """

    store: str
    features: str
    scores: tuple[str, ...]
    heads: tuple[tuple[str, str], ...] = ()
    training: str | None = None
    training_files: str | None = None

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1  # raise it when any score changes
    rows: ClassVar[str] = "rows"

    def open(self) -> FeatureSet:
        """The rows to score."""
        return FeatureStore(self.store).open(self.features)

    @property
    def labelled(self) -> list[Labelled]:
        """The heads."""
        return [Labelled(label=label, name=name) for label, name in self.heads]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of scores."""
        labels = (REFERENCE, *(label for label, _ in self.heads))
        return tuple(column_of(label, name) for label in labels for name in self.scores)

    def schema(self, feature_set: FeatureSet) -> Schema:
        """The columns of the set: those of `JOINING` that the features have, and the scores."""
        names = {"row", *(name for name, _ in feature_set.schema.columns)}
        joining = [column for column in JOINING if column[0] in names]
        return Schema((), (*joining, *((name, "float64") for name in self.columns)))

    def plan(self, feature_set: FeatureSet, name: str | None) -> Plan:
        """Everything that determines the scores."""
        theirs = feature_set.plan
        heads = contenders_of(FeatureStore(self.store), feature_set, self.labelled)
        return {
            "name": name or theirs["name"],
            "stage": {
                "name": self.name,
                "version": self.version,
                "params": {"scores": list(self.scores)},
            },
            "inputs": {
                "source": theirs["inputs"]["source"],
                "model": theirs["inputs"]["model"],
                "features": [each for each in (self.features, self.training) if each],
                "heads": planned_heads(heads),
            },
            "schema": self.schema(feature_set).to_json(),
            "n_rows": feature_set.n_rows,
            "shard_rows": theirs["shard_rows"],
        }

    def check(self, plan: Plan) -> None:
        """Raise ``InputError`` if a head or the training rows are no longer the planned ones."""
        store = FeatureStore(self.store)
        training = None if self.training is None else store.open(self.training).shard_set.content()
        now = fingerprint(self.plan(self.open(), plan["name"]))
        if (now, training) != (fingerprint(plan), self.training_files):
            raise InputError(
                f"score {plan['name']}: a head or the training rows were recomputed meanwhile: run "
                "the command again"
            )

    def setup(self, n_threads: int) -> Opened:  # noqa: ARG002 - most scores use one core
        """The rows and the fitted scores."""
        return opened(self)

    def compute(self, state: Opened, shard: Shard, tick: Tick) -> ShardOutput:
        """The scores of a shard, NaN in failed rows."""
        schema, columns = self.schema(state.feature_set), state.columns(shard)
        tick(shard.n_rows)
        facts = {INPUTS: self.inputs(state.feature_set, shard)}
        return ShardOutput(encode_rows(schema, shard, shard.n_rows, {}, columns), facts)

    def inputs(self, feature_set: FeatureSet, shard: Shard) -> list[str]:
        """Checksums of what a shard is computed from, for its receipt; see `why_outdated`."""
        files = feature_set.shard_set.receipt(shard).files
        keys = [chunk_key(feature_set.schema.array(name), shard) for name in ARRAYS]
        fitted = [] if self.training_files is None else [self.training_files]
        return [*(files[key].sha256 for key in keys), *fitted]


def row_scores(
    store: FeatureStore,
    feature_set: FeatureSet,
    names: Sequence[str],
    heads: Sequence[Labelled],
    training: str | None,
) -> RowScores:
    """Scores that are asked for by name. Raises as `check_asked` and `contenders_of`."""
    if isinstance(names, str) or not names:
        raise InputError(f"scores: expected a list of names, such as energy, found {names!r}")
    check_asked(names, training)
    contenders = contenders_of(store, feature_set, heads)
    check_contenders(contenders)
    fitted = None if training is None else store.open(training)
    return RowScores(
        store.location,
        feature_set.name,
        tuple(dict.fromkeys(names)),
        tuple((each.label, each.head.name) for each in contenders),
        None if fitted is None else fitted.name,
        None if fitted is None else fitted.shard_set.content(),
    )


@dataclass(frozen=True)
class Opened:
    """Rows to score, and their scores."""

    feature_set: FeatureSet
    scored: Sequence[Scored]

    def columns(self, shard: Shard) -> dict[str, Any]:  # Any: numpy and Arrow arrays
        """The columns of a shard by name."""
        found = self.feature_set
        values = values_of(self.scored, *(found.read_chunk(name, shard) for name in ARRAYS))
        names = [column for each in self.scored for column in each.columns]
        ids = [name for name, _ in found.schema.columns if name == "sample_id"]
        samples = found.read_samples(shard, ids) if ids else {}
        return {
            "row": np.arange(shard.start, shard.stop),
            **{name: samples[name].combine_chunks() for name in ids},
            **dict(zip(names, values, strict=True)),
        }


def opened(scoring: RowScores) -> Opened:
    """The rows and the scores, fitted once per process; raises as `asked_scores`."""
    with _OPENING:  # threads would fit the same scores at once
        return _opened(scoring, fingerprint(scoring.plan(scoring.open(), None)))


_OPENING = Lock()


@lru_cache(maxsize=1)
def _opened(scoring: RowScores, plan: str) -> Opened:
    del plan  # a head of this name may be trained again
    store, found = FeatureStore(scoring.store), scoring.open()
    training = None if scoring.training is None else store.open(scoring.training)
    return Opened(found, asked_scores(store, found, scoring.scores, training, scoring.labelled))


def row_scores_job(scoring: RowScores, executor: Executor, name: str | None) -> ShardJob:
    """The job that writes scores to the store."""
    store, feature_set = FeatureStore(scoring.store), scoring.open()
    plan = scoring.plan(feature_set, name)
    output_name = f"{plan['name']}-{fingerprint(plan)}"

    def find() -> ShardSet | None:
        found = store.find(plan, SCORES)
        return None if found is None else found.shard_set

    todo = dict(store.preview(plan, SCORES))
    if existing := find():
        again = outdated(scoring, feature_set, existing)
        todo["rows_to_do"] += sum(shard.n_rows for shard in again)
        todo["shards_to_do"] += len(again)

    def fit(n_shards: int) -> Callable[[ShardSet], RowScores]:
        del n_shards
        return lambda _: scoring

    return ShardJob(
        plan,
        f"{SCORES}/{output_name}",
        output_name,
        f"score {plan['name']}",
        _preview(scoring, todo, executor),
        executor,
        find,
        lambda: store.prepare().create(plan, SCORES).shard_set,
        fit,
        check=partial(opened, scoring),
        opened=FeatureSet,
        redo=partial(outdated, scoring, feature_set),
    )


def outdated(scoring: RowScores, feature_set: FeatureSet, existing: ShardSet) -> list[Shard]:
    """Shards that were computed from other features, or fitted to other training rows."""
    shards = [existing.shards[index] for index in sorted(existing.done())]
    return [
        shard
        for shard in shards
        if existing.receipt(shard).inputs != scoring.inputs(feature_set, shard)
    ]


def _preview(scoring: RowScores, todo: Mapping[str, Any], executor: Executor) -> Preview:
    text = (
        f"score {todo['rows_to_do']:,} of {counted(todo['n_rows'], 'row')} by "
        f"{', '.join(scoring.columns)} ({counted(todo['shards_to_do'], 'shard')}) to "
        f"{todo['location']}, with {executor.description}"
    )
    facts = {"columns": list(scoring.columns), "executor": executor.description, "left_out": {}}
    return Preview(text, {**todo, **facts})


def lazy_scores(
    store: FeatureStore,
    features: str,
    scores: Sequence[str],
    *,
    heads: Mapping[str, str] | None = None,
    training: str | None = None,
) -> dd.DataFrame:
    """Scores of a feature set as a lazy Dask data frame, indexed by row.

    It has one partition per shard, so its rows may exceed the memory of a machine. Each process
    that computes partitions, also on another machine that sees the store, fits the scores once.

    Args:
        store: the store.
        features: name of the feature set.
        scores: names of scores, such as ``energy``, ``exgrad`` or ``knn``.
        heads: label -> name of a head, whose scores are in columns such as ``H_energy``.
        training: name of the features that scores such as ``knn`` are fitted to.

    Returns:
        The columns ``row``, ``sample_id`` and one of float64 per score, NaN in failed rows.

    Raises:
        InputError: a score is unknown, none is named, ``training`` is missing or not needed, or a
            head belongs to another network.
        NotFoundError, IncompleteError: a feature set or a head does not exist or is not complete.
    """
    from store.lazy import lazy_frame

    found = store.open(features)
    labelled = [Labelled(label=label, name=name) for label, name in (heads or {}).items()]
    scoring = row_scores(store, found, scores, labelled, training)
    schema = scoring.schema(found).arrow
    shards = found.shard_set.shards
    return lazy_frame(partial(_table, scoring, schema), schema, shards)


def _table(scoring: RowScores, schema: pa.Schema, shard: Shard) -> pa.Table:
    columns = opened(scoring).columns(shard)
    return pa.table([columns[name] for name in schema.names], schema=schema)
