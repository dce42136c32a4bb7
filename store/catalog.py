"""The store as people see it: sets, models and heads by name, with a unique-prefix rule."""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from store.artifacts import Artifact
from store.disk import spelled_out
from store.errors import (
    AmbiguousNameError,
    DamagedError,
    FormatError,
    NotFoundError,
    StoreError,
    WriteError,
)
from store.featureset import FeatureSet, create_feature_set
from store.plan import Plan, differences, fingerprint, is_plan, read_object, readable_json
from store.schema import Schema
from store.shards import shards_of
from store.shardset import PLAN_KEY, ShardSet
from store.storage import Storage, storage_at

FORMAT = 1
"""Of the layout on disk; a store of a newer one is refused."""

STORE_KEY = "store.json"
FEATURES = "features"
"""Folder of the feature sets."""

ARTIFACT_KINDS = ("model", "head", "result", "report")
"""In the order in which they are made; each has a folder of its own."""

MAX_NAME_BYTES = 200
"""File systems allow 255; fingerprints and the marks of unfinished writes need the rest."""


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """A folder, or a URL, of feature sets, models, heads, results, reports and journals.

    >>> FeatureStore("store").open("cifar10c@resnet18").array("logits")  # doctest: +SKIP
    """

    location: str

    def __post_init__(self) -> None:
        place = str(self.location)  # a Path will do
        if "://" in place:
            place = re.sub("(?<=[^/:])/+$", "", place)
        else:
            place = str(spelled_out(place).absolute())
        object.__setattr__(self, "location", place)
        if (found := self._format()) is not None and found > FORMAT:
            raise FormatError(
                f"{self.location} has store format {found}, this intro-pipe reads up to {FORMAT}: "
                "upgrade intro-pipe"
            )

    @property
    def storage(self) -> Storage:
        """The bytes below the store's root."""
        return storage_at(self.location)

    def require(self) -> "FeatureStore":
        """The store itself; raises ``NotFoundError`` where there is none: a slip of the pen."""
        if self._format() is None:
            if {FEATURES, *(f"{kind}s" for kind in ARTIFACT_KINDS)} & set(self.storage.folders()):
                raise NotFoundError(
                    f"{self.location} has lost its {STORE_KEY}: the next command that computes "
                    "something writes it again, e.g. `intro-pipe extract`"
                )
            raise NotFoundError(
                f"there is no store at {self.location}: --store or INTRO_PIPE_STORE names one, "
                "`intro-pipe extract` makes one"
            )
        return self

    def prepare(self) -> "FeatureStore":
        """Make the store where there is none.

        Raises ``WriteError`` where it cannot be written, or where a key that is taken can be taken
        again: of two drivers one must be refused.
        """
        if self._format() is None:
            self.storage.create(STORE_KEY, store_file())
            if self.storage.create(STORE_KEY, b"again"):
                self.storage.remove(STORE_KEY)
                raise WriteError(
                    errno.ENOTSUP,
                    f"{self.location} cannot hold a store: it writes a key anew although it was to "
                    "refuse that (If-None-Match), and so cannot keep two drivers apart",
                )
        self.storage.drop(self.storage.stage("writable", b""))
        return self

    def create(self, plan: Plan) -> FeatureSet:
        """The feature set of that plan, new or resumed; another plan is another folder.

        The folder is named by the plan's hash: a ``plan.json`` there that says anything else was
        altered, and is written again.
        """
        folder = _folder_of(plan)
        storage = self.storage.child(f"{FEATURES}/{folder}")
        if storage.size(PLAN_KEY) is not None and self._set_in(folder) is None:
            storage.write(PLAN_KEY, readable_json(plan))
        return create_feature_set(storage, plan)

    def find(self, plan: Plan) -> FeatureSet | None:
        """The feature set of that plan if it was begun, and its ``plan.json`` is whole."""
        return self._set_in(_folder_of(plan))

    def preview(self, plan: Plan) -> dict[str, Any]:
        """What making the set of a plan would still do: rows, shards, bytes, and where."""
        there = self.find(plan)
        shards = shards_of(plan["n_rows"], plan["shard_rows"])
        missing = shards if there is None else there.shard_set.missing()
        row_bytes = sum(spec.row_bytes for spec in Schema.from_json(plan["schema"]).arrays)
        chunk_rows = min(plan["shard_rows"], plan["n_rows"])
        return {
            "location": f"{self.location}/{FEATURES}/{_folder_of(plan)}",
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
        """Every feature set, complete or not, by name, but for ``damaged_sets``."""
        for folder in self._folders(FEATURES):
            if (found := self._set_in(folder)) is not None:
                yield found

    def damaged_sets(self) -> list[str]:
        """Names of the feature sets that cannot be opened: ``plan.json`` is lost or altered."""
        return [folder for folder in self.begun(FEATURES) if self._set_in(folder) is None]

    def open(self, name: str) -> FeatureSet:
        """The complete feature set that answers to ``name``.

        ``cifar10c@resnet18``, ``cifar10c-test@resnet18`` or ``cifar10c-test@resnet18-1f2e``: the
        split may be left out, the fingerprint cut short, as long as one set answers. Raises
        ``NotFoundError``, ``AmbiguousNameError``, ``IncompleteError`` or ``DamagedError``.
        """
        return self.resolve(name).require_complete()

    def resolve(self, name: str) -> FeatureSet:
        """Like ``open``, for sets that may be incomplete."""
        sets = tuple(self.feature_sets())
        matches = [found for found in sets if _answers(found, name)]
        if len(matches) == 1:
            return matches[0]
        if not matches:
            if damaged := [folder for folder in self.damaged_sets() if folder.startswith(name)]:
                raise DamagedError(
                    f"{self.location}/{FEATURES}/{damaged[0]}/{PLAN_KEY} is missing or was "
                    "altered: the same extract command writes it again"
                )
            there = ", ".join(found.name for found in sets) or "none yet"
            raise NotFoundError(
                f"no feature set '{name}' in {self.location} (there: {there}): "
                "`intro-pipe extract` makes one"
            )
        raise AmbiguousNameError(_ambiguous(name, matches))

    def artifact(self, kind: str, name: str) -> Artifact:
        """The artifact of that kind and name; it need not exist."""
        return Artifact(self.storage.child(f"{kind}s/{_checked(name, kind)}"), kind)

    def artifacts(self, kind: str) -> tuple[Artifact, ...]:
        """Every artifact of that kind, finished or not, by name."""
        return tuple(self.artifact(kind, name) for name in self._folders(f"{kind}s"))

    def made_by(self, kind: str, plan: Plan) -> list[Artifact]:
        """The artifacts of that plan, whatever they are called, the finished ones first.

        Damaged ones are passed over.
        """
        found = []
        for artifact in self.artifacts(kind):
            with suppress(DamagedError):
                if not any(differences(plan, artifact.plan())):
                    found.append(artifact)
        return sorted(found, key=lambda artifact: not artifact.is_complete())

    def begun(self, below: str) -> list[str]:
        """The names of the folders right below a folder that hold something, a plan or not."""
        names = self.storage.folders(below)
        return [n for n in names if next(self.storage.keys(f"{below}/{n}"), None) is not None]

    def _folders(self, below: str) -> list[str]:
        place = self.storage.child(below)  # it may be a link to another disk, and so may each set
        return [n for n in place.folders() if place.child(n).size(PLAN_KEY) is not None]

    def _set_in(self, folder: str) -> FeatureSet | None:
        """The set of a folder; ``None`` where its plan is not there, or not that of its name."""
        storage = self.storage.child(f"{FEATURES}/{folder}")
        if storage.size(PLAN_KEY) is None:
            return None
        if not is_plan(storage.read(PLAN_KEY), folder.rpartition("-")[2]):
            return None
        try:
            found = FeatureSet(ShardSet.open(storage))
            found.check()
        except FormatError:  # its name fits what it says, but that is no plan
            return None
        return found if found.name == folder else None

    def _format(self) -> int | None:
        try:
            return int(read_object(self.storage.read(STORE_KEY))["format"])
        except NotFoundError:
            return None
        except StoreError:  # no place for a store
            raise
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise FormatError(
                f"{self.location}/{STORE_KEY} does not name a store format: is this a store?"
            ) from error
        except OSError as error:
            raise WriteError(f"{self.location} cannot be read: {error.strerror}") from error


def store_file() -> bytes:
    """What ``store.json`` holds."""
    return readable_json({"format": FORMAT})


def _folder_of(plan: Plan) -> str:
    return f"{_checked(str(plan['name']), 'feature set')}-{fingerprint(plan)}"


def _checked(name: str, kind: str) -> str:
    """The name, if a folder can have it."""
    is_short = len(name.encode(errors="replace")) <= MAX_NAME_BYTES
    if not name or "/" in name or name.startswith(".") or not name.isprintable() or not is_short:
        raise FormatError(
            f"'{name}' cannot be the name of a {kind}: use letters, digits, - and _, "
            f"{MAX_NAME_BYTES} bytes at most"
        )
    return name


def _answers(found: FeatureSet, name: str) -> bool:
    whole, inputs = found.plan["name"], found.plan["inputs"]
    source, model = inputs["source"]["name"], inputs["model"]["name"]
    # A variant, such as cifar10+odin-test@resnet18, does not stand in the way of the plain set.
    stems = (whole, f"{source}@{model}") if whole.startswith(f"{source}-") else (whole,)
    return any(
        name.startswith(stem) and f"{stem}-{found.fingerprint}".startswith(name) for stem in stems
    )


def _ambiguous(name: str, matches: Sequence[FeatureSet]) -> str:
    first, second = matches[:2]
    fields = "; ".join(list(differences(first.plan, second.plan))[:4])
    names = ", ".join(found.name for found in matches)
    return f"'{name}' may be any of {names} (they differ in {fields}): write one of these names"
