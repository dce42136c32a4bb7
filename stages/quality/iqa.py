"""The stage iqa: quality of distorted images by full-reference measures, and how people agree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.fields import OneOf, Place, Ref, Written
from pipeline.make import ArtifactJob, Output, ShardJob
from pipeline.stage import Preview, Several, Stage
from pipeline.terminal import counted
from pipeline.workspace import Workspace
from stages.data.corruptions.cells import cells_of
from stages.data.known import data_root_path
from stages.data.option_types import CorruptionCell, Resamples
from stages.errors import DataNotFoundError, InputError
from stages.quality.pairs_spec import PairsSpec
from store.disk import spelled_out
from store.plan import Plan, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.quality.pairs import Pairs
    from stages.quality.scoring import Scoring, WeightsAt

VERSION = 1
"""Raised whenever the result for the same scores changes."""

SHARD_PAIRS = 64
"""Pairs in a shard by default: seconds to minutes of work."""

INTROSPECTIVE = "introspective-unique"
_CHOICES = ("psnr", "ssim", "ms-ssim", "vif", "unique", INTROSPECTIVE)

MeasureName = Annotated[str, OneOf(_CHOICES)]
Reading = Literal["paper_w1", "surprisal_w2", "plain_w2"]
File = Annotated[str, Place.FILE, Written(metavar="FILE")]


class Iqa(Stage):
    """Score distorted images against their references, and compare the scores with opinions.

    Pairs are those of a data set of image quality, of a table, or photographs that are corrupted
    while they are read. Running the command again computes only what is missing.
    """

    verb = "iqa"
    makes = "result"
    runs_with = ("data_root", "executor", "workers", "memory", "address")
    examples = (
        "iqa --dataset tid2013 --measure psnr,ssim,unique --weights ImageNet_Weights_YGCr.mat",
        "iqa --references ./photos --corrupt all",
    )

    dataset: Annotated[str, Place.DATA, Written(metavar="DATA")] | None = Field(
        None,
        description="Folder of TID2013, LIVE-MD, CSIQ or KADID-10k: a name under the data root, or "
        "a path.",
    )
    pairs: File | None = Field(
        None,
        description="CSV or Parquet table with the columns reference and distorted, and optionally "
        "mos, std, distortion and level.",
    )
    references: Annotated[str, Place.FILE, Written(metavar="FOLDER")] | None = Field(
        None, description="Folder of photographs that are corrupted with --corrupt."
    )
    corrupt: Several[CorruptionCell] = Field(
        (),
        description="Corruptions of --references, separated by commas: fog:3, fog for all "
        "severities, or all for 19 corruptions at 5 severities.",
    )
    corruption_seed: NonNegativeInt = Field(0, description="Seed of --corrupt.")
    measures: Annotated[
        Several[MeasureName], Written(option="--measure", metavar="LIST"), Field(min_length=1)
    ] = Field(
        ("psnr", "ssim"),
        description="Measures, separated by commas: psnr, ssim, ms-ssim, vif, unique or "
        "introspective-unique.",
    )
    reading: Annotated[Several[Reading], Field(min_length=1)] = Field(
        ("paper_w1",),
        description="Readings of introspective-unique: paper_w1, gradients of the first layer as "
        "in the paper; surprisal_w2, the later code of its authors; plain_w2, gradients of the "
        "decoder.",
    )
    model: Annotated[str, Ref(("quality-model",)), Written(metavar="QUALITY-MODEL")] | None = Field(
        None, description="Quality model of the store, for unique and introspective-unique."
    )
    weights: Annotated[str, Place.WEIGHTS, Written(metavar="FILE")] | None = Field(
        None,
        description="Weights of its autoencoder in a file instead: safetensors, or the MATLAB file "
        "of UNIQUE's authors.",
    )
    resamples: Resamples = 1000
    seed: NonNegativeInt = Field(0, description="Seed of the bootstrap.")
    limit: PositiveInt | None = Field(None, description="Use only the first N pairs.")
    shard_pairs: PositiveInt = Field(
        SHARD_PAIRS, description="Pairs per shard, the unit of writing and resuming."
    )
    retry_failed: bool = Field(
        False, description="Recompute the shards with pairs that failed, and the missing ones."
    )
    accept_failed: bool = Field(
        False,
        description="Accept any number of failed pairs. (default: at most 1 % of them, or 10)",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        given = [each for each in (self.dataset, self.pairs, self.references) if each is not None]
        if len(given) != 1:
            raise ValueError("expected one of --dataset, --pairs and --references")
        if (self.references is not None) != bool(self.corrupt):
            raise ValueError("expected --references and --corrupt together")
        if self.model is not None and self.weights is not None:
            raise ValueError("expected --model or --weights, found both")
        return self

    def check(self, workspace: Workspace, needs: Mapping[str, Stage]) -> None:
        """Raise ``InputError`` if the pairs or the weights do not exist."""
        self.spec(workspace).open()
        if "model" not in needs:
            self._weights(workspace)

    def spec(self, workspace: Workspace) -> PairsSpec:
        """Where the pairs are."""
        if self.references is not None:
            cells = cells_of(self.corrupt, self.corruption_seed)
            return PairsSpec("references", _full(self.references), cells, self.limit)
        if self.pairs is not None:
            return PairsSpec("manifest", _full(self.pairs), limit=self.limit)
        assert self.dataset is not None  # `_fits`
        root = data_root_path(workspace.data_root)
        places = (root / self.dataset, spelled_out(self.dataset).absolute())
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            raise DataNotFoundError(
                f"{self.dataset}: no such folder, expected a data set of image quality; looked at "
                f"{' and '.join(dict.fromkeys(map(str, places)))}"
            )
        return PairsSpec("dataset", str(found), limit=self.limit)

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The result, which is computed from stored scores.

        Raises:
            DataNotFoundError, InputError: pairs or weights do not exist or do not fit.
        """
        from stages.quality.measures import columns_of, require_libraries
        from stages.quality.scoring import Scoring

        measures = columns_of(self.measures, self.reading)
        require_libraries(measures)
        spec = self.spec(workspace)
        pairs = workspace.once(spec, spec.open)
        scoring = Scoring(spec, measures, self._weights(workspace), self.shard_pairs)
        scores = self._scores(workspace, scoring, pairs)
        store, plan = workspace.store, self.plan(scores)
        name = f"{pairs.name}-quality-{fingerprint(plan)}"
        artifact = store.artifact("result", name)
        if self.retry_failed and artifact.is_complete():
            raise InputError(
                f"--retry-failed: result {name} was made without the failed pairs; remove "
                f"{artifact.storage.location} first"
            )
        return ArtifactJob(
            store,
            artifact,
            plan,
            title=f"iqa {pairs.name}",
            preview=Preview(
                f"{scores.preview.text}, and make {name}", {**scores.preview.facts, "result": name}
            ),
            compute=lambda: self._result(scores, measures, pairs),
            check=scores.refuse,
            make_parts=scores.run,
        )

    def plan(self, scores: ShardJob) -> Plan:
        """Everything that determines the result."""
        params = {"resamples": self.resamples, "seed": self.seed}
        return {
            "stage": {"name": self.verb, "version": VERSION, "params": params},
            "inputs": {"scores": scores.output_name},
        }

    def _weights(self, workspace: Workspace) -> WeightsAt | None:
        """The autoencoder, if a measure needs one; raises ``InputError`` if none is given."""
        from stages.quality.measures import MEASURES, columns_of
        from stages.quality.scoring import WeightsAt

        names = columns_of(self.measures, self.reading)
        needing = [name for name in names if MEASURES[name].needs_model]
        if not needing:
            if self.model is not None or self.weights is not None:
                raise InputError(
                    "--model and --weights have no effect without the measure unique or "
                    f"{INTROSPECTIVE}"
                )
            return None
        if self.weights is not None:
            return WeightsAt(_full(self.weights))
        if self.model is not None:
            return WeightsAt(self.model, workspace.store.location)
        raise InputError(
            f"unique and {INTROSPECTIVE} need an autoencoder: give its --weights, or train one "
            "with `intro-pipe train-quality` and give its name with --model"
        )

    def _scores(self, workspace: Workspace, scoring: Scoring, pairs: Pairs) -> ShardJob:
        """The job that scores the pairs."""
        from stages.quality.score_job import score_job

        n_shards = -(-len(pairs.pairs) // scoring.shard_rows)
        executor, _ = workspace.workers(n_single_threaded=n_shards)
        plan = scoring.plan(pairs)
        text = (
            f"score {counted(len(pairs.pairs), 'pair')} of {pairs.name} by "
            f"{', '.join(scoring.measures)}, with {executor.description}"
        )
        facts = {"pairs": len(pairs.pairs), "executor": executor.description}
        return score_job(
            workspace.store,
            scoring,
            pairs,
            executor,
            plan=plan,
            preview=Preview(text, facts),
            retries=self.retry_failed,
            accepts_failures=self.accept_failed,
        )

    def _result(self, scores: ShardJob, measures: tuple[str, ...], pairs: Pairs) -> Output:
        from pipeline.progress import Progress
        from stages.metrics.bootstrap import Resampling
        from stages.quality.quality_result import result_of

        opinions = pairs.opinions if pairs.has_opinions else ""
        with Progress(f"compare {pairs.name}", len(measures), unit="measures") as progress:
            return result_of(
                scores.output,
                measures,
                opinions,
                Resampling(self.resamples, self.seed),
                lambda: progress.advance(1),
            )


def _full(path: str) -> str:
    return str(Path(spelled_out(path)).absolute())
