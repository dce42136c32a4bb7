"""What a shell is offered to complete: names in the store, data sets, recipes and choices."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command
from small_data import write_npz_set

from store.catalog import FeatureStore


@pytest.fixture
def offered(
    store: FeatureStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    intro_pipe: Command,
) -> Callable[[str], list[str]]:
    """Returns what bash would offer after some words, beside a model of digits named m."""
    write_npz_set(tmp_path / "few", 20, 20)
    monkeypatch.setenv("INTRO_PIPE_STORE", store.location)
    monkeypatch.setenv("INTRO_PIPE_DATA", str(tmp_path))
    intro_pipe("train-sensing --dataset few --network cnn2 --epochs 1 --name m")
    intro_pipe("extract --executor local --dataset few")

    def complete(words: str) -> list[str]:
        monkeypatch.setenv("_INTRO_PIPE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", f"intro-pipe {words}")
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" "))))
        return intro_pipe("")[0].split()

    return complete


def test_a_shell_is_offered_the_words_that_fit(
    offered: Callable[[str], list[str]], store: FeatureStore
) -> None:
    (features,) = (each.name for each in store.feature_sets())
    expected = {
        "train-head --features f": [features],
        "query ": [features],
        "verify f": [features],
        "repair f": [features],
        "extract --model ": ["m"],
        "predict --model ": ["m"],
        "reproduce table-1": ["table-1", "table-10", "table-11", "table-12"],
        "extract --dataset cifar10": ["cifar10", "cifar10c"],
        "extract --precision ": ["fp32", "bf16"],
        "extract --denoise med": ["median"],
        "active-learn --strategy badge,marg": ["badge,margin"],
        "impo": ["import-model"],
    }

    assert {words: offered(words) for words in expected} == expected
