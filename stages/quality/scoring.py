"""Score pairs of images by measures of quality: a map over shards of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.terminal import printable_line
from pipeline.work import ShardOutput, Tick
from stages.data.corruptions.names import VERSION as CORRUPTION_VERSION
from stages.data.corruptions.names import collection_for
from stages.data.decoding import PLAIN
from stages.data.regular import require_regular
from stages.errors import InputError
from stages.quality.autoencoder import Autoencoder
from stages.quality.autoencoder_files import WEIGHTS_KEY, content_of, decoded_weights, read_weights
from stages.quality.measures import MEASURES, View, column_of
from stages.quality.pairs import Pair, Pairs
from stages.quality.pairs_spec import PairsSpec
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.plan import Plan
from store.schema import Schema
from store.shards import Shard

KIND = "quality-model"
"""Kind of the artifacts that hold an autoencoder."""

MOST_PIXELS = 2**25
"""Pixels of the largest image that is compared, which bounds the memory of a worker."""

LEAST_CORRUPTED = 32
"""Smallest side for which corruptions have constants."""

_TEXTS = (
    ("row", "int64"),
    ("sample_id", "string"),
    ("reference", "string"),
    ("distorted", "string"),
    ("distortion", "string"),
    ("level", "int64"),
    ("mos", "float64"),
    ("std", "float64"),
)


@dataclass(frozen=True, slots=True)
class WeightsAt:
    """The weights of an autoencoder: a file, or a quality model of a store.

    Attributes:
        place: path of the file, or name of the model.
        store: location of the store; empty for a file.
    """

    place: str
    store: str = ""

    def load(self) -> Autoencoder:
        """The autoencoder; raises ``InputError``, or ``StoreError`` for a model that is missing."""
        if not self.store:
            return read_weights(self.place)
        data = FeatureStore(self.store).artifact(KIND, self.place).read(WEIGHTS_KEY)
        return decoded_weights(data, f"{KIND} '{self.place}'")


@dataclass(frozen=True)
class Scoring:
    """The scores of pairs by some measures.

    Attributes:
        spec: the pairs.
        measures: names in `MEASURES`.
        weights: of the autoencoder; ``None`` if no measure needs one.
        shard_rows: pairs per shard.
    """

    spec: PairsSpec
    measures: tuple[str, ...]
    weights: WeightsAt | None
    shard_rows: int

    name: ClassVar[str] = "iqa"
    version: ClassVar[int] = 1  # raise it when any score changes
    rows: ClassVar[str] = "images"

    def plan(self, pairs: Pairs) -> dict[str, Any]:  # Any: JSON
        """Everything that determines the scores."""
        source = pairs.facts()
        if pairs.cells is not None:
            source["corruptions"] = {"version": CORRUPTION_VERSION}
        weights = None if self.weights is None else content_of(self.weights.load())
        return {
            "name": f"{pairs.name}@quality",
            "stage": {
                "name": self.name,
                "version": self.version,
                "params": {"measures": list(self.measures)},
            },
            "inputs": {
                "source": source,
                "model": {"name": "quality", "autoencoder_sha256": weights},
            },
            "schema": self.schema().to_json(),
            "n_rows": len(pairs.pairs),
            "shard_rows": self.shard_rows,
        }

    def schema(self) -> Schema:
        """The columns: facts of the pair, a score per measure, and ``status``."""
        scores = tuple((column_of(name), "float64") for name in self.measures)
        return Schema((), (*_TEXTS, *scores, ("status", "string")))

    def check(self, plan: Plan) -> None:
        """Check that pairs and weights are still the planned ones; raises ``InputError``."""
        planned, found = plan["inputs"]["source"], self.spec.open().facts()
        if planned["fingerprint"] != found["fingerprint"]:
            raise InputError(
                f"{found['name']}: its files or lists changed since the run started; run the "
                "command again to score them as they are now"
            )
        sha256 = plan["inputs"]["model"]["autoencoder_sha256"]
        if self.weights is not None and content_of(self.weights.load()) != sha256:
            raise InputError(
                f"weights {self.weights.place}: changed since the run started; run the command "
                "again to use them as they are now"
            )

    def setup(self, n_threads: int) -> State:  # noqa: ARG002 - products of this size use few
        """The opened pairs, and the autoencoder."""
        return State(self.spec.open(), None if self.weights is None else self.weights.load())

    def compute(self, state: State, shard: Shard, tick: Tick) -> ShardOutput:
        """The scores of a shard of pairs.

        A pair that cannot be compared by a measure has NaN for it and the reason in ``status``, and
        is listed in the receipt's ``failed``.
        """
        pairs = state.pairs.pairs[shard.start : shard.stop]
        scores = np.full((len(self.measures), shard.n_rows), np.nan)
        failed: dict[int, str] = {}
        crc = 0
        for at, pair in enumerate(pairs):
            try:
                reference, distorted = state.views(pair)
                crc = google_crc32c.extend(crc, distorted.image.tobytes())
                found, reasons = compared(self.measures, reference, distorted, state.model)
                scores[:, at] = found
            except _UnfitError as error:
                reasons = [str(error)]
            if reasons:
                failed[at] = f"{printable_line(pair.distorted)}: {'; '.join(reasons)}"
            tick(1)
        columns = _columns(shard, pairs, failed)
        columns |= {column_of(name): scores[at] for at, name in enumerate(self.measures)}
        chunk_rows = min(self.shard_rows, len(state.pairs.pairs))
        files = encode_rows(self.schema(), shard, chunk_rows, {}, columns)
        reasons_of = {str(shard.start + at): why for at, why in failed.items()}
        return ShardOutput(files, {"failed": reasons_of, "images_crc32c": f"{crc:08x}"})


def compared(
    measures: Sequence[str], reference: View, distorted: View, model: Autoencoder | None
) -> tuple[list[float], list[str]]:
    """The score of each measure, NaN where it is undefined, and the reasons of those."""
    scores, reasons = [], []
    for name in measures:
        try:
            scores.append(MEASURES[name].compare(reference, distorted, model))
        except ValueError as error:
            scores.append(float("nan"))
            reasons.append(f"{name}: {' '.join(str(error).split())}")
    return scores, reasons


class _UnfitError(Exception):
    """A pair that no measure can compare; the message says why."""


@dataclass
class State:
    """What a worker holds: the pairs, the autoencoder, and the last reference."""

    pairs: Pairs
    model: Autoencoder | None
    _references: Any = field(default=None, repr=False)  # Any: a cached function

    def __post_init__(self) -> None:
        self._references = lru_cache(maxsize=2)(self._reference)
        self._rows = {name: row for row, name in enumerate(self.pairs.references)}

    def views(self, pair: Pair) -> tuple[View, View]:
        """The reference and the distorted image; raises ``_UnfitError``."""
        reference: View = self._references(pair.reference)
        if self.pairs.cells is None:
            distorted = _image(self.pairs.root, pair.distorted, "distorted image")
        else:
            distorted = self._corrupted(reference.image, pair)
        if distorted.shape != reference.image.shape:
            (height, width), (other_height, other_width) = (
                each.shape[:2] for each in (distorted, reference.image)
            )
            raise _UnfitError(
                f"{height}x{width} pixels, expected {other_height}x{other_width}, the size of its "
                "reference"
            )
        return reference, View(distorted)

    def _reference(self, name: str) -> View:
        return View(_image(self.pairs.root, name, "reference"))

    def _corrupted(self, image: NDArray[np.uint8], pair: Pair) -> NDArray[np.uint8]:
        """The image with a corruption; its random numbers depend on the row of the reference."""
        from stages.data.corruptions.severities import corrupt

        height, width = image.shape[:2]
        if min(height, width) < LEAST_CORRUPTED:
            raise _UnfitError(
                f"{height}x{width} pixels, expected at least "
                f"{LEAST_CORRUPTED}x{LEAST_CORRUPTED} to corrupt them"
            )
        cells = self.pairs.cells
        assert cells is not None  # asked before
        row = np.array([self._rows[pair.reference]])
        collection = collection_for((height, width))
        images = corrupt(
            image[None], pair.distortion, pair.level, row, cells.seed, collection=collection
        )
        corrupted: NDArray[np.uint8] = images[0]
        return corrupted


def _image(root: Path, name: str, what: str) -> NDArray[np.uint8]:
    """The pixels of a file, ``uint8 [H, W, 3]``; raises ``_UnfitError`` with the reason."""
    path = root / name
    try:
        require_regular(path)
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise _UnfitError(
                    f"{what} has {image.width * image.height:,} pixels, expected at most "
                    f"{MOST_PIXELS:,}"
                )
            if image.mode.startswith(("I", "F")):
                raise _UnfitError(
                    f"{what} has more than 8 bits a channel (mode {image.mode}), expected 8: "
                    "convert it"
                )
            return np.asarray(PLAIN.rgb(image))
    except _UnfitError:
        raise
    except FileNotFoundError as error:
        raise _UnfitError(f"{what} {printable_line(name)} does not exist") from error
    except Exception as error:  # PIL raises nearly anything on a broken file
        why = " ".join(str(error).split()) or type(error).__name__
        raise _UnfitError(f"{what} cannot be read: {why}") from error


def _columns(
    shard: Shard, pairs: Sequence[Pair], failed: Mapping[int, str]
) -> dict[str, NDArray[Any]]:  # Any: numbers and texts
    """The columns of a shard that are not scores."""
    texts = ("reference", "distorted", "distortion")
    found: dict[str, NDArray[Any]] = {
        name: np.array([getattr(pair, name) for pair in pairs], dtype=object) for name in texts
    }
    status = np.full(len(pairs), "ok", dtype=object)
    status[list(failed)] = list(failed.values())
    return {
        **found,
        "row": np.arange(shard.start, shard.stop),
        "sample_id": found["distorted"],
        "level": np.array([pair.level for pair in pairs], np.int64),
        "mos": np.array([pair.mos for pair in pairs], np.float64),
        "std": np.array([pair.std for pair in pairs], np.float64),
        "status": status,
    }
