"""The stage train-quality: the sparse autoencoder of UNIQUE, trained on patches of photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from pipeline.fields import Place, Written
from pipeline.make import ArtifactJob, Output
from pipeline.stage import Preview, Stage
from pipeline.workspace import Workspace
from stages.data.fingerprint import listing_content
from stages.data.option_types import OutputName
from stages.data.registry import name_of
from stages.data.regular import size_of_regular
from stages.errors import DataNotFoundError, InputError
from store.plan import Plan

Weight = Annotated[float, Field(ge=0, le=1e6)]
"""Weight of a term of the cost; larger ones overflow."""

VERSION = 1
"""Raised whenever the weights for the same options and images change."""


class TrainQuality(Stage):
    """Train the sparse autoencoder of UNIQUE, which measures image quality, on photographs.

    Random 8x8 patches are read in YGCr and whitened; L-BFGS minimises reconstruction error,
    sparsity and weight decay. No labels are needed. A run that is interrupted starts again.
    """

    verb = "train-quality"
    makes = "quality-model"
    examples = ("train-quality --images ./photos",)

    images: Annotated[str, Place.FILE, Written(metavar="FOLDER")] = Field(
        description="Folder of photographs, in which images are found at any depth."
    )
    name: OutputName | None = Field(
        None, description="Name of the quality model. (default: the name of the folder)"
    )
    max_images: PositiveInt = Field(
        1000, description="Number of images to use at most, drawn by the seed."
    )
    patches: PositiveInt = Field(100, description="Random patches per image.")
    hidden: Annotated[PositiveInt, Field(le=4096)] = Field(
        400, description="Hidden units, at most 4096."
    )
    sparsity: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.035, description="Target of each hidden unit's mean activation."
    )
    sparsity_weight: Weight = Field(5.0, description="Weight of the sparsity term.")
    weight_decay: Weight = Field(3e-3, description="Weight decay of both layers.")
    iterations: PositiveInt = Field(200, description="Iterations of L-BFGS at most.")
    seed: NonNegativeInt = Field(0, description="Seed of images, patches and initial weights.")

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The training; raises ``InputError`` for a folder without images."""
        from stages.quality.patch_sampling import check_number, sampled_patches

        store, folder = workspace.store, Path(self.images).absolute()
        files = _images_in(folder)
        n_patches = min(len(files), self.max_images) * self.patches
        check_number(n_patches)
        plan = self.plan(folder, files)
        plain = name_of(folder)
        name = workspace.output_name(self.makes, self.name, plain, "quality", plan)

        def compute() -> Output:
            found = sampled_patches(
                [folder / each for each in files], self.max_images, self.patches, self.seed
            )
            return self._trained(found.patches, f"train {name}", found.facts())

        return ArtifactJob(
            store,
            store.artifact(self.makes, name),
            plan,
            title=f"train {name}",
            preview=Preview(
                f"train {name} on {n_patches:,} patches of {n_patches // self.patches:,} images",
                {self.makes: name, "plan": plan},
            ),
            compute=compute,
        )

    def plan(self, folder: Path, files: list[str]) -> Plan:
        """Everything that determines the weights."""
        listed = [(each, size_of_regular(folder / each)) for each in files]
        source = {"name": name_of(folder), "fingerprint": listing_content(folder, listed)}
        params = self.model_dump(mode="json", exclude={"images", "name"})
        return {
            "stage": {"name": self.verb, "version": VERSION, "params": params},
            "inputs": {"source": source},
        }

    def _trained(self, patches: object, title: str, facts: dict[str, int]) -> Output:
        import numpy as np

        from pipeline.progress import Progress
        from stages.quality.autoencoder import Penalties, initial, trained
        from stages.quality.autoencoder_files import WEIGHTS_KEY, content_of, encoded
        from stages.quality.patches import FLAT, PATCH_VALUES, centred, whitening

        read = centred(np.asarray(patches, np.float64))
        if not np.any(np.abs(read) > FLAT):
            raise InputError(
                f"{self.images}: all {read.shape[1]:,} patches are equal, expected photographs "
                "with some structure"
            )
        whitened = whitening(read) @ read
        start = initial(PATCH_VALUES, self.hidden, np.random.default_rng([self.seed, 1]))
        penalties = Penalties(self.sparsity, self.sparsity_weight, self.weight_decay)
        with Progress(title, self.iterations, unit="iterations") as progress:
            model, cost = trained(
                start, whitened, penalties, self.iterations, lambda: progress.advance(1)
            )
        if not np.isfinite(cost):
            raise InputError(
                "the cost of the training became infinite: use a smaller --sparsity-weight, or "
                "more photographs"
            )
        return {WEIGHTS_KEY: encoded(model)}, {
            **facts,
            "n_patches": whitened.shape[1],
            "cost": cost,
            "weights_content": content_of(model),
        }


def _images_in(folder: Path) -> list[str]:
    """The images below a folder; raises ``InputError`` if there are none."""
    from stages.data.listing import expected_images, images_below

    if not folder.is_dir():
        raise DataNotFoundError(f"{folder}: no such folder, expected one of photographs")
    found, left_out = images_below(folder)
    if not found:
        raise InputError(f"{folder}: {expected_images('photographs', left_out)}")
    return found
