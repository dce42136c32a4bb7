"""The stage evaluate-maps: whether stored maps show what their network uses."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeInt, PositiveInt

from pipeline.make import ArtifactJob, Output
from pipeline.stage import Preview, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import OutputName
from stages.explanation.draw_maps import Images, Maps
from stages.explanation.questions import Question
from stages.sensing.models import weights_path
from stages.stored_card import StoredCard
from store.plan import fingerprint

if TYPE_CHECKING:
    from stages.explanation.stored_maps import StoredMaps
    from stages.explanation.tested_maps import Trial

VERSION = 1
"""Raised whenever a number for the same maps changes."""

BY_ROW, AVERAGE, SANITY = "by-row.parquet", "average.parquet", "sanity.parquet"

DEFINITIONS = {
    "score": "what a map makes a claim about: the probability of P (grad-cam), 1 less it "
    "(counterfactual-cam), or the probability of P divided by those of P and Q (contrast-cam)",
    "deletion": "area under the score while pixels become the mean pixel, those with the highest "
    "values first; lower is better",
    "insertion": "area under the score while a blurred image becomes sharp, pixels with the "
    "highest values first; higher is better",
    "drop": "relative loss of the score if the image is shown through the map; lower is better",
    "increase": "share of rows whose score rises then; higher is better",
    "rank correlation": "Spearman's, of the map and that of a network whose last layers have "
    "permuted weights; near 0 for a map that depends on them",
    "SSIM": "structural similarity of the same two maps, at the size of the image",
}


@dataclass(frozen=True)
class MapsCard(StoredCard):
    """The card of an evaluation of maps, in its order.

    Attributes:
        maps: full name of the set.
        model: name of the network.
        questions: each map in words.
        rows: number of rows that were tested.
        layer: the layer of the maps.
        steps, seed: options.
        definitions: measure -> its definition.
        versions: library -> its version.
        seconds: how long it took.
    """

    title: str
    maps: str
    model: str
    questions: tuple[str, ...]
    rows: int
    layer: str
    steps: int
    seed: int
    definitions: Mapping[str, str]
    versions: Mapping[str, str]
    seconds: float


class EvaluateMaps(Stage):
    """Measure how faithful stored maps are to their network, beside maps of noise.

    Deletion and insertion of pixels, drop and increase of confidence, and a sanity check with
    randomised layers.
    """

    verb = "evaluate-maps"
    makes = "result"
    runs_with = ("data_root", "device")
    examples = ("evaluate-maps --maps cifar10c@resnet18",)

    maps: Maps = Field(description="Maps of the store, made by explain.")
    rows: PositiveInt = Field(
        200, description="Number of rows to test, evenly spaced over the rows of the maps."
    )
    steps: PositiveInt = Field(
        16, description="Number of steps in which deletion and insertion replace the pixels."
    )
    seed: NonNegativeInt = Field(
        0, description="Seed of the noise, the order of equal pixels, and randomised layers."
    )
    dataset: Images | None = None
    name: OutputName | None = Field(
        None, description="Name of the result. (default: the name of the maps)"
    )

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The measurement.

        Raises:
            NotFoundError, IncompleteError: there are no such maps, or they are not finished.
            InputError, DataNotFoundError: their images are not found or have changed, or every row
                failed.
        """
        from stages.explanation.stored_maps import open_maps

        store, device = workspace.store, workspace.device
        maps = store.open(self.maps, "maps")
        params = {"rows": self.rows, "steps": self.steps, "seed": self.seed}
        plan = {
            "stage": {"name": self.verb, "version": VERSION, "params": params},
            "inputs": {"maps": maps.name, "model": maps.plan["inputs"]["model"]},
        }
        stem = f"{maps.plan['name']}-faithfulness"
        plain = f"{stem}-{fingerprint(plan)}"
        name = workspace.output_name("result", self.name, plain, stem, plan)

        def compute() -> Output:
            from stages.explanation.tested_maps import trial_of

            stored = open_maps(workspace, maps.name, self.dataset)
            weights = weights_path(store, stored.card.name)
            trial = trial_of(stored, weights, device, n_steps=self.steps, seed=self.seed)
            return self._tested(stored, trial)

        return ArtifactJob(
            store,
            store.artifact("result", name),
            plan,
            title=f"evaluate {maps.name}",
            preview=Preview(f"evaluate {maps.name} as {name}", {"result": name}),
            compute=compute,
            check=lambda: open_maps(workspace, maps.name, self.dataset).spaced_rows(1),
        )

    def _tested(self, stored: StoredMaps, trial: Trial) -> Output:
        from pipeline.progress import Progress
        from stages.explanation import tested_maps

        started = time.monotonic()
        rows = stored.spaced_rows(self.rows)
        n_rows = len(rows) * (1 + len(trial.n_randomised))
        with Progress(f"evaluate {stored.maps.name}", n_rows, unit="rows") as progress:
            tick = progress.advance
            by_row = tested_maps.faithfulness_by_row(trial, stored, rows, tick)
            sanity = tested_maps.sanity_by_row(trial, stored, rows, tick)
        frames = {
            BY_ROW: by_row,
            AVERAGE: tested_maps.faithfulness_means(by_row, len(rows), len(stored.questions)),
            SANITY: tested_maps.sanity_means(sanity),
        }
        card = MapsCard(
            f"Faithfulness of maps of {stored.maps.plan['name']}",
            stored.maps.name,
            stored.card.name,
            tuple(_name_of(each, stored.names) for each in stored.questions),
            len(rows),
            trial.layer.name,
            self.steps,
            self.seed,
            DEFINITIONS,
            {each: version(each) for each in ("intro-pipe", "torch", "numpy", "scikit-image")},
            round(time.monotonic() - started, 1),
        )
        files = {name: frame.to_parquet(index=False) for name, frame in frames.items()}
        return files, asdict(card)


def _name_of(question: Question, names: Sequence[str]) -> str:
    """A map in a table.

    >>> _name_of(Question("contrast-cam", rank=1), []), _name_of(Question("contrast-cam", 0), "ab")
    ('contrast-cam, runner-up', 'contrast-cam, Q = a')
    """
    if question.rank is not None:
        rank = "runner-up" if question.rank == 1 else f"Q of rank {question.rank}"
        return f"{question.method}, {rank}"
    if question.contrast is not None:
        return f"{question.method}, Q = {names[question.contrast]}"
    return question.method
