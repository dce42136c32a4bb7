"""Finished results of small cells, for reports: f, an H and a control."""

from made import make_in

from pipeline.journal import Journal
from stages.evaluation.evaluate import Evaluate
from stages.introspection.fit_temperature import FitTemperature
from stages.introspection.train_head import TrainHead
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.featureset import FeatureSet

CONTROL = "f at a temperature"


def journal_of(store: FeatureStore) -> Journal:
    return Journal.of(store.location, ["report"])


def result_of_cells(
    store: FeatureStore,
    found: FeatureSet,
    *,
    seeds: tuple[int, ...] = (0, 1),
    labels: tuple[str, str] = ("H", CONTROL),
    n_resamples: int = 100,
    layers: tuple[int, ...] = (8,),
    epochs: int = 5,
) -> Artifact:
    """Evaluate two heads on the rows that they were trained or fitted on."""
    name = found.plan["name"].partition("-")[0]
    head = TrainHead(
        features=found.name,
        name=f"{name}-h",
        layers=layers,
        epochs=epochs,
        weight_decay=0.0,
        batch_size=16,
        seeds=seeds,
    )
    make_in(store, head)
    make_in(store, FitTemperature(features=found.name, name=f"{name}-t"))
    heads = dict(zip(labels, (f"{name}-h", f"{name}-t"), strict=True))
    return make_in(store, Evaluate(features=found.name, heads=heads, resamples=n_resamples)).output
