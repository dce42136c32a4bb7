"""The command that tells out-of-distribution images apart: ood."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.output import emit, note, table

if TYPE_CHECKING:
    from stages.applications.detection import Detection
    from stages.applications.evaluation import Contender
    from stages.applications.ood import Attack
    from stages.reflection.extract import Extract
    from store.catalog import FeatureStore

ALL_BUT_FITTED = "msp,odin,energy,max-logit,gradnorm"


def add_to(app: typer.Typer) -> None:
    """Add this command to the app."""
    app.command(
        epilog="Example: intro-pipe ood --in cifar10 --out svhn,textures,places365  ·  "
        "Attacked: intro-pipe ood --in cifar10 --out svhn --detector msp,odin --attack f"
    )(ood)


def ood(
    inside: Annotated[
        str, typer.Option("--in", help="The in-distribution data set; its test images are taken.")
    ],
    outside: Annotated[
        str,
        typer.Option(
            "--out",
            help="Other data sets, commas between: svhn, svhn-10k, textures, places365, lsun-c, "
            "lsun-r, isun, patches, uniform-noise, gaussian-noise, any other, or a folder.",
        ),
    ],
    detector: Annotated[
        str,
        typer.Option(
            help="msp, odin, energy, max-logit, gradnorm, mahalanobis, knn; commas between. "
            "(default: all but the last two, which also need features of the training images)",
            show_default=False,
        ),
    ] = ALL_BUT_FITTED,
    model: Annotated[
        str | None,
        typer.Option(help="A model of the store. (default: the one trained for this data)"),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            "--head",
            help="[LABEL=]NAME: a head of the store, and what to call it; may be given again. none "
            "for f alone. (default: the model's only head, as H)",
        ),
    ] = None,
    attack: Annotated[
        str,
        typer.Option(
            help="none. f: PGD on both sides through f, as in the paper. h: through the first head."
        ),
    ] = "none",
    epsilon: Annotated[str, typer.Option(help="Of PGD, for pixels in [0, 1].")] = "1/255",
    step: Annotated[str, typer.Option(help="Of PGD, for pixels in [0, 1].")] = "1/255",
    steps: Annotated[int, typer.Option(min=1, help="Of PGD; the last one is taken.")] = 10,
    odin_epsilon: Annotated[
        str, typer.Option(help="How far ODIN moves pixels in [0, 1].")
    ] = "0.0014",
    rows: Annotated[
        int,
        typer.Option(min=2, help="At most so many of each set are compared, drawn by the seed."),
    ] = 10_000,
    resamples: Annotated[
        int, typer.Option(min=0, help="Of the bootstrap over images; under 100, no intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of rows, attack and bootstrap.")] = 0,
    precision: Annotated[
        str, typer.Option(help="Of features that are missing: fp32 or bf16.")
    ] = "fp32",
    store: options.Store = options.DEFAULT_STORE,
    data_root: options.DataRoot = None,
    executor: options.ExecutorName = "ray",
    gpus: options.Gpus = None,
    workers: options.Workers = None,
    memory: options.Memory = None,
    address: options.Address = None,
    device: options.Device = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Tell images of other data sets from those that f knows: f beside heads, by stored features.

    What is missing is extracted first, once for all detectors and heads; ODIN and attacks have
    features of their own. Results that are there already are read, not computed again.
    """
    from pipeline.journal import Journal
    from stages.applications.ood import (
        Setting,
        cells_of,
        detect_all,
        labels_that_fit,
        missing_of,
    )
    from stages.data.registry import SourceSpec
    from stages.reflection.extract import Extract
    from stages.reflection.perturbation import Odin
    from stages.sensing.models import ModelRequest, choose
    from store.catalog import FeatureStore

    place = FeatureStore(store)
    workforce, default_device = options.executor_of(executor, gpus, workers, address, memory)
    chosen = choose(place, ModelRequest(model), SourceSpec(inside, "test", data_root or ""))
    stage = Extract(
        chosen.source,
        chosen.card,
        chosen.weights,
        options.choice(precision, ("fp32", "bf16"), "--precision"),
        device=options.device_of(device) if device else default_device,
    )
    outsides = (
        SourceSpec(name, "test", data_root or "", chosen.card.image_size)
        for name in options.names(outside)
    )
    contenders = _contenders(place, stage, head or [])
    setting = Setting(
        stage,
        tuple(labels_that_fit(spec, chosen.card.class_names) for spec in outsides),
        options.names(detector),
        tuple(contenders),
        Odin(_fraction(odin_epsilon, "--odin-epsilon")),
        _attack(
            place,
            contenders,
            options.choice(attack, ("none", "f", "h"), "--attack"),
            epsilon=_fraction(epsilon, "--epsilon"),
            step=_fraction(step, "--step"),
            steps=steps,
            seed=seed,
        ),
        rows,
        resamples,
        seed,
    )
    if dry_run:
        cells = cells_of(place, setting)
        plan = {
            "results": [result.name for _, result in cells],
            "extract": [each.name for each in missing_of(place, cells)],
        }
        lines = [f"would extract {name}" for name in plan["extract"]]
        lines.append(f"would make {len(plan['results'])} results, or read those that are there")
        emit(plan, "\n".join(lines), as_json=as_json)
        return
    with Journal.of(place.location, sys.argv[1:]).outcome() as journal:
        found = detect_all(place, setting, workforce, journal, take_in=chosen.take_in, say=note)
    emit([_facts(each) for each in found], _shown(found), as_json=as_json)


def _contenders(place: FeatureStore, stage: Extract, heads: Sequence[str]) -> list[Contender]:
    """The heads that were named; none for ``none``, and where the model has no head."""
    from cli.comparison import contenders_of
    from stages.applications.ood import Planned
    from stages.errors import DataNotFoundError

    if list(heads) == ["none"]:
        return []
    try:
        return contenders_of(place, Planned(stage, stage.plan()), heads)
    except DataNotFoundError as error:
        if heads:
            raise
        note(f"f alone: {error}")
        return []


def _attack(
    place: FeatureStore,
    contenders: Sequence[Contender],
    through: str,
    *,
    epsilon: float,
    step: float,
    steps: int,
    seed: int,
) -> Attack | None:
    """PGD on both sides, in-distribution images toward uniform, others toward confident."""
    from stages.applications.ood import Attack
    from stages.errors import InputError
    from stages.introspection.adaptive import HeadTarget
    from stages.reflection.perturbation import Pgd

    if through == "none":
        return None
    if through == "h" and not contenders:
        raise InputError("--attack h: expected a head to look through, found none; name a --head")
    target = HeadTarget(place.location, contenders[0].head.name) if through == "h" else None
    return Attack(
        Pgd("uniform", epsilon, step, steps, seed, target),
        Pgd("confident", epsilon, step, steps, seed, target),
    )


def _fraction(text: str, what: str) -> float:
    """``"1/255"`` or ``"0.0014"`` as a number; raises ``InputError``."""
    from stages.errors import InputError

    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"{what} {text}: expected a number, as in 1/255 or 0.0014") from error


def _shown(found: Sequence[Detection]) -> str:
    """A line for each set, detector and predictor, what the columns are, and where they lie."""
    from cli.comparison import gain_of, with_std
    from stages.applications.detection import SHOWN
    from stages.metrics.bootstrap import MIN_RESAMPLES
    from stages.metrics.definitions import DETECTION, STATISTICS

    lines = []
    for each in found:
        means = each.average.set_index(["predictor", "metric"]).to_dict(orient="index")
        lines += [
            {
                "out": each.card["dataset"]["name"].partition(" against ")[2],
                "images": each.card["rows"],
                "detector": each.card["detector"],
                "predictor": label,
                "seeds": len(seeds),
                **{name: with_std(means[label, name]) for name in SHOWN},
                "gain in auroc": gain_of(means[label, "auroc"]),
            }
            for label, seeds in each.card["seeds"].items()
        ]
    first = found[0].card
    told = {name: DETECTION[name] for name in SHOWN} | {"gain": STATISTICS["gain"]}
    told |= {each.card["detector"]: _definition(each) for each in found}
    if first["n_resamples"] >= MIN_RESAMPLES:
        told["[low, high]"] = f"{STATISTICS['interval']}; {first['n_resamples']:,} resamples"
    definitions = "\n".join(f"  {name}: {text}" for name, text in told.items())
    title = f"{first['features']}, and as many images of each other set"
    attacked = first["perturbations"]["inside"][:1]
    if attacked and attacked[0]["kind"] == "pgd":
        title += f"; both sides attacked: {_attack_in_words(attacked[0])}"
    # Of each pair of sets once: detectors leave out the same rows.
    left_out = {each.card["dataset"]["name"]: each.card["left_out_rows"]["f"] for each in found}
    n_left_out = sum(left_out.values())
    if n_left_out:
        note(f"{n_left_out:,} rows left out whose image could not be read: see `status`")
    place = found[0].artifact.storage.location.rpartition("/")[0]
    return f"{title}\n{table(lines)}\n{definitions}\nresults: {place}"


def _definition(found: Detection) -> str:
    return str(found.card["definitions"][found.card["detector"]])


def _attack_in_words(step: dict[str, Any]) -> str:
    levels = 255 * step["epsilon"]
    through = "f" if step["target"] is None else "the head"
    return f"PGD through {through}, {step['steps']} steps in a box of {levels:.4g}/255"


def _facts(found: Detection) -> dict[str, Any]:
    """A result for machines."""
    card = found.card
    told = ("title", "features", "against", "detector", "rows", "perturbations", "definitions")
    return {
        "result": found.artifact.name,
        "location": found.artifact.storage.location,
        **{key: card[key] for key in told},
        "average": found.average.to_dict(orient="records"),
        "by_seed": found.by_group.to_dict(orient="records"),
    }
