"""A short campaign of real kills; `make soak` runs a long one."""

from pathlib import Path

import campaign
import pytest
from campaign import LOCAL_FAULTS, Round, Verdict, reference_in, run_round, table_of

SHORT = (
    "kill driver",
    "kill driver early",
    "two drivers",
    "suspend",
    "failing disk",
    "full disk",
    "flip a bit",
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return reference_in(tmp_path_factory.mktemp("reference"))


def survived(fault: str, reference: dict[str, bytes], folder: Path) -> Verdict:
    verdict = run_round(1, folder, reference, fault)
    if "cannot be mounted" in verdict.problem:
        pytest.skip(verdict.problem)
    assert verdict.is_good, verdict
    return verdict


@pytest.mark.parametrize("fault", SHORT)
def test_a_set_is_whole_after(fault: str, reference: dict[str, bytes], tmp_path: Path) -> None:
    assert survived(fault, reference, tmp_path).repeated <= 1


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.parametrize("fault", ["kill worker (Ray)", "kill raylet (Ray)"])
def test_a_set_that_ray_makes_is_whole_after(
    fault: str, reference: dict[str, bytes], tmp_path: Path
) -> None:
    assert survived(fault, reference, tmp_path).repeated <= 2  # one shard a worker


def test_an_incomplete_set_is_detected(
    reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The campaign itself: what it compares is really compared."""

    def lose_a_byte(case: Round) -> None:
        case.finish()
        place = next(case.store.glob("features/*/samples/part-00003.parquet"))
        place.write_bytes(place.read_bytes()[:-1])

    monkeypatch.setitem(LOCAL_FAULTS, "lose a byte", lose_a_byte)
    assert not run_round(1, tmp_path, reference, "lose a byte").is_good


def test_a_second_driver_that_is_not_refused_is_detected(
    reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round itself: here the first driver does not give its name."""
    monkeypatch.setattr(campaign, "_named", lambda first: "(pid 0 on ")
    assert "was not refused" in run_round(1, tmp_path, reference, "suspend").problem


@pytest.mark.slow
def test_a_command_that_is_killed_ends_as_one_that_is_not(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stages = campaign.Stages(tmp_path_factory.mktemp("stages"))
    assert campaign.run_stage_round(1, tmp_path, stages, "kill corrupt").is_good


def test_the_table_adds_up() -> None:
    lines = table_of([Verdict("a", repeated=1), Verdict("b", lost=3), Verdict("a")]).splitlines()
    assert lines[2:] == [
        "| a | 2 | 0 | 0 | 0 | 0.50 |",
        "| b | 1 | 3 | 0 | 0 | 0.00 |",
        "| all | 3 | 3 | 0 | 0 | 0.33 |",
    ]
