"""The store as people see it: sets, models and heads by name, with a unique-prefix rule."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.artifacts import Artifact
from store.errors import AmbiguousNameError, FormatError, NotFoundError, WriteError
from store.featureset import FeatureSet, create_feature_set
from store.plan import Plan, differences, fingerprint, readable_json
from store.schema import Schema
from store.shards import shards_of
from store.shardset import PLAN_KEY, ShardSet
from store.storage import LocalStorage

FORMAT = 1
"""Of the layout on disk; a store of a newer one is refused."""

STORE_KEY = "store.json"


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """A folder of feature sets, models, heads, results and journals.

    >>> FeatureStore("store").open("cifar10c@resnet18").array("logits")  # doctest: +SKIP
    """

    location: str

    def __post_init__(self) -> None:
        if "://" in self.location:
            raise FormatError(f"{self.location}: only local folders can hold a store so far")
        object.__setattr__(self, "location", str(Path(self.location).expanduser().absolute()))
        if (found := self._format()) is not None and found > FORMAT:
            raise FormatError(
                f"{self.location} has store format {found}, this intro-pipe reads up to {FORMAT}: "
                "upgrade intro-pipe"
            )

    @property
    def storage(self) -> LocalStorage:
        """The bytes below the store's root."""
        return LocalStorage(self.location)

    def prepare(self) -> "FeatureStore":
        """Make the store where there is none; raises ``WriteError`` where it cannot be written."""
        probe = ".writable"
        if self._format() is None:
            self.storage.create(STORE_KEY, readable_json({"format": FORMAT}))
        self.storage.write(probe, b"")
        self.storage.remove(probe)
        return self

    def create(self, plan: Plan) -> FeatureSet:
        """The feature set of that plan, new or resumed; another plan is another folder."""
        folder = f"features/{plan['name']}-{fingerprint(plan)}"
        return create_feature_set(self.storage.child(folder), plan)

    def find(self, plan: Plan) -> FeatureSet | None:
        """The feature set of that plan if it was begun."""
        storage = self.storage.child(f"features/{plan['name']}-{fingerprint(plan)}")
        if storage.size(PLAN_KEY) is None:
            return None
        return FeatureSet(ShardSet.open(storage))

    def preview(self, plan: Plan) -> dict[str, Any]:
        """What making the set of a plan would still do: rows, shards, bytes, and where."""
        there = self.find(plan)
        shards = shards_of(plan["n_rows"], plan["shard_rows"])
        missing = shards if there is None else there.shard_set.missing()
        row_bytes = sum(spec.row_bytes for spec in Schema.from_json(plan["schema"]).arrays)
        chunk_rows = min(plan["shard_rows"], plan["n_rows"])
        return {
            "location": f"{self.location}/features/{plan['name']}-{fingerprint(plan)}",
            "n_rows": plan["n_rows"],
            "rows_to_do": sum(shard.n_rows for shard in missing),
            "shards_to_do": len(missing),
            "bytes_to_write": len(missing) * chunk_rows * row_bytes,
        }

    def siblings(self, feature_set: FeatureSet) -> list[str]:
        """A line for each other set of the same name, with the fields in which it differs."""
        return [
            f"note: {other.name} is another set of this name; it differs in "
            + "; ".join(list(differences(feature_set.plan, other.plan))[:4])
            for other in self.feature_sets()
            if other.plan["name"] == feature_set.plan["name"] and other.name != feature_set.name
        ]

    def feature_sets(self) -> Iterator[FeatureSet]:
        """Every feature set, complete or not, by name."""
        for folder in self._folders("features"):
            yield FeatureSet(ShardSet.open(self.storage.child(f"features/{folder}")))

    def open(self, name: str) -> FeatureSet:
        """The complete feature set that answers to ``name``.

        ``cifar10c@resnet18``, ``cifar10c-test@resnet18`` or ``cifar10c-test@resnet18-1f2e``: the
        split may be left out, the fingerprint cut short, as long as one set answers. Raises
        ``NotFoundError``, ``AmbiguousNameError`` or ``IncompleteError``.
        """
        return self.resolve(name).require_complete()

    def resolve(self, name: str) -> FeatureSet:
        """Like ``open``, for sets that may be incomplete."""
        sets = tuple(self.feature_sets())
        matches = [found for found in sets if _answers(found, name)]
        if len(matches) == 1:
            return matches[0]
        if not matches:
            there = ", ".join(found.name for found in sets) or "none yet"
            raise NotFoundError(
                f"no feature set '{name}' in {self.location} (there: {there}): "
                "`intro-pipe extract` makes one"
            )
        raise AmbiguousNameError(_ambiguous(name, matches))

    def artifact(self, kind: str, name: str) -> Artifact:
        """The model, head or result of that name; it need not exist."""
        if not name or "/" in name or name.startswith("."):
            raise FormatError(
                f"'{name}' cannot be the name of a {kind}: use letters, digits, - and _"
            )
        return Artifact(self.storage.child(f"{kind}s/{name}"), kind)

    def artifacts(self, kind: str) -> tuple[Artifact, ...]:
        """Every model, head or result, finished or not, by name."""
        return tuple(self.artifact(kind, name) for name in self._folders(f"{kind}s"))

    def _folders(self, below: str) -> list[str]:
        top = Path(self.location, below)
        if not top.is_dir():
            return []
        return sorted(path.name for path in top.iterdir() if (path / PLAN_KEY).is_file())

    def _format(self) -> int | None:
        try:
            content: dict[str, Any] = json.loads(self.storage.read(STORE_KEY))
            return int(content["format"])
        except NotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{self.location}/{STORE_KEY} does not name a store format: is this a store?"
            ) from error
        except OSError as error:
            raise WriteError(f"{self.location} cannot be read: {error.strerror}") from error


def _answers(found: FeatureSet, name: str) -> bool:
    if found.name.startswith(name) and name.startswith(str(found.plan["name"])):
        return True
    inputs = found.plan["inputs"]
    return name == f"{inputs['source']['name']}@{inputs['model']['name']}"


def _ambiguous(name: str, matches: Sequence[FeatureSet]) -> str:
    first, second = matches[:2]
    fields = "; ".join(list(differences(first.plan, second.plan))[:4])
    names = ", ".join(found.name for found in matches)
    return f"'{name}' may be any of {names} (they differ in {fields}): write one of these names"
