"""The JSON files of a Hugging Face model are checked before transformers reads them."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.errors import InputError
from stages.sensing.hf_config import check_config


@pytest.mark.parametrize(
    "setting",
    [
        {"attn_implementation": "owner/kernel"},
        {"vision_config": {"_attn_implementation": "owner/kernel"}},
        {"architecture": "hf-hub:owner/name"},
        {"architecture": "local-dir:/elsewhere"},
        {"model_args": {"checkpoint_path": "/elsewhere/weights.pth"}},
        {"model_args": {"pretrained_cfg_overlay": {"file": "/elsewhere/weights.pth"}}},
        {"backbone": "owner/name", "use_pretrained_backbone": True},
        {"configuration_files": ["config.1.0.0.json"]},
    ],
)
def test_settings_that_run_code_or_read_other_files_are_refused(
    tmp_path: Path, setting: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **setting}))
    with pytest.raises(InputError, match="which may read other files, or run or download code"):
        check_config(tmp_path / "config.json", "hf:x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"num_hidden_layers": 1000000}', "'num_hidden_layers', expected at most 1,000"),
        ('{"depths": [1, 5000]}', "'depths', expected at most 1,000"),
        ('{"num_labels": 1000000000}', "'num_labels', expected at most 1,000,000"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", r"cannot be read as JSON \(expected an object"),
    ],
)
def test_sizes_without_bounds_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        check_config(tmp_path / "config.json", "hf:x")


def test_usual_settings_are_accepted(tmp_path: Path) -> None:
    usual = {"architecture": "resnet50.a1_in1k", "_attn_implementation": "sdpa", "backbone": None}
    usual |= {"text_config": {"vocab_size": 256_000}, "depths": [2, 2, 18, 2], "model_args": {}}
    (tmp_path / "config.json").write_text(json.dumps(usual))
    check_config(tmp_path / "config.json", "hf:x")
