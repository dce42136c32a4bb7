"""The command predict."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import typer

from cli import options
from cli.classes import note_names
from cli.completion import completing, names_in_store
from cli.frames import TableOptions
from cli.output import note
from cli.sources import note_left_out
from stages.verbs import APPLICATIONS


def add_to(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(
        epilog="Example: intro-pipe predict --head resnet18-h photo.jpg folder/",
        rich_help_panel=APPLICATIONS,
    )(options.grouped(predict))


@dataclass(frozen=True)
class HeadOptions:
    """The head that predicts."""

    head: Annotated[
        str,
        typer.Option(
            "--head",
            help="Trained head or temperature of the store; none for f alone, with --model.",
            autocompletion=completing(names_in_store("head")),
        ),
    ]
    model: Annotated[
        str | None,
        typer.Option(
            help="The head's model, if it has another name in this store.",
            autocompletion=completing(names_in_store("model")),
        ),
    ] = None
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the head to use. (default: the first)")
    ] = None

    def opened(self, store: Any, device: str, images: Any) -> Any:  # Any: importing torch is slow
        """The head and its model, or a model alone; raises ``InputError``, ``NotFoundError``."""
        from stages.errors import InputError
        from stages.prediction.introspective import open_f, open_introspective

        if self.head != "none":
            return open_introspective(
                store,
                self.head,
                model=self.model,
                seed=self.seed,
                device=device,
                images=images,
            )
        if self.model is None or self.seed is not None:
            raise InputError("--head none: expected --model NAME for f alone, and no --seed")
        return open_f(store, self.model, device=device, images=images)


def predict(
    which: HeadOptions,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Image files, and folders to search for images."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 128,
    device: options.Device = None,
    export: Annotated[
        str | None,
        typer.Option("--export", help="Save f and H as one torch.export program, FILE.pt2."),
    ] = None,
    *,
    shown: TableOptions,
    store: options.Store = options.DEFAULT_STORE,
) -> None:
    """Predict label and confidence of images with f and H, in one forward pass.

    Images are resized in the same way as the training images. Exit code 1 if no image has a
    prediction.
    """
    from pipeline.progress import Progress
    from pipeline.workspace import Execution, Workspace
    from stages.errors import InputError
    from stages.prediction.predict import OK, images_in, predict, resizing, sample_of
    from store.catalog import FeatureStore

    shown = shown.checked()
    if not images and export is None:
        raise InputError("nothing to predict: name image files or folders, or give --export FILE")
    files, left_out = images_in(images or [])
    note_left_out("images", left_out)
    workspace = Workspace(FeatureStore(store).require(), execution=Execution(device=device))
    introspective = which.opened(
        workspace.store, workspace.device, partial(sample_of, files) if files else None
    )
    note_names(introspective.card)
    if export is not None:
        _export(introspective, export)
    if not files:
        return
    if otherwise := resizing(introspective, files):
        note(otherwise)
    with Progress("predict", len(files)) as progress:
        frame = predict(introspective, files, batch_rows=batch_size, tick=progress.advance)
    rows: list[Any] = frame.to_dict(orient="records")
    shown.write(rows)
    n_failed = int((frame["status"] != OK).sum())
    if n_failed:
        note(f"{n_failed:,} of {len(frame):,} images have no prediction: see the column `status`")
    if n_failed == len(frame):
        sys.exit(1)


def _export(introspective: Any, path: str) -> None:  # Any: importing torch is slow
    from pathlib import Path

    from stages.errors import InputError
    from stages.prediction.introspective import export

    if not path.endswith(".pt2"):
        raise InputError(f"--export {path}: expected a file name that ends in .pt2")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"--export {path}: its folder does not exist")
    difference = export(introspective, path)
    note(f"saved {path}; read back, its logits differ by {difference:.1g} at most")
