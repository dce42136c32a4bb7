"""The kinds of steps, by name.

Each finds what has its plan, under any name, or says how to make it, and calls what the command of
the same name calls. What they import is heavy: it waits until a recipe has been checked.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from pipeline.steps import StepKind
from stages.recipes.params import (
    COLUMNS,
    SENSING,
    ActiveLearnParams,
    CorruptParams,
    EvaluateParams,
    ExtractParams,
    FitNeighboursParams,
    FitTemperatureParams,
    OodParams,
    ReportParams,
    SnapshotParams,
    TrainHeadParams,
    TrainSensingParams,
)

EXTRACTED = ("extract",)
MODELS = ("train-sensing", "snapshot")
HEADS = ("train-head", "fit-temperature", "fit-neighbours")


def _later(module: str, name: str) -> Callable[..., Any]:  # Any: a task, or nothing
    """A function of this package, imported when it is called."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"stages.recipes.{module}"), name)(*arguments)

    return call


KINDS = {
    kind.name: kind
    for kind in (
        StepKind("corrupt", CorruptParams, _later("images", "corrupt_task")),
        StepKind(
            "train-sensing",
            TrainSensingParams,
            _later("networks", "training_task"),
            check=_later("networks", "check_training"),
        ),
        StepKind(
            "snapshot",
            SnapshotParams,
            _later("networks", "snapshot_task"),
            one={"model": ("train-sensing",)},
            check=_later("networks", "check_snapshot"),
        ),
        StepKind(
            "extract",
            ExtractParams,
            _later("images", "extract_task"),
            one={"model": MODELS, "images": ("corrupt",), "through": ("train-head",)},
            check=_later("images", "check_data"),
        ),
        StepKind(
            "train-head",
            TrainHeadParams,
            _later("heads", "head_task"),
            one={"features": EXTRACTED},
        ),
        StepKind(
            "fit-temperature",
            FitTemperatureParams,
            _later("heads", "temperature_task"),
            one={"features": EXTRACTED},
        ),
        StepKind(
            "fit-neighbours",
            FitNeighboursParams,
            _later("heads", "neighbours_task"),
            one={"features": EXTRACTED},
        ),
        StepKind(
            "evaluate",
            EvaluateParams,
            _later("results", "result_task"),
            one={"features": EXTRACTED},
            many={"heads": HEADS},
            labelled=("heads",),
            taken_labels=(SENSING,),
        ),
        StepKind(
            "ood",
            OodParams,
            _later("results", "ood_task"),
            one=dict.fromkeys(
                ("features", "against", "training", "odin_features", "odin_against"), EXTRACTED
            ),
            many={"heads": HEADS},
            labelled=("heads",),
            taken_labels=(SENSING,),
            check=_later("results", "check_sets_apart"),
        ),
        StepKind(
            "active-learn",
            ActiveLearnParams,
            _later("learning", "learning_task"),
            one={"images": ("corrupt",)},
            check=_later("learning", "check_learning"),
        ),
        StepKind(
            "report",
            ReportParams,
            _later("results", "report_task"),
            many={"results": ("evaluate", "ood", "active-learn")},
            taken_axes=COLUMNS,
        ),
    )
}
"""What a recipe can do."""
