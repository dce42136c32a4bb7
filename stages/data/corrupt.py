"""The stage corrupt: a set in the layout of CIFAR-10-C or ImageNet-C, from any labelled one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt

from pipeline.fields import Place, Written
from pipeline.stage import Job, Preview, Several, Stage
from pipeline.terminal import size
from pipeline.workspace import Workspace
from stages.data.classes import class_notes
from stages.data.corruption_files import CorruptedFiles, sized
from stages.data.corruption_set import (
    ExistingImages,
    corruption_folder,
    corruption_job,
    is_foreign,
)
from stages.data.corruption_work import CorruptionWork
from stages.data.corruptions.names import SIDES, Collection, collection_for
from stages.data.corruptions.pixels import SIDE
from stages.data.known import KNOWN, data_root_path
from stages.data.opened import facts_of, opened
from stages.data.option_types import ClassNames, Corruption, Dataset, Limit, Split
from stages.data.registry import SourceSpec
from stages.data.source_notes import left_out_of, source_notes
from stages.errors import InputError


def _below_the_root(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith(("/", "~")) or ".." in parts:
        raise ValueError("expected a name under the data root, such as digits-c")
    return name


class Corrupt(Stage):
    """Write corrupted images of any labelled data set, in the layout of CIFAR-10-C or ImageNet-C.

    By default every image is corrupted in 19 ways at 5 severities. Images of 32x32 pixels are
    written as arrays, with the constants of CIFAR-10-C; images of any other size as JPEG files,
    with those of Tiny-ImageNet-C (64x64) or ImageNet-C. Running the command again computes only
    what is missing.
    """

    verb = "corrupt"
    makes = "images"
    runs_with = ("data_root", "executor", "workers", "memory", "address")
    examples = ("corrupt --dataset cifar10", "corrupt --dataset ./photos --image-size 224")

    dataset: Dataset
    split: Split = "test"
    collection: Collection | None = Field(
        None,
        description="cifar10c, tinyimagenetc or imagenetc: 19 corruptions. cure: the six CURE-like "
        "distortions. rotations: 12, 24, ... 180 degrees. (default: cifar10c for 32 pixels, "
        "tinyimagenetc for 64, imagenetc for other sizes)",
    )
    corruptions: Several[Corruption] = Field(
        (), description="Corruptions to write, separated by commas. (default: all)"
    )
    to: Annotated[str, AfterValidator(_below_the_root), Written(is_hidden=True)] | None = Field(
        None,
        description="In a recipe, the name of the set under the data root. A set of that name that "
        "was not written by intro-pipe is used as it is.",
    )
    out: Annotated[str, Place.OUTPUT, Written(metavar="FOLDER")] | None = Field(
        None,
        description="Folder to write. (default: DATASET-c, -cure or -rotations under the data "
        "root)",
    )
    seed: NonNegativeInt = Field(0, description="Seed of the random numbers.")
    image_size: PositiveInt | None = Field(
        None,
        description="Height and width of the corrupted images in pixels. With 32, images of any "
        "shape are resized to it. With any other size, the shorter side is resized to 8/7 of it "
        "and the centre is cut out, as in ImageNet-C. (default: 32, but larger images and those "
        "that are not square are refused; 64 for tinyimagenetc, 224 for imagenetc)",
    )
    classes: ClassNames = ()
    limit: Limit | None = None

    def job(self, workspace: Workspace) -> Job:
        """The job that writes the set, or uses an existing one.

        Raises:
            InputError: the data set is unsuitable.
        """
        root = data_root_path(workspace.data_root)
        if self.to is not None and (self.to in KNOWN or is_foreign(root / self.to)):
            return self._existing(workspace, self.to, root / self.to)
        work = self._work(workspace, root)
        spec = work.source
        chosen = str(root / self.to) if self.to else self.out
        source = opened(workspace, spec)
        plan = work.plan(facts_of(workspace, spec), source)
        collection = plan["stage"]["params"]["collection"]
        folder = Path(chosen or corruption_folder(source.name, collection, root)).absolute()
        n_shards = -(-plan["n_rows"] // plan["shard_rows"])
        executor, _ = workspace.workers(n_single_threaded=n_shards)
        n_bytes = plan["n_rows"] * work.file_bytes
        preview = Preview(
            f"write {plan['n_rows']:,} images ({size(n_bytes)}) to {chosen or folder}",
            {"folder": chosen or str(folder), "bytes": n_bytes, "plan": plan} | left_out_of(source),
            [
                *source_notes(source),
                *class_notes(source, is_ordered=bool(self.classes)),
                *filter(None, [work.resized(source)]),
            ],
        )
        return corruption_job(workspace.store, work, folder, executor, plan, preview)

    def _work(self, workspace: Workspace, root: Path) -> CorruptionWork | CorruptedFiles:
        """The work that writes arrays for images of 32 pixels, and files for other sizes."""
        side = self.image_size or SIDES[self.collection or "cifar10c"]
        usual = collection_for((side, side))
        collection = self.collection or usual
        if collection != usual and SIDES[collection] != side:
            raise InputError(
                f"--collection {collection}: expected images of {SIDES[collection]} pixels, found "
                f"--image-size {side}, which uses the constants of {usual}; omit one of the two"
            )
        spec = SourceSpec(
            self.dataset, self.split, str(root), limit=self.limit, classes=self.classes
        )
        if side == SIDE:
            return CorruptionWork(
                spec, self.corruptions, self.seed, collection, self.image_size is not None
            )
        source = opened(workspace, replace(spec, image_size=side))
        return CorruptedFiles(sized(spec, source, side), self.corruptions, self.seed)

    def _existing(self, workspace: Workspace, name: str, folder: Path) -> ExistingImages:
        """An existing set that was not written here; refuses fields that say how to write one."""
        written = ("split", "collection", "corruptions", "seed", "classes", "image_size", "limit")
        for key in written:
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                shown = f"[{', '.join(value)}]" if isinstance(value, tuple) else value
                raise InputError(
                    f"{key} is {shown}, but the set '{name}' exists and is used unchanged: omit "
                    f"{key}, choose another name in 'to' to write a new set, or select a part of "
                    "this one with 'corruptions' and 'limit' of extract"
                )
        facts = facts_of(workspace, SourceSpec(name, "test", workspace.data_root))
        return ExistingImages({"source": facts["fingerprint"]}, str(folder), name)
