"""The stage keep-model: the network f that active learning trained, as a model of the store."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from pipeline.fields import Ref, Written
from pipeline.make import ArtifactJob, Output
from pipeline.stage import Preview, Stage, stage_name
from pipeline.workspace import Workspace
from stages.active_learning.result_names import ASKING_STAGE, CURVES_STAGE, RUN_STAGE, WEIGHTS
from stages.data.option_types import OutputName
from stages.errors import InputError
from stages.sensing.card import ModelCard
from stages.sensing.models import WEIGHTS_KEY
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.plan import Plan, fingerprint

VERSION = 1


class KeepModel(Stage):
    """Keep the network f that active learning trained, as a model of the store.

    Its weights are those of the last round, so `extract --model` computes the features and logits
    that the last round used.
    """

    verb = "keep-model"
    makes = "model"
    examples = ("keep-model --result photos-ask-500-1a2b3c4d --name photos",)

    result: Annotated[str, Ref(("result",), verbs=("active-learn",)), Written(metavar="RESULT")] = (
        Field(
            description="Result of active-learn: a run, the curves of a single run, or a request "
            "for labels."
        )
    )
    name: OutputName | None = Field(
        None, description="Name of the model. (default: the name of the run)"
    )

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The copy of the weights and of their card.

        Raises:
            NotFoundError: there is no such result, or it is not finished.
            InputError: it is not of active learning, has several runs, or trained no network.
        """
        store = workspace.store
        run = run_of(store, self.result)
        plan = self.plan(run)
        name = workspace.output_name("model", self.name, run.name, run.name, plan)
        card = replace(ModelCard.from_dict(run.card()["network"]), name=name)

        def compute() -> Output:
            return {WEIGHTS_KEY: run.read(WEIGHTS)}, {"card": card.to_dict()}

        what = f"keep the network of {run.name} as model {name}"
        return ArtifactJob(
            store,
            store.artifact("model", name),
            plan,
            title=f"keep {name}",
            preview=Preview(what, {"name": name, "plan": plan}),
            compute=compute,
        )

    def plan(self, run: Artifact) -> Plan:
        """Everything that determines the model: the run, and the weights that it ended with."""
        return {
            "stage": {"name": self.verb, "version": VERSION},
            "inputs": {
                "run": run.name,
                "plan": fingerprint(run.plan()),
                "weights": run.files()[WEIGHTS].sha256,
            },
        }


def run_of(store: FeatureStore, name: str) -> Artifact:
    """The result with that name, or the only run of the curves with that name.

    Raises:
        NotFoundError: there is no such result, or it is not finished.
        InputError: it is not of active learning, has several runs, or trained no network.
    """
    result = store.artifact("result", name)
    card, stage = result.card(), stage_name(result.plan())
    if stage == CURVES_STAGE:
        runs = card["runs"]
        if len(runs) > 1:
            raise InputError(
                f"result '{name}' has {len(runs)} runs, each with a network of its own: choose "
                f"one of {', '.join(runs)} with --result"
            )
        return run_of(store, runs[0])
    if stage not in (RUN_STAGE, ASKING_STAGE):
        raise InputError(f"result '{name}': expected one of active-learn, found one of {stage}")
    if WEIGHTS not in result.files():
        raise InputError(
            f"result '{name}' trained no network, because there were no labels of two classes yet"
        )
    return result
