"""Feature sets: arrays and sample columns, read by row range, lazily or by condition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from store.encoding import (
    chunk_key,
    decode_chunk,
    metadata_files,
    samples_key,
)
from store.errors import DamagedSetError, FormatError, IncompleteError, NotFoundError
from store.failures import check_failures
from store.plan import Plan
from store.schema import Schema
from store.shards import Shard
from store.shardset import ShardSet
from store.storage import Storage
from store.tables import read_table

if TYPE_CHECKING:
    import dask.array as da
    import dask.dataframe as dd
    import pandas as pd

MAX_SHOWN = 20
"""Values of a column that an error lists."""

VIEWS = "intro_pipe.views"
"""Entry point group of views that need more than the store provides (losses, torch)."""


def create_feature_set(storage: Storage, plan: Plan) -> "FeatureSet":
    """Open the feature set of a plan, creating it with its array metadata if necessary."""
    schema = Schema.from_json(plan["schema"])
    fixed = metadata_files(schema, plan["n_rows"], plan["shard_rows"])
    return FeatureSet(ShardSet.create(storage, plan, fixed))


@dataclass(frozen=True, repr=False)
class FeatureSet:
    """Features and logits of a data set under a network; row ``i`` belongs to sample ``i``.

    Open one with ``FeatureStore.open``. Its arrays, ``features`` ``[n, d]`` and ``logits``
    ``[n, N]``, are float32; its sample columns are ``sample_id``, ``label``, ``prediction``,
    ``confidence``, ``status`` ("ok", or why the row failed) and those of the data set.
    """

    shard_set: ShardSet

    @property
    def plan(self) -> Plan:
        """Everything that determines the rows, such as data set, network and schema."""
        return self.shard_set.plan

    @property
    def name(self) -> str:
        """Name in the store, e.g. ``cifar10c-test@resnet18-1f2e3d4c5b6a``."""
        return f"{self.plan['name']}-{self.fingerprint}"

    @property
    def fingerprint(self) -> str:
        """Hash of the plan."""
        return self.shard_set.fingerprint

    @property
    def n_rows(self) -> int:
        """Number of samples."""
        return self.shard_set.n_rows

    @cached_property
    def schema(self) -> Schema:
        """Arrays and columns."""
        return Schema.from_json(self.plan.get("schema"))

    def check(self) -> None:
        """Raise ``FormatError`` if the plan lacks fields that the store reads.

        A name that matches the plan's hash proves nothing: the author of a store chose both.
        """
        try:
            inputs = self.plan["inputs"]
            names = [self.plan["name"], inputs["source"]["name"], inputs["model"]["name"]]
        except (KeyError, TypeError):
            names = [None]
        if not all(isinstance(name, str) for name in names):
            raise FormatError("expected the names of the set, of its source and of its model")
        _ = self.schema

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        arrays = ", ".join(f"{spec.name} {list(spec.row_shape)}" for spec in self.schema.arrays)
        return f"<FeatureSet {self.name}: {self.n_rows:,} rows of {arrays}>"

    def require_complete(self) -> "FeatureSet":
        """Return the set; raises ``IncompleteError`` with the missing shards and a remedy."""
        if missing := self.shard_set.missing():
            raise IncompleteError(
                f"{self.name} has {len(missing)} of {len(self.shard_set.shards)} shards missing "
                f"(first: {missing[0].index}), expected a complete set"
            )
        return self

    def require_usable(self) -> "FeatureSet":
        """Return the set itself if it is complete and has no more failed rows than allowed.

        Call it before computing anything from the set as a whole. Raises ``IncompleteError``, or
        ``FailedRowsError`` with the reasons and a remedy.
        """
        check_failures(self.require_complete().shard_set)
        return self

    def read_chunk(self, name: str, shard: Shard) -> NDArray[Any]:
        """Rows of one array in one shard, ``[rows, *row_shape]``; raises ``DamagedError``."""
        spec = self.schema.array(name)
        key = chunk_key(spec, shard)
        try:
            data = self.shard_set.storage.read(key)
            return decode_chunk(spec, data, self.shard_set.chunk_rows)[: shard.n_rows]
        except (ValueError, NotFoundError) as error:
            raise self._damaged(key, error) from error

    def read_samples(
        self, shard: Shard, columns: Sequence[str] | None = None, *, is_decoded: bool = True
    ) -> pa.Table:
        """Sample columns of one shard, all or only ``columns``; raises ``DamagedError``.

        Without ``is_decoded``, text stays as `store.tables.read_table` describes.
        """
        key = samples_key(shard)
        planned = self.schema.arrow
        if columns is not None:
            planned = pa.schema([planned.field(name) for name in columns])
        try:
            data = self.shard_set.storage.read(key)
            return read_table(
                data, columns, n_rows=shard.n_rows, expected=planned, is_decoded=is_decoded
            )
        except (pa.ArrowException, ValueError, OSError) as error:
            raise self._damaged(key, error) from error

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read rows ``[start, stop)`` of an array into memory; raises ``IncompleteError``."""
        self.require_complete()
        stop = self.n_rows if stop is None else min(stop, self.n_rows)
        parts = [
            self.read_chunk(name, shard)[max(start - shard.start, 0) : max(stop - shard.start, 0)]
            for shard in self.shard_set.shards
            if shard.start < stop and shard.stop > start
        ]
        spec = self.schema.array(name)
        return np.concatenate(parts) if parts else np.empty((0, *spec.row_shape), spec.dtype)

    def samples(self) -> "pd.DataFrame":
        """Read all sample columns into memory, indexed by row; raises ``IncompleteError``."""
        self.require_complete()
        tables = [self.read_samples(shard) for shard in self.shard_set.shards]
        frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
        return frame

    def array(self, name: str) -> "da.Array":
        """A lazy array ``[n_rows, *row_shape]`` whose chunks are the shards.

        Raises ``IncompleteError``.
        """
        from store.lazy import lazy_array

        shards = self.require_complete().shard_set.shards
        return lazy_array(self.read_chunk, self.schema.array(name), shards)

    def frame(self) -> "dd.DataFrame":
        """The sample columns as a Dask data frame, indexed by row, with one partition per shard.

        Raises ``IncompleteError``.
        """
        from store.lazy import lazy_frame

        shards = self.require_complete().shard_set.shards
        return lazy_frame(self.read_samples, self.schema.arrow, shards)

    def where(self, **conditions: Any) -> "Selection":
        """Select the rows with the given values in the sample columns.

        ``where(corruption="fog", severity=[3, 5])``: a list, range or array matches any of its
        values. Raises ``FormatError`` for an unknown column, and if no row matches.
        """
        columns = [name for name, _ in self.schema.columns]
        if unknown := sorted(conditions.keys() - set(columns)):
            raise FormatError(
                f"{self.name} has no column {', '.join(unknown)}; it has {', '.join(columns)}"
            )
        from pandas.api.types import is_list_like

        frame = self.samples()
        keep = np.ones(len(frame), dtype=bool)
        for column, wanted in conditions.items():
            values = wanted if is_list_like(wanted) else [wanted]
            is_wanted = frame[column].isin(list(values)).to_numpy()
            if not is_wanted.any():
                known = ", ".join(map(str, sorted(frame[column].unique())[:MAX_SHOWN]))
                raise FormatError(
                    f"{self.name}: no row has {column} {wanted}; existing values: {known}"
                )
            keep &= is_wanted
        if not keep.any():
            raise FormatError(f"{self.name}: no row matches all of {conditions}")
        return Selection(self, np.flatnonzero(keep))

    def reflection(self, **choice: Any) -> "da.Array":
        """Lazy introspective features r_x, ``[n_rows, n_classes * width]``.

        The same as ``intro_pipe.reflect(self, **choice)``, which documents the choices.
        """
        return load_view("reflection")(self, **choice)

    def torch_dataset(self, **choice: Any) -> Any:  # Any: a torch IterableDataset
        """Batches for PyTorch; the same as ``intro_pipe.torch_dataset(self, **choice)``."""
        return load_view("torch_dataset")(self, **choice)

    def _damaged(self, key: str, error: Exception) -> DamagedSetError:
        place = f"{self.shard_set.storage.location}/{key}"
        return DamagedSetError(f"{place} is damaged ({error})", self.name)


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Some rows of a feature set, in row order."""

    feature_set: FeatureSet
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<{len(self):,} rows of {self.feature_set!r}>"

    @property
    def plan(self) -> Plan:
        """The plan of the whole set."""
        return self.feature_set.plan

    def array(self, name: str) -> "da.Array":
        """These rows of an array, as a Dask array."""
        return self.feature_set.array(name)[self.rows]

    def frame(self) -> "pd.DataFrame":
        """These rows of the sample columns, in memory."""
        return self.feature_set.samples().iloc[self.rows]

    def reflection(self, **choice: Any) -> "da.Array":
        """Lazy introspective features r_x of these rows; see ``intro_pipe.reflect``."""
        return load_view("reflection")(self, **choice)

    def torch_dataset(self, **choice: Any) -> Any:  # Any: a torch IterableDataset
        """Batches of these rows for PyTorch; see ``intro_pipe.torch_dataset``."""
        return load_view("torch_dataset")(self, **choice)


def load_view(name: str) -> Callable[..., Any]:
    """Load an installed view; views register as entry points, since the store imports no stage."""
    found: Sequence[Any] = tuple(entry_points(group=VIEWS, name=name))
    if not found:
        raise FormatError(f"no view '{name}' is installed: reinstall intro-pipe (pip install -e .)")
    view: Callable[..., Any] = found[0].load()
    return view
