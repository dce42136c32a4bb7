"""The feature store: feature sets and artifacts, found by name or by unique prefix."""

import errno
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any

from store.artifacts import Artifact
from store.disk import spelled_out
from store.errors import (
    AmbiguousNameError,
    DamagedError,
    FeatureSetNotFoundError,
    FormatError,
    NotFoundError,
    SetNotFoundError,
    StoreError,
    StoreNotFoundError,
    WriteError,
)
from store.featureset import FeatureSet, create_feature_set
from store.locations import storage_at
from store.plan import (
    Change,
    Plan,
    changes,
    differences,
    fingerprint,
    is_plan,
    read_object,
    readable_json,
)
from store.schema import Schema
from store.shards import shards_of
from store.shardset import PLAN_KEY, ShardSet
from store.storage import Storage

FORMAT = 1
"""Version of the layout on disk; stores with a newer one are refused."""

STORE_KEY = "store.json"
FEATURES = "features"
"""Kind of the feature sets, and the folder that holds them."""

SET_INPUTS = (
    "features",
    "training",
    "test",
    "against",
    "select_on",
    "snapshots",
    "snapshot_features",
)
"""Inputs of a plan that are feature sets: the name of one, its plan, or a list of them."""

CONTENTS = "contents"
"""Entry of a card: feature set -> its content when the artifact was computed from it."""

MAX_NAME_BYTES = 200
"""File systems allow 255; fingerprints and the suffixes of unfinished writes need the rest."""


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """A folder, or a URL, of feature sets, artifacts and journals.

    Args:
        location: the folder, absolute or relative to the current one, or a URL that fsspec opens.
            It is created when something is first written; reading does not create it.

    Raises:
        FormatError: the store was made by a newer version of intro-pipe.

    >>> FeatureStore("store").open("cifar10c@resnet18").array("logits")  # doctest: +SKIP
    """

    location: str

    def __post_init__(self) -> None:
        place = str(self.location)  # a Path is accepted too
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
        """Storage at the root of the store."""
        return storage_at(self.location)

    def require(self) -> "FeatureStore":
        """Return the store itself; raises ``NotFoundError`` if it does not exist."""
        if self._format() is None:
            if any(map(self._holds_plans, self.storage.folders())):
                raise NotFoundError(
                    f"{self.location} has lost its {STORE_KEY}: it is written again when "
                    "something is computed"
                )
            raise StoreNotFoundError(f"there is no store at {self.location}")
        return self

    def prepare(self) -> "FeatureStore":
        """Create the store if it does not exist, check that it is writable, and return it.

        Raises ``WriteError`` if the store cannot be written, or if the object store overwrites an
        existing key although it was asked not to: it could not keep two drivers apart.
        """
        if self._format() is None:
            self.storage.create(STORE_KEY, store_file())
            if self.storage.create(STORE_KEY, b"again"):
                self.storage.remove(STORE_KEY)
                raise WriteError(
                    errno.ENOTSUP,
                    f"{self.location} cannot hold a store: it overwrites an existing key despite "
                    "If-None-Match, and so cannot keep two drivers apart",
                )
        self.storage.drop(self.storage.stage("writable", b""))
        return self

    def create(self, plan: Plan, kind: str = FEATURES) -> FeatureSet:
        """Create the set of a plan, or open it if it exists.

        The folder is named by the plan's hash. A ``plan.json`` there with any other content was
        altered, and is rewritten.
        """
        folder = _folder_of(plan)
        storage = self.storage.child(f"{kind}/{folder}")
        if storage.size(PLAN_KEY) is not None and self._set_in(folder, kind) is None:
            storage.write(PLAN_KEY, readable_json(plan))
        return create_feature_set(storage, plan)

    def find(self, plan: Plan, kind: str = FEATURES) -> FeatureSet | None:
        """The set of a plan, or ``None`` if it does not exist or its plan is damaged."""
        return self._set_in(_folder_of(plan), kind)

    def preview(self, plan: Plan, kind: str = FEATURES) -> dict[str, Any]:
        """What remains to be done for the set of a plan: location, rows, shards, bytes."""
        existing = self.find(plan, kind)
        shards = shards_of(plan["n_rows"], plan["shard_rows"])
        missing = shards if existing is None else existing.shard_set.missing()
        row_bytes = sum(spec.row_bytes for spec in Schema.from_json(plan["schema"]).arrays)
        chunk_rows = min(plan["shard_rows"], plan["n_rows"])
        return {
            "location": f"{self.location}/{kind}/{_folder_of(plan)}",
            "n_rows": plan["n_rows"],
            "rows_to_do": sum(shard.n_rows for shard in missing),
            "shards_to_do": len(missing),
            "bytes_to_write": len(missing) * chunk_rows * row_bytes,
        }

    def siblings(self, feature_set: FeatureSet) -> list[str]:
        """One line for each other set with the same name, listing the options that differ."""
        return [
            f"note: {other.name} is another set with this name; it differs in "
            + _listed(_options(feature_set.plan, other.plan))
            for other in self.feature_sets()
            if other.plan["name"] == feature_set.plan["name"] and other.name != feature_set.name
        ]

    def feature_sets(self) -> Iterator[FeatureSet]:
        """Every feature set, complete or not, sorted by name, except ``damaged_sets``."""
        return self.sets(FEATURES)

    def sets(self, kind: str) -> Iterator[FeatureSet]:
        """Every set of a kind, complete or not, sorted by name, except ``damaged_sets``."""
        for folder in self._folders(kind):
            if (found := self._set_in(folder, kind)) is not None:
                yield found

    def content_of(self, name: str) -> str | None:
        """`ShardSet.content` of a feature set, by its full name; ``None`` if it is not intact."""
        try:
            found = self._set_in(name, FEATURES)
            if found is None or not found.shard_set.is_complete():
                return None
            return found.shard_set.content()
        except (StoreError, OSError, ValueError):  # a card may hold any name
            return None

    def contents_read(self, plan: Plan) -> dict[str, dict[str, str]]:
        """The entry of a card that records the content of the feature sets that a plan reads.

        It is empty for a plan that reads none. Rows can be recomputed in place, which changes no
        plan.
        """
        found = {name: self.content_of(name) for name in dict.fromkeys(sets_in(plan))}
        known = {name: content for name, content in found.items() if content is not None}
        return {CONTENTS: known} if known else {}

    def recomputed(
        self, artifact: Artifact, content_of: Callable[[str], str | None] | None = None
    ) -> list[str]:
        """The feature sets of which rows were recomputed after a finished artifact had read them.

        Args:
            artifact: the artifact.
            content_of: replaces `content_of`, for many artifacts that read the same sets.
        """
        then = artifact.card().get(CONTENTS, {})
        if not isinstance(then, dict):
            raise DamagedError(f"card of {artifact.kind} '{artifact.name}': {CONTENTS}: no names")
        now = {name: (content_of or self.content_of)(name) for name in then}
        return [name for name in then if now[name] not in (None, then[name])]

    def damaged_sets(self, kind: str = FEATURES) -> list[str]:
        """Names of the sets of a kind whose ``plan.json`` is missing or altered."""
        return [folder for folder in self.begun(kind) if self._set_in(folder, kind) is None]

    def open(self, name: str, kind: str = FEATURES) -> FeatureSet:
        """Open the complete set of a kind that matches ``name``.

        Args:
            name: ``cifar10c@resnet18``, ``cifar10c-test@resnet18`` or
                ``cifar10c-test@resnet18-1f2e``. The split may be omitted and the fingerprint
                shortened as long as only one set matches.
            kind: kind of the set, which is also its folder in the store.

        Raises:
            NotFoundError: there is no store, or no set matches.
            AmbiguousNameError: several sets match.
            IncompleteError: shards are missing.
            DamagedError: the plan of the set is missing or altered.
        """
        return self.resolve(name, kind).require_complete()

    def resolve(self, name: str, kind: str = FEATURES) -> FeatureSet:
        """Like ``open``, but also accepts an incomplete set."""
        if "-" in name and "/" not in name and (exact := self._set_in(name, kind)) is not None:
            return exact  # a full name: the other sets need not be read
        sets = tuple(self.sets(kind))
        matches = [found for found in sets if _matches(found, name)]
        if len(matches) == 1:
            return matches[0]
        if not matches:
            if damaged := [each for each in self.damaged_sets(kind) if each.startswith(name)]:
                raise DamagedError(
                    f"{self.location}/{kind}/{damaged[0]}/{PLAN_KEY} is missing or was "
                    "altered: running the command that made the set rewrites it"
                )
            if not sets:
                self.require()
            existing = ", ".join(found.name for found in sets) or "none yet"
            is_features = kind == FEATURES
            error = FeatureSetNotFoundError if is_features else SetNotFoundError
            what = "feature set" if is_features else kind
            stems = {found.name.removesuffix(f"-{found.fingerprint}") for found in sets}
            near = get_close_matches(name, sorted(stems), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise error(f"no {what} '{name}'{hint} in {self.location} (existing: {existing})")
        raise AmbiguousNameError(_ambiguous(name, matches))

    def artifact(self, kind: str, name: str) -> Artifact:
        """The artifact with that kind and name; it need not exist."""
        return Artifact(self.storage.child(f"{kind}s/{_checked(name, kind)}"), kind)

    def artifacts(self, kind: str) -> tuple[Artifact, ...]:
        """Every artifact of a kind, finished or not, sorted by name."""
        return tuple(self.artifact(kind, name) for name in self._folders(f"{kind}s"))

    def made_by(self, kind: str, plan: Plan) -> list[Artifact]:
        """The artifacts with a plan, under any name, finished ones first.

        Damaged artifacts are skipped.
        """
        found = []
        for artifact in self.artifacts(kind):
            with suppress(DamagedError):
                if not any(differences(plan, artifact.plan())):
                    found.append(artifact)
        return sorted(found, key=lambda artifact: not artifact.is_complete())

    def begun(self, below: str) -> list[str]:
        """Names of the non-empty folders directly below a folder, with or without a plan."""
        names = self.storage.folders(below)
        return [n for n in names if next(self.storage.keys(f"{below}/{n}"), None) is not None]

    def _folders(self, below: str) -> list[str]:
        place = self.storage.child(below)  # may be a link to another disk, and so may each set
        return [n for n in place.folders() if place.child(n).size(PLAN_KEY) is not None]

    def _holds_plans(self, folder: str) -> bool:
        try:
            return bool(self._folders(folder))
        except (StoreError, OSError):  # a folder of someone else's
            return False

    def _set_in(self, folder: str, kind: str) -> FeatureSet | None:
        """The set in a folder, or ``None`` if its plan is missing or does not match its name."""
        storage = self.storage.child(f"{kind}/{folder}")
        if storage.size(PLAN_KEY) is None:
            return None
        if not is_plan(storage.read(PLAN_KEY), folder.rpartition("-")[2]):
            return None
        try:
            found = FeatureSet(ShardSet.open(storage))
            found.check()
        except FormatError:  # the name matches the content, but the content is not a plan
            return None
        return found if found.name == folder else None

    def _format(self) -> int | None:
        try:
            return int(read_object(self.storage.read(STORE_KEY))["format"])
        except NotFoundError:
            return None
        except StoreError:  # the location cannot hold a store
            raise
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise FormatError(
                f"{self.location}/{STORE_KEY} does not name a store format: is this a store?"
            ) from error
        except OSError as error:
            raise WriteError(f"{self.location} cannot be read: {error.strerror}") from error


def store_file() -> bytes:
    """Content of ``store.json``."""
    return readable_json({"format": FORMAT})


def sets_in(plan: Plan) -> list[str]:
    """The full names of the feature sets among the inputs of a plan.

    One that has two parts, such as that of the rows and of the training rows, is there twice.
    Raises ``FormatError`` if one is neither a name nor a plan.
    """
    inputs = plan.get("inputs", {})
    if not isinstance(inputs, Mapping):
        raise FormatError("plan: inputs: expected names and values")
    found = []
    for key in SET_INPUTS:
        value = inputs.get(key, [])
        found += [_name_in(each) for each in (value if isinstance(value, list) else [value])]
    return [name for name in found if name is not None]


def _name_in(planned: object) -> str | None:
    if planned is None or isinstance(planned, str):
        return planned
    if not isinstance(planned, Mapping) or "name" not in planned:
        raise FormatError("plan: inputs: expected the name of a feature set, or its plan")
    return _folder_of(planned)


def _folder_of(plan: Plan) -> str:
    return f"{_checked(str(plan['name']), 'feature set')}-{fingerprint(plan)}"


def _checked(name: str, kind: str) -> str:
    """The name itself; raises ``FormatError`` if a folder cannot have it."""
    is_short = len(name.encode(errors="replace")) <= MAX_NAME_BYTES
    if not name or "/" in name or name.startswith(".") or not name.isprintable() or not is_short:
        raise FormatError(
            f"'{name}' cannot be the name of a {kind}: use letters, digits, - and _, "
            f"{MAX_NAME_BYTES} bytes at most"
        )
    return name


def _matches(found: FeatureSet, name: str) -> bool:
    whole, inputs = found.plan["name"], found.plan["inputs"]
    source, model = inputs["source"]["name"], inputs["model"]["name"]
    # A variant, such as cifar10+odin-test@resnet18, does not make the plain name ambiguous.
    stems = (whole, f"{source}@{model}") if whole.startswith(f"{source}-") else (whole,)
    return any(
        name.startswith(stem) and f"{stem}-{found.fingerprint}".startswith(name) for stem in stems
    )


MAX_LISTED = 4
"""Feature sets, or options in which two of them differ, that a message lists."""
_UNTOLD = ("inputs.source.fingerprint", "schema")
"""What follows from other images, and says nothing to a reader."""


def _ambiguous(name: str, matches: Sequence[FeatureSet]) -> str:
    """One line: the sets, and the first option in which two of them differ."""
    names = ", ".join(found.name for found in matches[:MAX_LISTED])
    more = f" and {len(matches) - MAX_LISTED} more" if len(matches) > MAX_LISTED else ""
    differing = next(_options(*(found.plan for found in matches[:2])), None)
    how = "they differ in their images"
    if differing is not None:
        how = "{}: {} in the first, {} in the second".format(*differing)
    return f"'{name}' matches {names}{more} ({how}): use one of these names"


def _options(plan: Plan, other: Plan) -> Iterator[Change]:
    """The options and inputs in which two plans differ, without the groups that hold them."""
    for path, *values in changes(plan, other):
        if not path.startswith(_UNTOLD):
            name = path.removeprefix("stage.params.").removeprefix("inputs.")
            yield Change(name, *values)


def _listed(found: Iterator[Change]) -> str:
    first = islice(found, MAX_LISTED)
    return "; ".join(f"{name}: {new} instead of {old}" for name, old, new in first) or "its images"
