"""Test stored maps on their network: each map beside noise, and maps of randomised layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.explanation.explanation_job import layer_of
from stages.explanation.faithfulness import MEASURES, claimed_scores, measured, random_maps
from stages.explanation.layer_choice import combining
from stages.explanation.maps import enlarged_maps, maps_of, normalised_maps
from stages.explanation.questions import Question
from stages.explanation.sanity import (
    cascade,
    layers_with_weights,
    randomised,
    rank_correlations,
    structural_similarities,
)
from stages.explanation.stored_maps import Block, StoredMaps
from stages.explanation.target_layer import TargetLayer
from stages.metrics.bootstrap import Resampling, interval
from stages.sensing.model import Sensing, load_sensing, normalised

Tick = Callable[[int], None]

CLAIMING = ("grad-cam", "counterfactual-cam", "contrast-cam")
"""Methods whose maps claim something about a score."""

RESAMPLES = 1000


@dataclass(frozen=True)
class Trial:
    """How maps are tested.

    Attributes:
        sensing: the network with all its layers, on the device where images go.
        layer: the layer of the maps.
        in_closed_form: how they are computed.
        n_steps: steps of deletion and insertion.
        seed: seed of equal pixels, of noise, and of randomised layers.
    """

    sensing: Sensing
    layer: TargetLayer
    in_closed_form: bool
    n_steps: int
    seed: int

    @property
    def n_layers(self) -> int:
        """Number of layers with weights."""
        return len(layers_with_weights(self.sensing))

    @property
    def n_randomised(self) -> list[int]:
        """How many of the last layers are randomised, one number after the other."""
        return cascade(self.n_layers)


def trial_of(stored: StoredMaps, weights: str, device: str, *, n_steps: int, seed: int) -> Trial:
    """The network of stored maps, loaded from a file of weights."""
    layer, in_closed_form = layer_of(stored.card, weights, stored.params["layer"])
    sensing = load_sensing(stored.card, weights, device, keeps_layers=True)
    return Trial(sensing, layer, in_closed_form, n_steps, seed)


def faithfulness_by_row(
    trial: Trial, stored: StoredMaps, rows: NDArray[np.int64], tick: Tick
) -> pd.DataFrame:
    """The measures of each map that claims something, and of a map of noise in its place.

    A map that is the same everywhere claims nothing and has no row, nor has a contrast map whose Q
    is P.

    Returns:
        Columns ``row``, ``map``, ``score``, `MEASURES`, and these with the prefix ``random_``.
    """
    parts = []
    for block in stored.blocks(rows):
        for number, question in enumerate(stored.questions):
            if question.method in CLAIMING:
                parts.append(_measured(trial, block, number, question.method))
        tick(len(block.rows))
    columns = ["row", "map", "score", *MEASURES, *(f"random_{name}" for name in MEASURES)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _measured(trial: Trial, block: Block, number: int, method: str) -> pd.DataFrame:
    maps = block.maps[:, number]
    claims = maps.max(axis=(1, 2)) > maps.min(axis=(1, 2))
    if method == "contrast-cam":
        claims &= block.asked[:, number] != block.explained
    keep = np.flatnonzero(claims)
    device = trial.sensing.mean.device
    explained, asked = (
        torch.from_numpy(each[keep]).to(device)
        for each in (block.explained, block.asked[:, number])
    )

    def judge(images: Tensor) -> Tensor:
        with torch.no_grad():
            _, logits = trial.sensing(images)
        return claimed_scores(method, logits, explained, asked)

    images = torch.from_numpy(block.images[keep]).to(device, torch.float32)
    size = (images.shape[1], images.shape[2])
    seeds = np.array([_seed(trial.seed, row, number) for row in block.rows[keep]], np.int64)
    found: dict[str, Any] = {"row": block.rows[keep], "map": number}
    for prefix, grids in (("", maps[keep]), ("random_", random_maps(seeds, maps.shape[1:]))):
        values = shown_maps(grids, size)
        mean = trial.sensing.mean
        for name, each in measured(judge, images, mean, values, seeds, trial.n_steps).items():
            if prefix + name != "random_score":
                found[prefix + name] = each
    return pd.DataFrame(found)


def _seed(seed: int, row: int, number: int) -> int:
    """A seed for one map that depends on nothing else."""
    return int(np.random.SeedSequence([seed, int(row), number]).generate_state(1)[0])


def shown_maps(grids: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Maps ``(n, h, w)`` at the size of the images, each scaled to [0, 1]."""
    large = enlarged_maps(torch.from_numpy(np.ascontiguousarray(grids))[:, None], size)
    found: NDArray[np.float32] = normalised_maps(large)[:, 0].numpy()
    return found


def sanity_by_row(
    trial: Trial,
    stored: StoredMaps,
    rows: NDArray[np.int64],
    tick: Tick,
    n_randomised: Sequence[int] | None = None,
) -> pd.DataFrame:
    """How similar each map is to the one of the network with its last layers randomised.

    Args:
        trial: how maps are tested.
        stored: the maps.
        rows: the rows to test.
        tick: called with the number of rows of each block.
        n_randomised: how many layers are randomised. (default: the cascade of the trial)

    Returns:
        Columns ``row``, ``map``, ``layers`` (how many are randomised), ``share`` of all layers,
        ``rank_correlation`` (at the size of the layer) and ``ssim`` (at that of the image).
    """
    parts = []
    for n_random in trial.n_randomised if n_randomised is None else n_randomised:
        network = randomised(trial.sensing, n_random, trial.seed)
        assert isinstance(network, Sensing)
        for block in stored.blocks(rows):
            found = _similarities(trial, network, stored.questions, block)
            parts.append(found.assign(layers=n_random, share=n_random / trial.n_layers))
            tick(len(block.rows))
    return pd.concat(parts, ignore_index=True)


def _similarities(
    trial: Trial, network: Sensing, questions: tuple[Question, ...], block: Block
) -> pd.DataFrame:
    images = torch.from_numpy(block.images).to(network.mean.device)
    pixels = normalised(images, network.mean, network.scale)
    combine, logits = combining(network, trial.layer, pixels, in_closed_form=trial.in_closed_form)
    asked = torch.from_numpy(block.asked).to(logits.device)
    with torch.no_grad():
        maps, _ = maps_of(questions, logits, asked, combine)
    others = maps.float().cpu().numpy()
    size = (block.images.shape[1], block.images.shape[2])
    parts = [
        pd.DataFrame(
            {
                "row": block.rows,
                "map": number,
                "rank_correlation": rank_correlations(ours, theirs),
                "ssim": structural_similarities(shown_maps(ours, size), shown_maps(theirs, size)),
            }
        )
        for number, (ours, theirs) in enumerate(
            zip(block.maps.swapaxes(0, 1), others.swapaxes(0, 1), strict=True)
        )
    ]
    return pd.concat(parts, ignore_index=True)


def faithfulness_means(by_row: pd.DataFrame, n_rows: int, n_maps: int) -> pd.DataFrame:
    """The mean of each measure over the rows of each map, beside that of noise.

    Args:
        by_row: see `faithfulness_by_row`.
        n_rows: number of rows that were tested.
        n_maps: number of maps of each row.

    Returns:
        Columns ``map``, ``measure``, ``mean``, ``random``, ``difference`` with its 95 % interval
        ``low`` and ``high`` over rows, ``n_rows``, and ``n_empty``: rows whose map is the same
        everywhere.
    """
    resampling = Resampling(RESAMPLES)
    found = []
    for number in range(n_maps):
        rows = by_row[by_row["map"] == number]
        if number not in set(by_row["map"]):
            continue
        weights = resampling.weights(rows["row"].to_numpy(np.int64)).astype(np.float64)
        for name in MEASURES:
            gain = (rows[name] - rows[f"random_{name}"]).to_numpy()
            with np.errstate(invalid="ignore"):  # a resample without any row
                low, high = interval(gain.mean(), weights.T @ gain / weights.sum(axis=0))
            found.append(
                {
                    "map": number,
                    "measure": name,
                    "mean": rows[name].mean(),
                    "random": rows[f"random_{name}"].mean(),
                    "difference": gain.mean(),
                    "low": low,
                    "high": high,
                    "n_rows": len(rows),
                    "n_empty": n_rows - len(rows),
                }
            )
    return pd.DataFrame(found)


def sanity_means(by_row: pd.DataFrame) -> pd.DataFrame:
    """The means of each map and number of randomised layers, over the rows where defined."""
    grouped = by_row.groupby(["map", "layers", "share"], sort=True)
    means = grouped[["rank_correlation", "ssim"]].mean()
    return means.assign(n_rows=grouped["rank_correlation"].count()).reset_index()
