"""A recipe on a few hundred digits that runs in seconds, and helpers to run it."""

from pathlib import Path

from made import CPU
from small_data import write_npz_set

from pipeline.journal import Journal
from pipeline.recipe_run import RecipeJob, RecipeReport
from pipeline.workspace import Workspace
from stages.recipes.shipped import recipe_of
from store.catalog import FeatureStore

TINY = """\
recipe: tiny
title: Two losses on a few digits
about: A test.
parameters:
  corrupted: tiny-c
  losses: [mse-m, ce]
  epochs: 6
  head_epochs: 40
steps:
  hard: {stage: corrupt, dataset: tiny, to: $corrupted, corruptions: [contrast, gaussian_noise]}
  f: {stage: train-sensing, dataset: tiny, preset: quick, epochs: $epochs}
  train: {stage: extract, dataset: tiny, split: train, model: f, shard_rows: 100}
  clean: {stage: extract, dataset: tiny, model: f}
  corrupted: {stage: extract, images: hard, model: f, shard_rows: 100}
  H:
    stage: train-head
    each: {loss: $losses}
    features: train
    loss: $loss
    layers: [20]
    seeds: [0, 1]
    epochs: $head_epochs
    weight_decay: 0.0
  scaled:
    stage: train-head
    features: train
    reads: features
    layers: [20]
    seeds: [0, 1]
    epochs: $head_epochs
    weight_decay: 0.0
  temperature: {stage: fit-temperature, features: clean}
  judged:
    stage: evaluate
    features: corrupted
    heads: {"H, {loss}": H, H on scaled f: scaled, temperature: temperature}
    resamples: 20
report:
  results: [judged]
  table: {metrics: [accuracy, ece]}
  figures: [gain-by-corruption]
"""


def write_tiny_data(root: Path) -> Path:
    """The data set that the recipe names, under a data root."""
    return write_npz_set(root / "tiny", 300, 60)


def tiny_run(
    store: FeatureStore, root: Path, text: str = TINY, changes: dict[str, str] | None = None
) -> RecipeJob:
    recipe = recipe_of(text, "tiny.yaml", changes)
    words = ("run", "tiny")
    workspace = Workspace(store, str(root), CPU, command=words, named_by="the recipe")
    return RecipeJob(recipe, workspace)


def run_tiny(store: FeatureStore, root: Path, *rest: object, **options: object) -> RecipeReport:
    work = tiny_run(store, root, *rest, **options)  # type: ignore[arg-type]  # passed on
    with Journal.of(store.location, ["run", "tiny.yaml"]).outcome() as journal:
        report: RecipeReport = work.run(journal).report
    return report
