"""Whole artifacts: the card last, another plan refused, damage noticed."""

from dataclasses import dataclass

import pytest

from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import DamagedError, LeaseError, NotFoundError, PlanMismatchError, SweptError
from store.lease import Lease
from store.storage import LocalStorage

PLAN = {"network": "cnn2", "seed": 0}


@pytest.fixture
def model(store: FeatureStore) -> Artifact:
    artifact = store.artifact("model", "cnn2")
    artifact.claim(PLAN)
    return artifact


def test_an_artifact_is_complete_when_its_card_is_there(model: Artifact) -> None:
    assert not model.is_complete()
    model.write({"weights": b"1"}, {"accuracy": 0.5})
    assert model.is_complete()
    assert model.card()["accuracy"] == 0.5
    assert model.read("weights") == b"1"
    assert model.plan() == PLAN


def test_the_same_plan_claims_its_place_again(model: Artifact) -> None:
    model.claim({"seed": 0, "network": "cnn2"})


def test_another_plan_is_refused_with_what_differs_and_the_way_out(model: Artifact) -> None:
    with pytest.raises(PlanMismatchError, match=r"seed: 1, there 0.*give this one another name"):
        model.claim({**PLAN, "seed": 1})


def test_what_is_not_there_and_what_is_not_finished_are_told_apart(
    store: FeatureStore, model: Artifact
) -> None:
    with pytest.raises(NotFoundError, match="model 'cnn2' is not finished"):
        model.card()
    with pytest.raises(NotFoundError, match="model 'other' is not there"):
        store.artifact("model", "other").card()


def test_an_altered_file_is_not_read(model: Artifact) -> None:
    model.write({"weights": b"1"}, {})
    model.storage.write("weights", b"2")
    with pytest.raises(
        DamagedError, match=r"weights is not what the card vouches for.*remove the folder"
    ):
        model.read("weights")


@pytest.mark.parametrize("key", ["plan.json", "model.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"3", b"[1]"])
def test_a_plan_or_card_that_is_garbage_is_damage(model: Artifact, key: str, data: bytes) -> None:
    model.write({}, {})
    model.storage.write(key, data)
    with pytest.raises(DamagedError, match=f"{key} cannot be read .*remove the folder"):
        {"plan.json": model.plan, "model.json": model.card}[key]()


def test_what_is_finished_stays_as_it_is(model: Artifact) -> None:
    first = model.write({"weights": b"1"}, {"by": "the first"})
    assert model.write({"weights": b"2"}, {"by": "the second"}) == first
    assert model.read("weights") == b"1"


def test_two_do_not_write_at_once(model: Artifact) -> None:
    with (
        Lease(model.storage, purpose="train cnn2"),
        pytest.raises(LeaseError, match="being written by train cnn2"),
    ):
        model.write({"weights": b"1"}, {})
    assert not model.is_complete()


def test_a_driver_that_was_replaced_leaves_the_card_of_its_successor(model: Artifact) -> None:
    sleeper = model.stage({"weights": b"1"}, {"by": "the sleeper"})
    card = model.write({"weights": b"2"}, {"by": "its successor"})
    with pytest.raises(SweptError):
        model.publish(sleeper)
    assert (model.card(), model.read("weights")) == (card, b"2")


def test_of_two_plans_that_claim_a_name_at_once_one_is_refused(store: FeatureStore) -> None:
    @dataclass(frozen=True)
    class Slow(LocalStorage):
        """Another claims the name while this one is about to."""

        def create(self, key: str, data: bytes) -> bool:
            Artifact(LocalStorage(self.root), "model").claim({"k": 5})
            return super().create(key, data)

    slow = Artifact(Slow(store.artifact("model", "other").storage.location), "model")
    with pytest.raises(PlanMismatchError, match="k: 50, there 5"):
        slow.claim({"k": 50})
