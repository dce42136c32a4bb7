"""The questions that maps answer about an image, and the classes that they are about.

P is the explained class, Q a contrast class (Prabhushankar and AlRegib; method notes, section 13).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError

Method = Literal["grad-cam", "counterfactual-cam", "contrast-cam", "voice"]

RUNNER_UP = "runner-up"
PREDICTION, LABEL = "prediction", "label"

TITLES = {
    "grad-cam": "Why {P}?",
    "counterfactual-cam": "What if not {P}?",
    "contrast-cam": "Why {P}, rather than {Q}?",
    "voice": "Where do the contrasts of {P} disagree?",
}
"""Method -> its question, about the classes P and Q."""


@dataclass(frozen=True, slots=True)
class Question:
    """A map of each image.

    Attributes:
        method: how it is computed.
        contrast: number of the contrast class Q of ``contrast-cam``.
        rank: in place of ``contrast``: Q is the most probable class other than P for 1, the second
            most probable for 2, and so on.
    """

    method: Method
    contrast: int | None = None
    rank: int | None = None

    def title(self, names: Sequence[str], explained: int, asked: int) -> str:
        """The question in words, for an image with the classes P and Q.

        >>> Question("contrast-cam", rank=1).title(["cat", "dog"], 0, 1)
        'Why cat, rather than dog?'

        If Q is P, the map shows what raises the cross entropy to P itself.

        >>> Question("contrast-cam", contrast=0).title(["cat", "dog"], 0, 0)
        'Why rather not cat?'
        """
        if self.method == "contrast-cam" and explained == asked:
            return f"Why rather not {names[explained]}?"
        return TITLES[self.method].format(P=names[explained], Q=names[asked])

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """JSON form, as stored in a plan."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def questions_of(
    methods: Sequence[Method], contrasts: Sequence[str], names: Sequence[str]
) -> tuple[Question, ...]:
    """The questions of methods: one each, and one for each contrast of ``contrast-cam``.

    Args:
        methods: names of methods.
        contrasts: classes by name or number, ``runner-up``, or ``top-K``.
        names: names of the network's classes.

    Raises:
        InputError: a class is unknown, or the network has fewer classes.

    >>> [each.rank for each in questions_of(["contrast-cam"], ["top-2"], ["cat", "dog", "fox"])]
    [1, 2]
    """
    of_contrasts = [each for word in contrasts for each in _contrasts(word, names)]
    found = [
        each
        for method in methods
        for each in (of_contrasts if method == "contrast-cam" else [Question(method)])
    ]
    return tuple(dict.fromkeys(found))


def _contrasts(word: str, names: Sequence[str]) -> list[Question]:
    top = re.fullmatch(r"top-(\d{1,9})", word)
    if word in names or not (top or word == RUNNER_UP):
        return [Question("contrast-cam", class_of(word, names, "--contrast"))]
    n = int(top[1]) if top else 1
    if not 1 <= n < len(names):
        raise InputError(
            f"--contrast {word}: expected top-1 to top-{len(names) - 1}, the classes other than "
            f"the explained one, for a network of {len(names):,} classes"
        )
    return [Question("contrast-cam", rank=rank) for rank in range(1, n + 1)]


def class_of(word: str, names: Sequence[str], option: str) -> int:
    """The number of a class that is given by name or number; raises ``InputError``.

    >>> class_of("dog", ["cat", "dog"], "--class"), class_of("0", ["cat", "dog"], "--class")
    (1, 0)
    """
    if word in names:
        return names.index(word)
    if re.fullmatch(r"\d{1,9}", word) and int(word) < len(names):
        return int(word)
    listed = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
    raise InputError(
        f"{option} {word}: expected a class by its number, 0 to {len(names) - 1}, or by its name: "
        f"{listed}"
    )


def asked_classes(
    questions: Sequence[Question], logits: NDArray[Any], explained: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The class that each map is about: Q for ``contrast-cam``, else P.

    Args:
        questions: the maps.
        logits: shape ``(n, N)``; equal ones are ranked by their number.
        explained: P of each row, shape ``(n,)``.

    Returns:
        Shape ``(n, len(questions))``.
    """
    others = logits.astype(np.float64)
    np.put_along_axis(others, explained[:, None], -np.inf, axis=1)
    ranked = np.argsort(-others, axis=1, kind="stable")
    columns = [
        explained
        if each.method != "contrast-cam"
        else ranked[:, each.rank - 1]
        if each.rank is not None
        else np.full(len(logits), each.contrast)
        for each in questions
    ]
    return np.stack(columns, axis=1).astype(np.int64)
