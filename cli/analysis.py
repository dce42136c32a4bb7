"""Commands that look closer: analyse for the method, predict for images of one's own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.output import emit, note, table

if TYPE_CHECKING:
    import pandas as pd

    from stages.applications.analysis import Analysis

SEVERITY_SHOWN = (
    "accuracy",
    "fisher_trace",
    "fisher_trace_empirical",
    "feature_energy",
    "impurity",
)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(
        epilog="Example: intro-pipe analyse --features cifar10@resnet18 --against cifar10c@resnet18"
    )(analyse)
    app.command(epilog="Example: intro-pipe predict --head resnet18-h photo.jpg folder/")(predict)


def analyse(
    features: Annotated[str, typer.Option("--features", help="A feature set of the store.")],
    against: Annotated[
        str | None,
        typer.Option("--against", help="Another set of the same model, e.g. its corrupted images."),
    ] = None,
    by: Annotated[
        str, typer.Option("--by", help="Columns that group the rows, where a set has them.")
    ] = "corruption,severity",
    loss: Annotated[
        list[str] | None,
        typer.Option("--loss", help="Another loss for Theorem 1, beside ce and mse-m."),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Evenly spaced rows of each set. (default: all)")
    ] = None,
    row: Annotated[
        int | None,
        typer.Option(
            min=0, help="Whose gradients are drawn. (default: three rows that f got right)"
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", help="Folder to copy the pictures and tables to.")
    ] = None,
    store: options.Store = options.DEFAULT_STORE,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure Lemma 1, Theorem 1 and the Fisher trace on stored features, and draw the gradients.

    Closed forms, one shard at a time: no image is read, no gradient is written out.
    """
    from pipeline.journal import Journal
    from stages.applications.analysis import THEOREM_LOSSES, Choice, analyse, result_of
    from store.catalog import FeatureStore

    place = FeatureStore(store)
    choice = Choice(
        tuple(place.open(name) for name in (features, against) if name is not None),
        by=options.names(by),
        losses=tuple(dict.fromkeys([*THEOREM_LOSSES, *(loss or [])])),
        n_rows=rows,
        row=row,
    )
    if dry_run:
        name = result_of(place, choice).name
        emit({"result": name}, f"would analyse {features}: {name}", as_json=as_json)
        return
    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        result = analyse(place, choice, journal=journal)
    if out is not None:
        _copy(result, out)
    found = {
        "result": result.artifact.name,
        "location": result.artifact.storage.location,
        "average": _records(result.average),
        "by_group": _records(result.by_group),
        "definitions": result.facts["definitions"],
        "losses": result.facts["losses"],
    }
    emit(found, _text(result), as_json=as_json)


def predict(
    head: Annotated[
        str, typer.Option("--head", help="A trained head or a temperature of the store.")
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Image files, and folders that are searched for them."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The head's model, where it has got another name.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Which of the head's seeds. (default: the first)")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 128,
    device: options.Device = None,
    export: Annotated[
        str | None,
        typer.Option("--export", help="Save f and H as one torch.export program, FILE.pt2."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="table, csv, json or parquet. (default: by --out's ending)"),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="File to write to.")] = None,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Say what f and H see in images: label and confidence of each, in one forward pass.

    Images are resized as extraction does it. Exit code 1 where none of them could be read.
    """
    from cli.frames import form_of, write_frame
    from pipeline.progress import Progress
    from stages.applications.introspective import open_introspective
    from stages.applications.prediction import OK, images_in, predict
    from stages.errors import InputError
    from store.catalog import FeatureStore

    if not images and export is None:
        raise InputError("nothing to predict: name image files or folders, or give --export FILE")
    files = images_in(images or [])
    introspective = open_introspective(
        FeatureStore(store).require(),
        head,
        model=model,
        seed=seed,
        device=options.device_of(device),
    )
    if export is not None:
        _export(introspective, export)
    if not files:
        return
    with Progress("predict", len(files)) as progress:
        frame = predict(introspective, files, batch_rows=batch_size, tick=progress.advance)
    write_frame(frame, form or ("json" if as_json else form_of(out)), out)
    n_failed = int((frame["status"] != OK).sum())
    if n_failed:
        note(f"{n_failed:,} of {len(frame):,} images could not be read")
    if n_failed == len(frame):
        sys.exit(1)


def _export(introspective: Any, path: str) -> None:  # Any: torch stays out of this module
    from pathlib import Path

    from stages.applications.introspective import export
    from stages.errors import InputError

    if not path.endswith(".pt2"):
        raise InputError(f"--export {path}: expected a file that ends in .pt2, as torch has it")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"--export {path}: there is no such folder")
    difference = export(introspective, path)
    note(f"saved {path}; read back, its logits differ by {difference:.1g} at most")


def _copy(result: Analysis, out: str) -> None:
    from pathlib import Path

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name in result.facts["files"]:
        if not name.endswith(".parquet"):
            (folder / name).write_bytes(result.artifact.read(name))
    result.by_group.to_csv(folder / "by-group.csv", index=False)
    result.average.to_csv(folder / "average.csv", index=False)
    note(f"pictures and tables in {out}")


def _text(result: Analysis) -> str:
    """The means beside each other, the Fisher trace by severity, and every definition."""
    definitions: dict[str, str] = result.facts["definitions"]
    names = _short_names(result.average["features"].tolist())
    means = [
        {
            "quantity": quantity,
            **{
                name: _number(value)
                for name, value in zip(names, result.average[quantity], strict=True)
            },
        }
        for quantity in definitions
    ]
    parts = [result.facts["title"], table(means)]
    if "severity" in result.by_group:
        parts += ["by severity, mean over its groups", table(_by_severity(result.by_group))]
    parts.append("\n".join(f"  {name}: {text}" for name, text in definitions.items()))
    if M := next((M for M in result.facts["losses"].values() if M is not None), None):
        parts.append(f"  M = {M:.4f}, from {result.facts['M_from']}")
    parts.append(f"tables and pictures: {result.artifact.storage.location}")
    return "\n\n".join(parts)


def _by_severity(by_group: pd.DataFrame) -> list[dict[str, Any]]:
    groups = by_group.groupby("severity", dropna=False)[list(SEVERITY_SHOWN)].mean()
    ordered = groups.sort_index(na_position="first").reset_index()
    return [
        {
            "severity": "none" if row["severity"] is None else str(row["severity"]),
            **{name: _number(row[name]) for name in SEVERITY_SHOWN},
        }
        for row in _records(ordered)
    ]


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4g}"


def _short_names(names: list[str]) -> list[str]:
    """The names without their fingerprints, where they can still be told apart."""
    short = [name.rpartition("-")[0] for name in names]
    return short if len(set(short)) == len(names) else names


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; what is not there is None."""
    rows: list[Any] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return rows
