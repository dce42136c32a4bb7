"""Finished results of small cells, for reports: f, an H and a control."""

from pipeline.journal import Journal
from stages.applications.evaluation import Contender, evaluate
from stages.introspection.heads import fit_temperature, head_spec, train_head
from stages.introspection.recipe import HeadParams
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
    """Judge two heads, which are trained and fitted on the rows that they are judged on."""
    name = found.plan["name"].partition("-")[0]
    params = HeadParams(epochs=epochs, weight_decay=0.0, batch_rows=16, seeds=seeds)
    spec = head_spec(found, layers=layers)
    journal = journal_of(store)
    train_head(store, found, f"{name}-h", spec, params, device="cpu", journal=journal)
    fit_temperature(store, found, f"{name}-t", journal=journal)
    heads = [store.artifact("head", f"{name}-{kind}") for kind in "ht"]
    contenders = [Contender(*pair) for pair in zip(labels, heads, strict=True)]
    return evaluate(store, found, contenders, n_resamples=n_resamples, journal=journal).artifact
