"""Commands about images: datasets, corrupt, extract."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import typer

from cli import options
from cli.output import emit, note, table
from pipeline.terminal import size
from stages.verbs import IMAGES


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(epilog="Example: intro-pipe datasets --download cifar10c", rich_help_panel=IMAGES)(
        datasets
    )


def datasets(
    data_root: options.DataRoot = None,
    download: Annotated[
        str | None, typer.Option("--download", help="Download this data set and verify it.")
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """List the known data sets, which of them are on disk, and how to get the others."""
    from dataclasses import asdict

    from stages.data.download import download as fetch
    from stages.data.known import data_root_path
    from stages.data.registry import known_datasets

    root = data_root_path(data_root)
    if download and dry_run:
        note(f"would fetch {download} into {root}")
    elif download:
        fetch(download, root, _download_progress())
    infos = known_datasets(root)
    rows = [
        {
            "name": info.name,
            "images": " + ".join(f"{n:,} {split}" for split, n in info.n_rows.items()) or "-",
            "classes": len(info.class_names),
            "here": "yes" if info.is_on_disk else "no",
            "description, or how to get it": info.problem or info.how_to_get or info.description,
        }
        for info in infos
    ]
    emit([asdict(info) for info in infos], f"{table(rows)}\n\nData root: {root}", as_json=as_json)


def _download_progress() -> Callable[[str, int, int], None]:
    """Print a line every few seconds: file, bytes, percentage."""
    last = [time.monotonic()]

    def show(name: str, n_done: int, n_total: int) -> None:
        if time.monotonic() - last[0] > 3 or n_done == n_total:
            last[0] = time.monotonic()
            share = f" of {size(n_total)} ({n_done / n_total:.0%})" if n_total else ""
            note(f"{name}: {size(n_done)}{share}")

    return show
