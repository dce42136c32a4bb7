"""A network as it was on the way: after some epochs a training leaves a model of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.loop import History, n_units_done
from stages.errors import InputError
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.plan import Plan

if TYPE_CHECKING:
    from stages.sensing.train import TrainSensing, TrainState


def snapshot_name(name: str, epoch: int) -> str:
    """What the model of a training is called as it was after an epoch, counted from 1."""
    return f"{name}-epoch-{epoch:03d}"


def snapshot_plan(plan: Plan, epoch: int) -> Plan:
    """The plan of a training's model as it was after an epoch, counted from 1."""
    return {**plan, "epoch": epoch}


def snapshot_epochs(n_epochs: int, keep_every: int) -> range:
    """The epochs after which a model is kept: 1, 1 + K, 1 + 2 K, ... (67 of the paper's 200).

    Raises:
        InputError: ``keep_every`` is not a number of epochs.
    """
    if keep_every < 1:
        raise InputError(f"keep every {keep_every} epochs: expected 1 or more")
    return range(1, n_epochs + 1, keep_every)


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The models that one training leaves behind as it goes.

    They are finished models with cards of their own. What the training ends in does not depend on
    them, so its plan does not tell of them.
    """

    store: FeatureStore
    stage: TrainSensing
    plan: Plan
    keep_every: int

    @property
    def epochs(self) -> range:
        """After which epochs, counted from 1."""
        return snapshot_epochs(self.stage.n_units, self.keep_every)

    def of(self, epoch: int) -> Artifact:
        """The model as it was after an epoch; it need not exist."""
        return self.store.artifact("model", snapshot_name(self.stage.model_name, epoch))

    def check(self, artifact: Artifact) -> None:
        """Refuse what cannot be kept before anything is trained into ``artifact``.

        Raises:
            PlanMismatchError: a name is taken by another model.
            InputError: the training is past an epoch whose model is not there.
        """
        artifact.refuse_other(self.plan)
        for epoch in self.epochs:
            self.of(epoch).refuse_other(snapshot_plan(self.plan, epoch))
        # Its last checkpoint still holds that epoch; a finished training has no checkpoint.
        n_gone = n_units_done(artifact) - (0 if artifact.is_complete() else 1)
        gone = [self.of(epoch) for epoch in self.epochs if epoch <= n_gone]
        if missing := [there.name for there in gone if not there.is_complete()]:
            raise InputError(
                f"model '{artifact.name}' is trained past {len(missing)} snapshots that are not "
                f"there, {missing[0]} first, and they are made on the way only: leave out "
                "--keep-every, or train it anew under another --name"
            )

    def take(self, state: TrainState, history: History) -> None:
        """Keep the model as it is after the last epoch of ``history``, if that is one of them."""
        epoch = len(history)
        if epoch not in self.epochs:
            return
        if (there := self.of(epoch)).is_settled():
            return
        there.claim(snapshot_plan(self.plan, epoch))
        stage = dataclasses.replace(self.stage, model_name=there.name)
        files, facts = stage.model_after(state, epoch)
        extra = {**facts["card"]["extra"], "epoch": epoch}
        card = {**facts["card"], "extra": extra}
        there.write(files, {**facts, "card": card, "epoch": epoch, "history": history})
