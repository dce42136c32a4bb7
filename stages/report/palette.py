"""Appearance of figures: a colour, marker and dash pattern for each contender, light and dark.

Figures are drawn in the light colours. ``stages.report.svg`` replaces each of them by a CSS
variable, so that a drawing follows the dark mode of the page or of the reader's system. Hues are
distinguishable with any of the common colour deficiencies, and markers differ as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stages.report.comparison import strong_one
from stages.sheets.theme import GRID, INK, MUTED, SENSING, SOFT, STRONG

_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p")
_DASHES = ((4.0, 1.6), (1.4, 1.4), (6.0, 1.6, 1.4, 1.6))


@dataclass(frozen=True)
class Style:
    """How a contender is drawn.

    ``dashes`` is empty for a solid line; ``dodge``, from -1 to 1, separates the bars of several.
    """

    colour: str
    marker: str
    dashes: tuple[float, ...]
    width: float
    z: int
    dodge: float = 0.0

    @property
    def is_strong(self) -> bool:
        """Whether this is the contender that the report is about."""
        return self.colour == STRONG

    @property
    def is_thick(self) -> bool:
        """Whether this is f or the contender that the report is about."""
        return self.colour in (SENSING, STRONG)


def styles_of(contenders: Iterable[str]) -> dict[str, Style]:
    """Grey for f, the strong colour for the contender of the report, muted colours for the rest."""
    names = list(dict.fromkeys(contenders))
    strong = strong_one(names)
    styles = {"f": Style(SENSING, "o", (), 1.6, 3)}
    if strong is not None:
        styles[strong] = Style(STRONG, "o", (), 2.2, 5)
    rest = [name for name in names if name not in styles]
    for at, name in enumerate(rest):
        colour = MUTED[at % len(MUTED)]
        dashes = _DASHES[at // len(MUTED) % len(_DASHES)]
        marker, dodge = _MARKERS[at % len(_MARKERS)], _dodge(at, len(rest))
        styles[name] = Style(colour, marker, dashes, 1.2, 4, dodge)
    return {name: styles[name] for name in names}


def _dodge(at: int, n_styles: int) -> float:
    return 2 * (at + 1) / (n_styles + 1) - 1


SETTINGS: dict[Any, Any] = {  # Any: matplotlib's type for it lists every key
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 8.5,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "intro-pipe",
}
"""Settings for ``matplotlib.rc_context``; labels are printed literally, never as formulas."""
