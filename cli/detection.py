"""The table that `ood` prints: one row per set, detector and predictor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cli.output import note, table
from pipeline.terminal import counted

if TYPE_CHECKING:
    from stages.ood.detection_result import Detection
    from stages.reflection.feature_plan import PerturbationFacts


def detection_table(found: Sequence[Detection], groups: Sequence[str | None]) -> str:
    """One row per set, detector and predictor, means of groups, and names of results.

    Args:
        found: the results.
        groups: group of the set of each: near, far or None.
    """
    from cli.comparison import gain_of, page_of, with_std
    from stages.report.vocabulary import DETECTION_METRICS

    lines: list[dict[str, Any]] = []
    for each in found:
        means = each.average.set_index(["predictor", "metric"]).to_dict(orient="index")
        lines += [
            {
                "out": each.card.dataset.name.partition(" against ")[2],
                "images": each.card.rows,
                "detector": each.card.detector,
                "predictor": label,
                "seeds": len(seeds),
                **{name: with_std(means[label, name]) for name in DETECTION_METRICS},
                "gain in auroc": gain_of(means[label, "auroc"]),
            }
            for label, seeds in each.card.seeds.items()
        ]
    lines += _group_lines(found, groups)
    first = found[0].card
    title = f"{first.features}, and as many images of each other set"
    if first.attack:
        title += f"; both sides attacked: {_attack_in_words(first.attack)}"
    # Once per pair of sets: all detectors leave out the same rows.
    left_out = {each.card.dataset.name: each.card.left_out_rows["f"] for each in found}
    n_left_out = sum(left_out.values())
    if n_left_out:
        note(f"{counted(n_left_out, 'row')} left out whose image could not be read: see `status`")
    place = found[0].artifact.storage.location.rpartition("/")[0]
    names = "\n".join(f"  {each.artifact.name}" for each in found)
    page = page_of(*([found[0].artifact.name] if len(found) == 1 else ["RESULT", "..."]))
    return f"{title}\n{table(lines)}\nresults in {place}:\n{names}\n{page}"


def _group_lines(found: Sequence[Detection], groups: Sequence[str | None]) -> list[dict[str, Any]]:
    """Plain means over the sets of each group, by detector and predictor, as OpenOOD has them."""
    from stages.report.vocabulary import DETECTION_METRICS

    lines = []
    for group in dict.fromkeys(filter(None, groups)):
        some = [each for each, own in zip(found, groups, strict=True) if own == group]
        for detector in dict.fromkeys(each.card.detector for each in some):
            own = [each for each in some if each.card.detector == detector]
            for label, seeds in own[0].card.seeds.items():
                means = [
                    each.average[each.average["predictor"] == label].set_index("metric")["mean"]
                    for each in own
                ]
                lines.append(
                    {
                        "out": f"{group} (mean of {len(own)})",
                        "images": sum(each.card.rows for each in own),
                        "detector": detector,
                        "predictor": label,
                        "seeds": len(seeds),
                        **{
                            name: f"{sum(float(mean[name]) for mean in means) / len(means):.4f}"
                            for name in DETECTION_METRICS
                        },
                        "gain in auroc": "",
                    }
                )
    return lines


def _attack_in_words(attack: PerturbationFacts) -> str:
    levels = 255 * attack.epsilon
    through = "f" if attack.target is None else "the head"
    return f"PGD through {through}, {attack.steps} steps in a box of {levels:.4g}/255"


def detection_facts(found: Detection) -> dict[str, Any]:
    """A result as JSON."""
    card = found.card.to_dict()
    told = ("title", "features", "against", "detector", "rows", "perturbations", "definitions")
    return {
        "result": found.artifact.name,
        "location": found.artifact.storage.location,
        **{key: card[key] for key in told},
        "average": found.average.to_dict(orient="records"),
        "by_seed": found.by_group.to_dict(orient="records"),
    }
