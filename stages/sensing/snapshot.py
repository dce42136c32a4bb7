"""The stage snapshot: the network after an epoch of its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NoReturn

from pydantic import Field, PositiveInt

from pipeline.fields import Ref
from pipeline.make import ArtifactJob
from pipeline.stage import Preview, Stage
from pipeline.workspace import Workspace
from stages.errors import InputError
from stages.sensing.snapshots import snapshot_name, snapshot_plan
from stages.sensing.train_sensing import TrainSensing


class Snapshot(Stage):
    """Select the network after one of the epochs that its training keeps."""

    verb = "snapshot"
    makes = "model"

    model: Annotated[
        str, Ref(("model",), verbs=(TrainSensing.verb,)), Field(description="The trained model.")
    ]
    epoch: PositiveInt = Field(description="Number of epochs that it was trained for.")

    def check(
        self,
        workspace: Workspace,  # noqa: ARG002 - the signature of all stages
        needs: Mapping[str, Stage],
    ) -> None:
        """Raise ``InputError`` if the training does not keep that epoch."""
        training = needs["model"]
        assert isinstance(training, TrainSensing)
        if self.epoch not in training.kept_epochs:
            raise InputError(
                f"epoch {self.epoch} is not kept: the training has {training.params.epochs} epochs "
                f"and keep_every {training.keep_every or 'is not given'}, which keeps 1, 1 + "
                "keep_every and so on"
            )

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The snapshot, which is only created by its training."""
        store = workspace.store
        plan = snapshot_plan(store.artifact("model", self.model).plan(), self.epoch)
        artifact = store.artifact("model", snapshot_name(self.model, self.epoch))

        def refuse() -> NoReturn:
            raise InputError(f"model '{self.model}' has no snapshot of epoch {self.epoch}")

        return ArtifactJob(
            store,
            artifact,
            plan,
            title=f"take {artifact.name}",
            preview=Preview(f"take {artifact.name}", {"name": artifact.name, "plan": plan}),
            compute=refuse,
            check=refuse,
        )
