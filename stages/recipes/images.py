"""Steps that read images: corrupt writes them, extract makes features of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipeline.journal import Journal
from pipeline.recipe_run import State, Task
from stages.applications.ood import labels_that_fit
from stages.data.corrupt import Corrupt
from stages.data.corruption_set import write_corrupted
from stages.data.known import KNOWN, data_root_path
from stages.errors import InputError
from stages.introspection.adaptive import HeadTarget
from stages.recipes.context import Context, Inputs
from stages.recipes.params import CorruptParams, ExtractParams
from stages.recipes.tasks import shards_of
from stages.reflection.extract import Extract, extract
from stages.reflection.perturbation import Odin, Perturbation, Pgd
from stages.sensing.card import ModelCard
from stages.sensing.model import check_code
from stages.sensing.models import weights_path
from stages.sensing.trust import require_trust
from store.artifacts import Artifact
from store.plan import Plan, differences, fingerprint
from store.shardset import find_set
from store.storage import LocalStorage


def corrupt_task(context: Context, params: CorruptParams, _: Inputs) -> Task:
    """Take a corrupted set that is there as it is, or write one."""
    folder = data_root_path(context.data_root) / params.to
    if params.to in KNOWN or _is_from_elsewhere(folder):
        _refuse_what_is_for_writing(params)
        source = context.hashed(context.source(params.to, "test")).open()
        plan: Plan = {"source": source.fingerprint()}
        detail = f"{params.to} as it is there"
        return Task(plan, str(folder), State.COMPLETE, detail, params.to, lambda _: None)
    clean = context.source(params.dataset, params.split, limit=params.limit)
    stage = Corrupt(clean, params.corruptions, params.seed, params.collection)
    plan = dataclasses.replace(stage, source=context.hashed(clean)).plan()
    there = find_set(LocalStorage(str(folder)))
    if there is not None and (different := list(differences(plan, there.plan))):
        raise InputError(
            f"{folder} was written otherwise ({'; '.join(different[:3])}): give another name in "
            "'to', or remove it"
        )
    state, detail = shards_of(there, folder.name)

    def run(journal: Journal) -> None:
        write_corrupted(context.store, stage, str(folder), context.corrupting, journal)

    return Task(plan, str(folder), state, detail, str(folder), run)


def _is_from_elsewhere(folder: Path) -> bool:
    """Whether a folder holds a set that was not written here: it is taken as it is."""
    storage = LocalStorage(str(folder))
    return find_set(storage) is None and next(storage.keys(), None) is not None


def _refuse_what_is_for_writing(params: CorruptParams) -> None:
    """Raise ``InputError`` for a key that does not apply to a set that is taken as it is."""
    for key in ("split", "collection", "corruptions", "seed", "limit"):
        value = getattr(params, key)
        if value != CorruptParams.model_fields[key].default:
            shown = f"[{', '.join(value)}]" if isinstance(value, tuple) else value
            raise InputError(
                f"{key} is {shown}, but the set '{params.to}' is taken as it is: leave {key} out, "
                "give another name in 'to' to have a set written, or take a part of this one in "
                "extract, which has 'corruptions' and 'limit'"
            )


def extract_task(context: Context, params: ExtractParams, inputs: Inputs) -> Task:
    """Send images through the model."""
    model: Artifact = inputs["model"]
    card = ModelCard.from_dict(model.card().get("card", {}))
    source = context.source(
        inputs.get("images") or params.dataset or "",
        params.split,
        image_size=card.image_size,
        limit=params.limit,
        corruptions=params.corruptions,
    )
    if params.out_of_distribution:
        source = labels_that_fit(source, card.class_names)
    stage = Extract(
        source,
        card,
        weights_path(context.store, model.name),
        params.precision,
        params.shard_rows,
        context.extracting_device,
        params.batch,
        perturbations=_perturbations(context, params, inputs.get("through")),
    )
    plan = dataclasses.replace(stage, source=context.hashed(source)).plan()
    there = context.store.find(plan)
    name = f"{plan['name']}-{fingerprint(plan)}"
    state, detail = shards_of(there.shard_set if there else None, name)

    def run(journal: Journal) -> None:
        require_trust(card.network, f"model {card.name}")
        if "source_sha256" in card.extra:
            check_code(card)
        extract(context.store, stage, context.extracting, journal)

    return Task(plan, f"features/{name}", state, detail, there, run)


def _perturbations(
    context: Context, params: ExtractParams, through: Artifact | None
) -> tuple[Perturbation, ...]:
    """An attack, then ODIN, where they are asked for."""
    found: list[Perturbation] = []
    if params.attack is not None:
        target = None if through is None else HeadTarget(context.store.location, through.name)
        found.append(
            Pgd(
                params.attack, params.epsilon, params.step, params.steps, params.attack_seed, target
            )
        )
    if params.odin is not None:
        found.append(Odin(params.odin))
    return tuple(found)


def check_data(context: Context, params: ExtractParams, _: Inputs) -> None:
    """Raise ``InputError`` where the data set is not there."""
    if params.dataset is not None:
        source = context.source(params.dataset, params.split, corruptions=params.corruptions)
        context.hashed(source)  # opened once for all that name it
