"""Snapshots: models of a network after some of the epochs of its training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from pipeline.loop import History, n_units_done
from stages.errors import InputError
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.plan import Plan

if TYPE_CHECKING:
    from stages.sensing.sensing_training import SensingTraining
    from stages.sensing.training_state import TrainState


def snapshot_name(name: str, epoch: int) -> str:
    """Name of the model of a training after an epoch, counted from 1."""
    return f"{name}-epoch-{epoch:03d}"


def snapshot_plan(plan: Plan, epoch: int) -> Plan:
    """Plan of the model of a training after an epoch, counted from 1."""
    return {**plan, "epoch": epoch}


def snapshot_epochs(n_epochs: int, keep_every: int | None) -> range:
    """The epochs after which a model is stored: 1, 1 + K, 1 + 2 K, ... (67 of the paper's 200)."""
    return range(1, n_epochs + 1, keep_every) if keep_every else range(0)


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The models that a training stores while it runs.

    They are complete models with cards of their own. The final result of the training does not
    depend on them, so its plan does not mention them.

    Attributes:
        model: the model that is trained; it need not exist.
        plan: of the training.
        epochs: the epochs, counted from 1, after which a model is stored.
    """

    store: FeatureStore
    model: Artifact
    plan: Plan
    epochs: range

    def of(self, epoch: int) -> Artifact:
        """The model after an epoch; it need not exist."""
        return self.store.artifact("model", snapshot_name(self.model.name, epoch))

    def models(self) -> list[Artifact]:
        """All snapshots, in the order of their epochs; they need not exist."""
        return [self.of(epoch) for epoch in self.epochs]

    def missing(self) -> list[str]:
        """Names of the snapshots that can no longer be made: the training is past their epochs."""
        # The last checkpoint still has its epoch; a finished training has no checkpoint.
        n_gone = self.epochs.stop if self.model.is_complete() else n_units_done(self.model) - 1
        gone = (self.of(epoch) for epoch in self.epochs if epoch <= n_gone)
        return [snapshot.name for snapshot in gone if not snapshot.is_complete()]

    def check(self) -> None:
        """Check that all snapshots can be stored, before anything is trained.

        Raises:
            PlanMismatchError: a name is used by another model.
            InputError: the training is past an epoch whose snapshot is missing.
        """
        self.model.holds(self.plan)
        for epoch in self.epochs:
            self.of(epoch).holds(snapshot_plan(self.plan, epoch))
        if missing := self.missing():
            raise InputError(
                f"model '{self.model.name}' is trained past {len(missing)} snapshots that do not "
                f"exist, {missing[0]} first, and they can only be made during training: omit "
                "--keep-every, or train again under another --name"
            )

    def take(self, training: SensingTraining, state: TrainState, history: History) -> None:
        """Store the model after the last epoch of ``history``, if it is one of the epochs."""
        epoch = len(history)
        if epoch not in self.epochs:
            return
        if (model := self.of(epoch)).is_settled():
            return
        plan = snapshot_plan(self.plan, epoch)
        model.claim(plan)
        training = dataclasses.replace(training, model_name=model.name)
        files, found = training.model_after(state, epoch)
        card = dataclasses.replace(found.card, extra={**found.card.extra, "epoch": epoch})
        facts = dataclasses.replace(found, card=card).to_dict()
        model.write(files, {**facts, "epoch": epoch, "history": history}, plan=plan)


def with_its_snapshots(store: FeatureStore, name: str, plan: Plan, epochs: range) -> Artifact:
    """The model of a plan that has all its snapshots so far, or the one to be trained.

    Snapshots are only made during the training. If some are lost, the model is trained again under
    the next free name.
    """

    def is_fitting(model: Artifact) -> bool:
        return not Snapshots(store, model, plan, epochs).missing()

    mine = next(filter(is_fitting, (store.artifact("model", each) for each in _names(name))))
    if mine.is_complete():
        return mine
    finished = (model for model in store.made_by("model", plan) if model.is_complete())
    return next(filter(is_fitting, finished), mine)


def _names(name: str) -> Iterator[str]:
    """The name, then those of further attempts."""
    yield name
    yield from (f"{name}-again-{number}" for number in count(1))
