"""Compare the inputs recorded in a plan with the current content of the store."""

from collections.abc import Iterator

from stages.errors import InputError
from stages.planned import PlannedHead, PlannedInputs, PlannedModel, PlannedResult
from stages.typed import known, typed
from store.catalog import FEATURES, FeatureStore
from store.errors import FormatError, StoreError
from store.plan import Plan, fingerprint
from store.shardset import PLAN_KEY


def why_stale(store: FeatureStore, plan: Plan) -> str:
    """Which input of a plan was deleted or recreated; empty if none was.

    Damaged inputs are skipped: they are reported on their own. Data sets lie outside the store.

    Raises ``StoreError`` if a plan or card describes its inputs in an unknown format.
    """
    try:
        return next(_reasons(store, PlannedInputs.of(plan)), "")
    except InputError as error:  # the JSON may have any structure
        raise FormatError("the plan, or the card of an input, has an unknown format") from error


def _reasons(store: FeatureStore, inputs: PlannedInputs) -> Iterator[str]:
    yield from _model_reasons(store, inputs.model)
    for name in inputs.features:
        if store.storage.size(f"{FEATURES}/{name}/{PLAN_KEY}") is None:
            yield f"features {name} were deleted"
    for head in inputs.heads:
        yield from _head_reasons(store, head)
    for result in inputs.results:
        yield from _result_reasons(store, result)


def _model_reasons(store: FeatureStore, planned: PlannedModel) -> Iterator[str]:
    if not planned.weights_sha256:
        return
    model = store.artifact("model", planned.name)
    if not model.is_complete():
        yield f"model '{model.name}' was deleted"
        return
    try:
        card = model.card().get("card", {})
    except StoreError:
        return
    found = typed(PlannedModel, known(card, "model card"), "model card")
    if found.weights_sha256 != planned.weights_sha256:
        yield f"model '{model.name}' was recreated: it has other weights"


def _head_reasons(store: FeatureStore, planned: PlannedHead) -> Iterator[str]:
    existing = [head for head in store.made_by("head", planned.head) if head.is_complete()]
    if not existing:
        yield f"head '{planned.label}' was deleted"
        return
    try:
        files = [head.files() for head in existing]
    except StoreError:
        return
    found = [{key: digest.sha256 for key, digest in entry.items()} for entry in files]
    if planned.files not in found:
        yield f"head '{planned.label}' was recreated: it has other weights"


def _result_reasons(store: FeatureStore, planned: PlannedResult) -> Iterator[str]:
    result = store.artifact("result", planned.result)
    if not result.is_complete():
        yield f"result '{result.name}' was deleted"
        return
    try:
        found = fingerprint(result.plan())
    except StoreError:
        return
    if found != planned.plan:
        yield f"result '{result.name}' was recreated with another plan"
