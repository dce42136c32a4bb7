"""Compare the inputs recorded in a plan with the current content of the store."""

from collections.abc import Callable, Iterator, Sequence

from pipeline.terminal import counted
from stages.errors import InputError
from stages.planned import PlannedHead, PlannedInputs, PlannedModel, PlannedResult
from stages.typed import known, typed
from store.artifacts import Artifact
from store.catalog import FEATURES, FeatureStore
from store.errors import DamagedError, FormatError, NotFoundError, StoreError
from store.plan import Plan, fingerprint
from store.receipts import Receipt
from store.shardset import PLAN_KEY, ShardSet


def why_stale(store: FeatureStore, plan: Plan) -> str:
    """Which input of a plan was deleted or recreated; empty if none was.

    Damaged inputs are skipped: they are reported on their own. Data sets lie outside the store.

    Raises ``StoreError`` if a plan or card describes its inputs in an unknown format.
    """
    try:
        return next(_reasons(store, PlannedInputs.of(plan)), "")
    except InputError as error:  # the JSON may have any structure
        raise FormatError("the plan, or the card of an input, has an unknown format") from error


def why_recomputed(
    store: FeatureStore, artifact: Artifact, content_of: Callable[[str], str | None]
) -> str:
    """Which features of a finished artifact were recomputed in place since; empty if none was.

    Args:
        store: the store.
        artifact: the artifact.
        content_of: `FeatureStore.content_of`, which may remember its answers.
    """
    names = store.recomputed(artifact, content_of)
    if not names:
        return ""
    return f"rows of features {names[0]} were recomputed since: remove it and run the command again"


def why_outdated(store: FeatureStore, found: ShardSet) -> str:
    """How many shards were computed from rows that were recomputed in place; empty if none.

    Receipts of scores have the checksums of their inputs: of files of the same shard of the first
    features of the plan, and the content of the others. Missing and damaged inputs are skipped.
    """
    names = PlannedInputs.of(found.plan).features
    if not names:
        return ""
    first, *others = names
    content = [store.content_of(name) for name in others]
    try:
        features = store.resolve(first).shard_set
    except (NotFoundError, DamagedError):
        return ""
    known = [each for each in content if each is not None]
    if len(known) < len(content):
        return ""
    n_outdated = sum(_is_outdated(each, features, known) for each in found.receipts())
    if not n_outdated:
        return ""
    return (
        f"{counted(n_outdated, 'shard')} computed from features or training rows that were "
        "recomputed since: run the command again"
    )


def _is_outdated(receipt: Receipt, features: ShardSet, content: Sequence[str]) -> bool:
    if receipt.shard is None or not isinstance(receipt.inputs, list):
        return False
    try:
        files = features.receipt(receipt.shard).files.values()
    except (NotFoundError, DamagedError):
        return False
    return not all(each in (*content, *(f.sha256 for f in files)) for each in receipt.inputs)


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
        yield f"{planned.called} was deleted"
        return
    try:
        files = [head.files() for head in existing]
    except StoreError:
        return
    found = [{key: digest.sha256 for key, digest in entry.items()} for entry in files]
    if planned.files and planned.files not in found:
        yield f"{planned.called} was recreated: it has other weights"


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
