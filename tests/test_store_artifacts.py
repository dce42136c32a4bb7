"""Artifacts: the card is written last, another plan is refused, damage is detected."""

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


def test_an_artifact_is_complete_when_its_card_exists(model: Artifact) -> None:
    assert not model.is_complete()
    model.write({"weights": b"1"}, {"accuracy": 0.5}, plan=PLAN)
    assert model.is_complete()
    assert model.card()["accuracy"] == 0.5
    assert model.read("weights") == b"1"
    assert model.plan() == PLAN


def test_the_same_plan_claims_its_place_again(model: Artifact) -> None:
    model.claim({"seed": 0, "network": "cnn2"})


def test_another_plan_is_refused_with_the_difference_and_a_remedy(model: Artifact) -> None:
    with pytest.raises(PlanMismatchError, match=r"seed: 1, found 0.*give this one another name"):
        model.claim({**PLAN, "seed": 1})


def test_missing_and_unfinished_artifacts_are_distinguished(
    store: FeatureStore, model: Artifact
) -> None:
    with pytest.raises(NotFoundError, match="model 'cnn2' is not finished"):
        model.card()
    with pytest.raises(NotFoundError, match=r"'other' does not exist in .*: none yet\)"):
        store.artifact("model", "other").card()
    model.publish(model.stage({}, {}))
    with pytest.raises(NotFoundError, match=r"'other' does not exist in .*: cnn2\)"):
        store.artifact("model", "other").card()


def test_an_altered_file_is_not_read(model: Artifact) -> None:
    model.write({"weights": b"1"}, {}, plan=PLAN)
    model.storage.write("weights", b"2")
    with pytest.raises(
        DamagedError, match=r"weights does not match its checksum in the card.*remove the folder"
    ):
        model.read("weights")


@pytest.mark.parametrize("key", ["plan.json", "model.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"3", b"[1]"])
def test_a_plan_or_card_that_is_garbage_is_damage(model: Artifact, key: str, data: bytes) -> None:
    model.write({}, {}, plan=PLAN)
    model.storage.write(key, data)
    with pytest.raises(DamagedError, match=f"{key} cannot be read .*remove the folder"):
        {"plan.json": model.plan, "model.json": model.card}[key]()


def test_a_finished_artifact_is_unchanged(model: Artifact) -> None:
    first = model.write({"weights": b"1"}, {"by": "the first"}, plan=PLAN)
    assert model.write({"weights": b"2"}, {"by": "the second"}, plan=PLAN) == first
    assert model.read("weights") == b"1"


def test_two_do_not_write_at_once(model: Artifact) -> None:
    with (
        Lease(model.storage, purpose="train cnn2"),
        pytest.raises(LeaseError, match="being written by train cnn2"),
    ):
        model.write({"weights": b"1"}, {}, plan=PLAN)
    assert not model.is_complete()


def test_a_driver_that_was_replaced_leaves_the_card_of_its_successor(model: Artifact) -> None:
    sleeper = model.stage({"weights": b"1"}, {"by": "the sleeper"})
    card = model.write({"weights": b"2"}, {"by": "its successor"}, plan=PLAN)
    with pytest.raises(SweptError):
        model.publish(sleeper)
    assert (model.card(), model.read("weights")) == (card, b"2")


def test_one_of_two_plans_that_claim_a_name_concurrently_is_refused(store: FeatureStore) -> None:
    @dataclass(frozen=True)
    class Slow(LocalStorage):
        """Another claims the name while this one is about to."""

        def create(self, key: str, data: bytes) -> bool:
            Artifact(LocalStorage(self.root), "model").claim({"k": 5})
            return super().create(key, data)

    slow = Artifact(Slow(store.artifact("model", "other").storage.location), "model")
    with pytest.raises(PlanMismatchError, match="k: 50, found 5"):
        slow.claim({"k": 50})


OTHER = {**PLAN, "seed": 1}


def leased(model: Artifact) -> None:
    """A driver started to write it and was killed."""
    with Lease(model.storage, purpose="train cnn2"):
        model.storage.write("weights", b"half")


def test_an_empty_started_folder_is_free(model: Artifact) -> None:
    leased(model)
    assert not model.holds(OTHER)
    assert model.plan() == PLAN
    model.claim(OTHER)
    assert (model.plan(), model.storage.size("weights")) == (OTHER, None)
    assert model.write({"weights": b"1"}, {}, plan=OTHER) == model.card()


def test_checkpoints_keep_a_place(model: Artifact) -> None:
    leased(model)
    model.storage.write("checkpoints/00000.json", b"{}")
    with pytest.raises(
        PlanMismatchError,
        match=r"was started with another plan \(seed: 1, found 0\): .* or remove /.*cnn2$",
    ):
        model.claim(OTHER)


def test_checkpoints_of_a_plan_that_failed_do_not(model: Artifact) -> None:
    leased(model)
    model.storage.write("checkpoints/00000.json", b"{}")
    model.mark_failed(PLAN, "it collapsed")
    model.claim(OTHER)
    assert {key for key in model.storage.keys("") if "lease" not in key} == {"plan.json"}


def test_a_finished_artifact_is_never_replaced(model: Artifact) -> None:
    model.mark_failed(PLAN, "it collapsed")
    model.write({"weights": b"1"}, {}, plan=PLAN)
    with pytest.raises(PlanMismatchError, match="was made with another plan"):
        model.claim(OTHER)


def test_a_name_used_by_another_plan_is_not_written(model: Artifact) -> None:
    leased(model)
    model.claim(OTHER)
    with pytest.raises(PlanMismatchError, match="seed: 0, found 1"):
        model.write({"weights": b"1"}, {}, plan=PLAN)
    assert not model.is_complete()


def test_files_are_not_written_under_the_plan_of_another_run(model: Artifact) -> None:
    """A run that computes without a lease is overtaken by one with another plan."""
    leased(model)  # by an earlier run of the same plan, which was killed
    model.claim(PLAN)
    model.claim(OTHER)
    with pytest.raises(PlanMismatchError, match="seed: 0, found 1"):
        model.write({"weights": b"1"}, {}, plan=PLAN)
    assert model.plan() == OTHER
