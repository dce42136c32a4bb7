"""The Python API of intro-pipe: read a feature store, reflect, and use its models and heads.

>>> from intro_pipe import FeatureStore, reflect
>>> features = FeatureStore("intro-pipe-store").open("cifar10c@resnet18")  # doctest: +SKIP
>>> reflect(features, loss="ce").mean(axis=0).compute()  # doctest: +SKIP

Each name is imported from its own module when it is first used, so that ``import intro_pipe`` loads
neither torch nor Ray. Other modules may change in any release.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.errors import PipelineError
    from pipeline.make import make
    from pipeline.stage import Made, Stage
    from pipeline.workspace import Execution, Workspace
    from stages.active_learning.active_learn import ActiveLearn
    from stages.active_learning.keep_model import KeepModel
    from stages.analysis.analyse import Analyse
    from stages.conformal.conformal import Conformal
    from stages.curation.curate import Curate
    from stages.data.corrupt import Corrupt
    from stages.data.registry import known_datasets, open_source
    from stages.errors import InputError, StageError
    from stages.estimation.estimate_accuracy import EstimateAccuracy
    from stages.evaluation.evaluate import Evaluate
    from stages.explanation.draw_maps import DrawMaps
    from stages.explanation.evaluate_maps import EvaluateMaps
    from stages.explanation.explain import Explain
    from stages.failures.detect_failures import DetectFailures
    from stages.influence.influence import Influence
    from stages.introspection.fit_laplace import FitLaplace
    from stages.introspection.fit_neighbours import FitNeighbours
    from stages.introspection.fit_temperature import FitTemperature
    from stages.introspection.predictors import open_head, predictors
    from stages.introspection.train_head import TrainHead
    from stages.ood.detect import Detect
    from stages.ood.ood import Ood
    from stages.pruning.prune import Prune
    from stages.quality.iqa import Iqa
    from stages.quality.train_quality import TrainQuality
    from stages.recipes.run import Reproduce, Run
    from stages.reflection.batches import torch_dataset
    from stages.reflection.extract import Extract
    from stages.reflection.rank_one import RankOneGradient, last_layer_gradient
    from stages.reflection.view import reflect
    from stages.report.report import Report
    from stages.scores.row_scores import lazy_scores
    from stages.scores.score_rows import ScoreRows
    from stages.sensing.card import ModelCard
    from stages.sensing.import_model import ImportModel
    from stages.sensing.model import load_sensing
    from stages.sensing.models import models_of, weights_path
    from stages.sensing.train_sensing import TrainSensing
    from stages.uncertainty.uncertainty import Uncertainty
    from store.catalog import FeatureStore
    from store.errors import StoreError
    from store.featureset import FeatureSet, Selection

_HOMES = {
    "store.catalog": ("FeatureStore",),
    "store.featureset": ("FeatureSet", "Selection"),
    "store.errors": ("StoreError",),
    "stages.data.registry": ("known_datasets", "open_source"),
    "stages.sensing.card": ("ModelCard",),
    "stages.sensing.models": ("models_of", "weights_path"),
    "stages.sensing.model": ("load_sensing",),
    "stages.reflection.view": ("reflect",),
    "stages.scores.row_scores": ("lazy_scores",),
    "stages.reflection.rank_one": ("RankOneGradient", "last_layer_gradient"),
    "stages.reflection.batches": ("torch_dataset",),
    "stages.introspection.predictors": ("open_head", "predictors"),
    "stages.errors": ("InputError", "StageError"),
    "pipeline.errors": ("PipelineError",),
    "pipeline.make": ("make",),
    "pipeline.stage": ("Made", "Stage"),
    "pipeline.workspace": ("Execution", "Workspace"),
    "stages.data.corrupt": ("Corrupt",),
    "stages.sensing.train_sensing": ("TrainSensing",),
    "stages.sensing.import_model": ("ImportModel",),
    "stages.reflection.extract": ("Extract",),
    "stages.introspection.train_head": ("TrainHead",),
    "stages.introspection.fit_temperature": ("FitTemperature",),
    "stages.introspection.fit_laplace": ("FitLaplace",),
    "stages.introspection.fit_neighbours": ("FitNeighbours",),
    "stages.scores.score_rows": ("ScoreRows",),
    "stages.evaluation.evaluate": ("Evaluate",),
    "stages.uncertainty.uncertainty": ("Uncertainty",),
    "stages.failures.detect_failures": ("DetectFailures",),
    "stages.influence.influence": ("Influence",),
    "stages.pruning.prune": ("Prune",),
    "stages.conformal.conformal": ("Conformal",),
    "stages.estimation.estimate_accuracy": ("EstimateAccuracy",),
    "stages.curation.curate": ("Curate",),
    "stages.ood.ood": ("Ood",),
    "stages.ood.detect": ("Detect",),
    "stages.active_learning.active_learn": ("ActiveLearn",),
    "stages.active_learning.keep_model": ("KeepModel",),
    "stages.analysis.analyse": ("Analyse",),
    "stages.explanation.explain": ("Explain",),
    "stages.explanation.draw_maps": ("DrawMaps",),
    "stages.explanation.evaluate_maps": ("EvaluateMaps",),
    "stages.quality.train_quality": ("TrainQuality",),
    "stages.quality.iqa": ("Iqa",),
    "stages.report.report": ("Report",),
    "stages.recipes.run": ("Reproduce", "Run"),
}
"""Module -> the public names that it defines."""

__all__ = [
    "ActiveLearn",
    "Analyse",
    "Conformal",
    "Corrupt",
    "Curate",
    "Detect",
    "DetectFailures",
    "DrawMaps",
    "EstimateAccuracy",
    "Evaluate",
    "EvaluateMaps",
    "Execution",
    "Explain",
    "Extract",
    "FeatureSet",
    "FeatureStore",
    "FitLaplace",
    "FitNeighbours",
    "FitTemperature",
    "ImportModel",
    "Influence",
    "InputError",
    "Iqa",
    "KeepModel",
    "Made",
    "ModelCard",
    "Ood",
    "PipelineError",
    "Prune",
    "RankOneGradient",
    "Report",
    "Reproduce",
    "Run",
    "ScoreRows",
    "Selection",
    "Stage",
    "StageError",
    "StoreError",
    "TrainHead",
    "TrainQuality",
    "TrainSensing",
    "Uncertainty",
    "Workspace",
    "known_datasets",
    "last_layer_gradient",
    "lazy_scores",
    "load_sensing",
    "make",
    "models_of",
    "open_head",
    "open_source",
    "predictors",
    "reflect",
    "torch_dataset",
    "weights_path",
]


def __getattr__(name: str) -> Any:  # Any: mypy reads the imports above
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
