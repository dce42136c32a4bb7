"""Detectors compared over several sets: their means by predictor, ranked, and as dots."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from stages.metrics.definitions import REFERENCE
from stages.report.drawing import legend_above, sheet
from stages.report.palette import styles_of
from stages.report.results import Judged

ALL = "all"
MEANS = ("auroc", "fpr95")
"""Metrics of the ranking; it is ordered by the first."""


def detections(judged: Sequence[Judged]) -> pd.DataFrame:
    """One row per detection, predictor and seed, with ``detector``, ``out`` and ``group``.

    The group is that in which ``ood`` was given the set, such as "near"; empty for none.
    """
    frames = []
    for each in judged:
        if each.card.detector is not None:
            facts = {
                "detector": each.card.detector,
                "out": each.dataset.partition(" against ")[2],
                "group": each.card.group or "",
            }
            frames.append(each.by_group.assign(**facts))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def shared_sets(found: pd.DataFrame) -> list[str]:
    """The sets that every detector was compared on, in order of appearance."""
    n_detectors = found["detector"].nunique()
    by_set = found.groupby("out", sort=False)["detector"].nunique()
    return [str(name) for name, n in by_set.items() if n == n_detectors]


def ranked(found: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, then over the sets that every detector was compared on.

    Returns:
        ``detector``, ``predictor``, and a column for each pair of metric and group of sets; `ALL`
        is the group of all sets. Best mean AUROC first.
    """
    rows = found[found["out"].isin(shared_sets(found))]
    groups = [ALL, *(name for name in rows["group"].unique() if name)]
    by_set = rows.groupby(["detector", "predictor", "out", "group"], sort=False)[list(MEANS)].mean()
    means: dict[tuple[str, str], pd.Series[float]] = {}
    for group in groups:
        some = by_set if group == ALL else by_set.xs(group, level="group", drop_level=False)
        of_group = some.groupby(level=["detector", "predictor"], sort=False).mean()
        means |= {(metric, group): of_group[metric] for metric in MEANS}
    table = pd.DataFrame(means)
    return table.sort_values((MEANS[0], ALL), ascending=False, kind="stable")


def draw_by_detector(found: pd.DataFrame, _: tuple[str, ...]) -> Figure:
    """Mean AUROC of each detector as a large dot per predictor, small dots for the sets."""
    rows = found[found["out"].isin(shared_sets(found))]
    table = ranked(found)[(MEANS[0], ALL)]
    best = table.groupby(level="detector").max().sort_values()
    places = {detector: at for at, detector in enumerate(best.index)}
    styles = styles_of([REFERENCE, *rows["predictor"].unique()])
    figure, (panel,) = sheet(1, height=0.9 + 0.24 * len(places))
    by_set = rows.groupby(["detector", "predictor", "out"], sort=False)["auroc"].mean()
    n_styles = len(styles)
    for at, (label, style) in enumerate(styles.items()):
        shift = 0.22 * (1 - 2 * at / max(1, n_styles - 1)) if n_styles > 1 else 0.0
        own = by_set.xs(label, level="predictor")
        heights = [places[detector] + shift for detector, _ in own.index]
        panel.plot(own, heights, "o", color=style.colour, markersize=2.2, alpha=0.5, zorder=2)
        means = table.xs(label, level="predictor")
        heights = [places[detector] + shift for detector in means.index]
        marker = style.marker or "o"
        panel.plot(
            means, heights, marker, color=style.colour, markersize=5.5, zorder=style.z, ls=""
        )
    panel.set_yticks(list(places.values()), list(places), fontsize=8)
    panel.set_ylim(-0.7, len(places) - 0.3)
    panel.set_xlabel("AUROC")
    panel.axvline(0.5, linewidth=0.7, color="0.6", zorder=1)
    legend_above(figure, styles, styles)
    return figure
