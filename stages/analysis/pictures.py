"""Figures of the analysis: gradients of one image (Fig. 5), and the Fisher trace by severity."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stages.analysis.quantities import Numbers, class_gradients
from stages.errors import InputError
from stages.metrics.finite import finite_rows
from store.featureset import FeatureSet

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

MAX_CLASSES = 10
MAX_FEATURES = 64
_STYLE: Any = {
    "font.size": 8,
    "svg.hashsalt": "intro-pipe",
    "svg.fonttype": "path",
}  # Any: for mypy its keys are literals
_FISHER = {
    "fisher_trace": "trace of the Fisher information",
    "feature_energy": "mean of $\\|f\\|^2$",
    "impurity": "mean of $1 - \\|p\\|^2$",
}


@dataclass(frozen=True)
class Panel:
    """Gradients of one image, ready to draw.

    Attributes:
        title: identifies the image.
        gradients: ``r_I``, shape ``(n, d', n)``: class ``I``, feature, column, for the classes and
            features shown.
        classes: names of the ``n`` classes shown.
        predicted: index of the predicted class among them.
    """

    title: str
    gradients: Numbers
    classes: tuple[str, ...]
    predicted: int


def panel(feature_set: FeatureSet, row: int, class_names: Sequence[str]) -> Panel:
    """The panel of a row: its most probable classes and largest features, in their own order."""
    features = feature_set.read("features", row, row + 1)[0].astype(np.float64)
    logits = feature_set.read("logits", row, row + 1)[0].astype(np.float64)
    if not finite_rows(features[None], logits[None])[0]:
        raise InputError(f"row {row} of {feature_set.name} failed: choose another row (--row)")
    classes = np.sort(np.argsort(-logits, kind="stable")[:MAX_CLASSES])
    shown = np.sort(np.argsort(-np.abs(features), kind="stable")[:MAX_FEATURES])
    names = [class_names[c] if class_names else str(c) for c in range(len(logits))]
    gradients = class_gradients(features[shown], logits, classes)
    top = int(logits.argmax())
    return Panel(
        f"{feature_set.plan['name']}, row {row}, predicted: {names[top]}",
        gradients,
        tuple(names[c] for c in classes),
        classes.tolist().index(top),
    )


def gradient_picture(panels: Sequence[Panel]) -> Figure:
    """For each image the matrices ``r_I`` side by side, one for each class ``I``.

    Each image is scaled by its largest magnitude; white is zero.
    """
    n_classes = max(len(drawn.classes) for drawn in panels)
    with mpl.rc_context(_STYLE):
        size = (1.05 * n_classes + 1.3, 2.2 * len(panels) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(
            "Gradients $r_I = (p - e_I) \\otimes f$ of the cross entropy against each class $I$, "
            "scaled to [-1, 1]\nrows of a matrix: features, columns: the same classes in the same "
            "order, marked $I$ and $\\hat{y}$ (predicted)",
        )
        all_axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for ax, drawn in zip(all_axes, panels, strict=True):
            image = _draw_panel(ax, drawn)
        figure.colorbar(image, ax=list(all_axes), ticks=[-1, 0, 1], aspect=40, pad=0.01)
    return figure


def side_by_side(gradients: Numbers) -> Numbers:
    """Matrices ``[n, d, n]`` as one image ``[d, n (n + 1) - 1]`` in [-1, 1], separated by NaN."""
    n_classes, n_features, _ = gradients.shape
    largest = float(np.abs(gradients).max()) or 1.0
    image = np.full((n_features, n_classes * (n_classes + 1) - 1), np.nan)
    for at, gradient in enumerate(gradients / largest):
        start = at * (n_classes + 1)
        image[:, start : start + n_classes] = gradient
    return image


def _draw_panel(ax: Axes, drawn: Panel) -> AxesImage:
    n_classes, n_features, _ = drawn.gradients.shape
    image = ax.imshow(
        side_by_side(drawn.gradients),
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        aspect="auto",
        interpolation="none",
    )
    marks = []
    for at, name in enumerate(drawn.classes):
        start = at * (n_classes + 1)
        corner = (start - 0.5, -0.5)
        frame = Rectangle(corner, n_classes, n_features, fill=False, lw=0.6, clip_on=False)
        ax.add_patch(frame)
        short = name if len(name) <= 12 else f"{name[:11]}…"
        ax.annotate(
            short,
            (start + (n_classes - 1) / 2, -0.5),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
        )
        marks += [(start + at, "$I$"), (start + drawn.predicted, "$\\hat{y}$")]
    # If I is the predicted class, both marks have the same position: the later one is kept.
    ax.set_xticks(list(dict(marks)), list(dict(marks).values()))
    ax.tick_params(length=2, pad=1)
    ax.set_yticks([])
    ax.set_ylabel(f"{n_features} features")
    ax.set_title(drawn.title, fontsize=9, pad=16)
    ax.spines[:].set_visible(False)
    return image


def fisher_picture(by_group: pd.DataFrame) -> Figure:
    """The trace, and the means of its two factors, against the severity of the corruption.

    Thin lines are single corruptions, the thick line is their mean, and the dashed line stands for
    rows without severity.
    """
    is_clean = by_group["severity"].isna()
    corrupted = by_group[~is_clean]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.5, 3.2), layout="constrained")
        for ax, (quantity, label) in zip(figure.subplots(1, 3), _FISHER.items(), strict=True):
            if "corruption" in corrupted:
                for at, (_, line) in enumerate(corrupted.groupby("corruption")):
                    named = {} if at else {"label": "each corruption"}
                    ax.plot(line["severity"], line[quantity], color="0.8", linewidth=0.7, **named)
            mean = corrupted.groupby("severity")[quantity].mean()
            ax.plot(mean.index, mean, color="C0", linewidth=2, marker="o", label="corrupted, mean")
            for clean in by_group.loc[is_clean, quantity]:
                ax.axhline(clean, color="C1", linestyle="--", label="clean")
            ax.set_title(label)
            ax.set_xlabel("severity")
            ax.set_xticks([int(severity) for severity in mean.index])
            ax.set_ylim(bottom=0)
            ax.spines[["top", "right"]].set_visible(False)
        figure.axes[0].legend(frameon=False)
    return figure


def encoded(figure: Figure, form: str) -> bytes:
    """The figure as ``svg`` or ``png``; the same figure gives the same bytes."""
    sink = io.BytesIO()
    with mpl.rc_context(_STYLE):
        FigureCanvasAgg(figure)
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(sink, format=form, dpi=150, metadata=metadata)
    return sink.getvalue()
