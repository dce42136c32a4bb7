"""The stage draw-maps: stored maps over their images, on a contact sheet."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from pipeline.fields import OneOf, Place, Ref, Written
from pipeline.make import ArtifactJob, Output
from pipeline.stage import Preview, Stage
from pipeline.workspace import Workspace
from stages.data.option_types import OutputName
from stages.out_folder import check_folder, write_files
from stages.sheets.colour_maps import COLOUR_MAPS
from store.artifacts import Artifact
from store.plan import fingerprint

VERSION = 1
"""Raised whenever the sheet of the same maps changes."""

ROWS, COLOUR_MAP = 24, "viridis"
"""How many rows are drawn by default, and in which colours."""

Maps = Annotated[str, Ref(("maps",)), Written(metavar="MAPS")]
Images = Annotated[
    str,
    Place.DATA,
    Written(metavar="DATA"),
    Field(description="Images of the maps, by name or path. (default: the data set of that name)"),
]


class DrawMaps(Stage):
    """Draw stored maps over their images: one HTML page without links, and PNG pictures.

    Each row shows the image and the answers to the questions that were asked about it.
    """

    verb = "draw-maps"
    makes = "sheet"
    runs_with = ("data_root",)
    examples = ("draw-maps --maps cifar10c@resnet18 --out sheet",)

    maps: Maps = Field(description="Maps of the store, made by explain.")
    rows: PositiveInt = Field(
        ROWS, description="Number of rows to draw, evenly spaced over the rows of the maps."
    )
    colour_map: Annotated[str, OneOf(tuple(COLOUR_MAPS))] = Field(
        COLOUR_MAP,
        description="Colours: viridis, inferno or cividis, which are perceptually uniform, or jet "
        "as in the paper.",
    )
    title: str | None = Field(
        None, description="Title of the sheet. (default: the name of the maps)"
    )
    dataset: Images | None = None
    name: OutputName | None = Field(
        None, description="Name of the sheet. (default: the name of the maps)"
    )
    out: Annotated[str, Place.OUTPUT, Written(metavar="FOLDER")] | None = Field(
        None, description="Folder to copy the page and the pictures to."
    )

    def job(self, workspace: Workspace) -> ArtifactJob:
        """The drawing.

        Raises:
            NotFoundError, IncompleteError: there are no such maps, or they are not finished.
            InputError, DataNotFoundError: their images are not found or have changed, every row
                failed, or ``out`` is a file.
        """
        from stages.explanation.stored_maps import open_maps

        if self.out is not None:
            check_folder(Path(self.out))
        store, command = workspace.store, shlex.join(["intro-pipe", *workspace.command])
        maps = store.open(self.maps, "maps")
        title = self.title or f"Maps of {maps.plan['name']}"
        params = {"rows": self.rows, "colour_map": self.colour_map, "title": title}
        plan = {
            "stage": {"name": self.verb, "version": VERSION, "params": params},
            "inputs": {"maps": maps.name, "model": maps.plan["inputs"]["model"]},
        }
        stem = f"{maps.plan['name']}-sheet"
        plain = f"{stem}-{fingerprint(plan)}"
        name = workspace.output_name("result", self.name, plain, stem, plan)

        def draw() -> Output:
            from stages.explanation.map_sheet import map_sheet, sheet_files

            stored = open_maps(workspace, maps.name, self.dataset)
            rows = stored.spaced_rows(self.rows)
            sheet = map_sheet(
                stored, rows, title=title, colour_map=self.colour_map, command=command
            )
            facts = {"title": title, "maps": maps.name, "rows": len(rows), "command": command}
            return sheet_files(sheet), facts

        return ArtifactJob(
            store,
            store.artifact("result", name),
            plan,
            title=f"draw {maps.name}",
            preview=Preview(f"draw {maps.name} as {name}", {"result": name}),
            compute=draw,
            check=lambda: open_maps(workspace, maps.name, self.dataset).spaced_rows(1),
            copy=self._copied,
        )

    def _copied(self, sheet: Artifact) -> list[Path]:
        if self.out is None:
            return []
        files = {name: sheet.read(name) for name in sheet.files()}
        return write_files(Path(self.out), files)
