"""A finished feature set of cells, features and logits drawn at random, without a network at work.

Its plan is that of `extract` for a data set in the layout of CIFAR-10-C, so that the command finds
every row there. The images are files of holes: they take no room, and nobody reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import images
from pipeline.make import make as make_stage
from pipeline.workspace import Workspace
from stages.data.corruptions.names import N_SEVERITIES
from stages.data.registry import SourceSpec
from stages.reflection.extraction import Extraction
from stages.sensing.build import build_network
from stages.sensing.import_model import ImportModel
from stages.sensing.models import model_card, weights_path
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.shards import Shard

FEATURES = f"noise-c-test@{images.NETWORK}"
CORRUPTIONS = (
    *("brightness", "contrast", "defocus_blur", "elastic_transform", "fog", "frost"),
    *("gaussian_blur", "gaussian_noise", "glass_blur", "impulse_noise", "jpeg_compression"),
    *("motion_blur", "pixelate", "saturate", "shot_noise", "snow", "spatter", "speckle_noise"),
    "zoom_blur",
)


@dataclass(frozen=True)
class Cells:
    """Where the store, the data set and the weights lie."""

    folder: Path

    @property
    def store(self) -> Path:
        """The store."""
        return self.folder / "store"

    @property
    def dataset(self) -> Path:
        """The data set."""
        return self.folder / "noise-c"

    @property
    def weights(self) -> Path:
        """The network's."""
        return self.folder / "weights.safetensors"


def make(folder: Path, cell_rows: int) -> Cells:
    """19 corruptions at 5 severities, ``cell_rows`` rows each; a shard is a cell."""
    made = Cells(folder)
    made.dataset.mkdir(parents=True)
    labels = np.random.default_rng(0).integers(0, 10, cell_rows).astype(np.uint8)
    np.save(made.dataset / "labels.npy", np.tile(labels, N_SEVERITIES))
    shape = (N_SEVERITIES * cell_rows, 32, 32, 3)
    for name in CORRUPTIONS:
        np.lib.format.open_memmap(made.dataset / f"{name}.npy", "w+", np.uint8, shape)
    torch.manual_seed(0)
    made.weights.write_bytes(save_weights(build_network(images.NETWORK, 10).eval()))
    store = FeatureStore(str(made.store)).prepare()
    source = SourceSpec(str(made.dataset), "test", "", image_size=32)
    importing = ImportModel(
        network=images.NETWORK, weights=str(made.weights), dataset=str(made.dataset)
    )
    card = model_card(make_stage(importing, Workspace(store)).output)
    stage = Extraction(source, card, weights_path(store, card.name), shard_rows=cell_rows)
    found = store.create(stage.plan()).shard_set
    schema = stage.schema(stage.source.open())
    for shard in found.shards:
        found.commit(
            shard, encode_rows(schema, shard, cell_rows, *_rows(shard, labels)), {"failed": {}}
        )
    return made


def _rows(shard: Shard, labels: np.ndarray[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and columns of a cell; the logits are right the less often, the later the cell."""
    rng = np.random.default_rng([1, shard.index])
    n = shard.n_rows
    features = np.abs(rng.standard_normal((n, 64), dtype=np.float32))
    logits = rng.standard_normal((n, 10), dtype=np.float32)
    logits[np.arange(n), labels] += 3 - 2 * shard.index / 95
    z = logits.astype(np.float64)
    corruption, severity = divmod(shard.index, N_SEVERITIES)
    name = CORRUPTIONS[corruption]
    columns = {
        "row": np.arange(shard.start, shard.stop),
        "sample_id": [f"{name}/{severity + 1}/{image:05d}" for image in range(n)],
        "corruption": np.full(n, name),
        "severity": np.full(n, severity + 1),
        "label": labels.astype(np.int64),
        "prediction": logits.argmax(axis=1),
        "confidence": 1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1),
        "status": np.full(n, "ok"),
    }
    return {"features": features, "logits": logits}, columns
