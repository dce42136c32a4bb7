"""The stage explain: maps of the places that speak for a class, or against it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt

from pipeline.fields import OneOf, Place, Ref, Written
from pipeline.make import ShardJob
from pipeline.stage import Several, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import FeatureSetName, OutputName
from stages.errors import InputError
from stages.explanation.draw_maps import COLOUR_MAP, ROWS
from stages.explanation.questions import PREDICTION, RUNNER_UP, TITLES, Method
from stages.out_folder import check_folder, write_files
from stages.reflection.conditions import WHERE
from store.featureset import FeatureSet
from store.shards import Shard
from store.shardset import ShardSet

if TYPE_CHECKING:
    from stages.scores.chosen_rows import Order


def _listed(value: Any) -> Any:  # Any: from YAML, JSON or the command line
    """A single word as a list of one."""
    return (value,) if isinstance(value, str) else value


class Explain(Stage):
    """Compute class activation maps that show why f predicts P, and why P rather than Q.

    Grad-CAM, CounterfactualCAM and ContrastCAM show the places in an image that speak for a class,
    or against it. The images of a feature set are sent through its network again, and the maps of
    each chosen row are stored; with --out they are also drawn. Where the network ends in global
    average pooling and a linear layer, all maps follow from one forward pass; elsewhere each takes
    a backward pass. Running the command again computes only what is missing.
    """

    verb = "explain"
    makes = "maps"
    runs_with = ("data_root", "executor", "gpus", "workers", "memory", "address", "device")
    examples = (
        'explain --features cifar10c@resnet18 --where "prediction!=label" --top 24 --out sheet',
        "explain --features cifar10c@resnet18 --disagree --method contrast-cam --contrast top-3",
    )

    features: Annotated[FeatureSetName, Field(description="Feature set whose rows are explained.")]
    method: Annotated[Several[Annotated[str, OneOf(tuple(TITLES))]], BeforeValidator(_listed)] = (
        Field(
            ("grad-cam", "counterfactual-cam", "contrast-cam"),
            description="Maps: grad-cam (Why P?), counterfactual-cam (What if not P?), "
            "contrast-cam (Why P, rather than Q?), voice (variance of the contrasts over all Q).",
        )
    )
    of_class: Annotated[str, Written("--class", "CLASS")] = Field(
        PREDICTION,
        description="Explained class P: prediction, label, or a class by name or number.",
    )
    contrast: Annotated[Several[str], BeforeValidator(_listed), Written(metavar="CLASS,...")] = (
        Field(
            (RUNNER_UP,),
            description="Contrast classes Q of contrast-cam: classes by name or number, runner-up "
            "(the most probable class other than P), or top-K (the K most probable ones).",
        )
    )
    layer: str | None = Field(
        None,
        description="Layer that maps are made of. (default: the one in front of the pooling)",
    )
    where: Annotated[
        Several[str], BeforeValidator(_listed), Written(is_repeated=True, metavar="CONDITION")
    ] = Field((), description=WHERE)
    rows: Annotated[Several[str], BeforeValidator(_listed)] = Field(
        (), description="Rows to explain, by sample id or row number. (default: all)"
    )
    head: Annotated[str, Ref(("head",)), Written(metavar="HEAD")] | None = Field(
        None,
        description="Head H whose predictions are stored too. (with --disagree: the model's only "
        "head)",
    )
    disagree: bool = Field(False, description="Explain the rows where f and H disagree.")
    top: PositiveInt | None = Field(None, description="Explain only so many rows, chosen by --by.")
    by: str = Field(
        "confidence",
        description="Column or score of f by which --top chooses: confidence, entropy, energy, "
        "margin, ...",
    )
    order: Annotated[str, OneOf(("lowest", "highest"))] = Field(
        "lowest", description="End of --by that --top keeps: lowest or highest."
    )
    dataset: Annotated[str, Place.DATA, Written(metavar="DATA")] | None = Field(
        None,
        description="Images of the feature set, by name or path. (default: the data set of that "
        "name)",
    )
    batch_size: PositiveInt | None = Field(
        None, description="Images per forward pass. (default: fitted to the network and memory)"
    )
    shard_rows: PositiveInt | None = Field(
        None,
        description="Rows per shard, the unit of writing and resuming. (default: at most 1,024, "
        "and 64 MB)",
    )
    name: OutputName | None = Field(
        None, description="Name of the maps. (default: the name of the features)"
    )
    out: Annotated[str, Place.OUTPUT, Written(metavar="FOLDER")] | None = Field(
        None,
        description=f"Folder to draw a contact sheet in, as an HTML page and PNGs, of at most "
        f"{ROWS} rows; draw-maps has more options.",
    )
    retry_failed: bool = Field(
        False, description="Recompute the shards that have failed rows, after the cause was fixed."
    )
    accept_failed: bool = Field(
        False,
        description="Accept any number of failed rows: the maps then count as complete without "
        "them. (default: at most 1 % of the rows, or 10)",
    )

    def check_given(self, options: Collection[str]) -> None:
        """Raise ``InputError`` for an option that has no effect beside the others."""
        for option in ("by", "order"):
            if option in options and self.top is None:
                raise InputError(f"--{option} has no effect without --top")
        for option in ("rows", "contrast"):
            if option in options and not getattr(self, option):
                raise InputError(f"--{option}: expected one or more values, found none")
        if "contrast" in options and "contrast-cam" not in self.method:
            raise InputError("--contrast has no effect without --method contrast-cam")

    def check(self, workspace: Workspace, needs: Mapping[str, Stage]) -> None:
        """Raise ``InputError`` if no method is given."""
        del workspace, needs
        if not self.method:
            raise InputError(f"--method: expected one or more of {', '.join(TITLES)}")

    def job(self, workspace: Workspace) -> ShardJob:
        """The extraction of maps.

        Raises:
            InputError: a class, a layer or a row does not exist, the images were perturbed or are
                not found, the network is not the one of the features, or ``out`` is a file.
        """
        from stages.explanation.explanation_job import Asked, explanation_job
        from stages.scores.chosen_rows import Choice

        self.check(workspace, {})
        if self.out is not None:
            check_folder(Path(self.out))
        order: Order = "highest" if self.order == "highest" else "lowest"
        asked = Asked(
            self.features,
            self.methods,
            self.contrast,
            self.of_class,
            self.layer,
            self.head,
            self.where,
            Choice((), self.rows, self.disagree, self.top, self.by, order),
            self.dataset,
            self.batch_size,
            self.shard_rows,
            self.name,
        )
        return replace(
            explanation_job(asked, workspace),
            redo=_shards_with_failed_rows if self.retry_failed else None,
            accepts_failures=self.accept_failed,
            copy=partial(self._drawn, workspace),
        )

    def _drawn(self, workspace: Workspace, maps: FeatureSet) -> list[Path]:
        """Draw the maps into the folder ``out``, if there is one."""
        from stages.explanation.map_sheet import map_sheet, sheet_files
        from stages.explanation.stored_maps import open_maps

        if self.out is None:
            return []
        stored = open_maps(workspace, maps.name, self.dataset)
        title = f"Maps of {maps.plan['name']}"
        command = shlex.join(["intro-pipe", *workspace.command])
        rows = stored.spaced_rows(ROWS)
        sheet = map_sheet(stored, rows, title=title, colour_map=COLOUR_MAP, command=command)
        return write_files(Path(self.out), sheet_files(sheet))

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods, each once."""
        return tuple(dict.fromkeys(self.method))  # type: ignore[arg-type]  # checked by OneOf


def _shards_with_failed_rows(maps: ShardSet) -> list[Shard]:
    failed = maps.failed_rows()
    return [shard for shard in maps.shards if shard.index in failed]
