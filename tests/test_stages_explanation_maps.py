"""Maps from class maps, against their definitions."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stages.errors import InputError
from stages.explanation.closed_form import pooled_maps
from stages.explanation.maps import (
    enlarged_maps,
    maps_of,
    normalised_maps,
    voice_map,
    voice_numbers,
)
from stages.explanation.questions import Question, asked_classes, questions_of

NAMES = ("cat", "dog", "fox", "owl")
ALL = ("grad-cam", "counterfactual-cam", "contrast-cam", "voice")


def small(n: int = 3, d: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, weights and logits of random images, in float64."""
    generator = torch.Generator().manual_seed(3)
    activation = torch.randn(n, d, 2, 3, generator=generator, dtype=torch.float64).relu()
    weight = torch.randn(len(NAMES), d, generator=generator, dtype=torch.float64)
    return activation, weight, activation.mean((2, 3)) @ weight.T


def by_autograd(activation: Tensor, weight: Tensor, question: Question, asked: int) -> Tensor:
    """The map of one image ``(d, h, w)``, from the definition of its method."""
    leaf = activation.clone().requires_grad_(True)
    logits = weight @ leaf.mean((1, 2))
    if question.method == "contrast-cam":
        score = functional.cross_entropy(logits[None], torch.tensor([asked]))
    else:
        score = logits[asked]
    (gradient,) = torch.autograd.grad(score, leaf)
    sign = -1 if question.method == "counterfactual-cam" else 1
    return (sign * gradient.mean((1, 2))[:, None, None] * activation).sum(0).relu()


def test_the_closed_form_of_each_question_is_its_definition() -> None:
    activation, weight, logits = small()
    questions = questions_of(ALL[:3], ["3", "top-2"], NAMES)
    asked = asked_classes(questions, logits.numpy(), logits.argmax(1).numpy())

    found, numbers = maps_of(
        questions,
        logits,
        torch.from_numpy(asked),
        lambda directions: pooled_maps(activation, weight, directions),
    )

    assert numbers is None
    for row in range(len(logits)):
        for at, question in enumerate(questions):
            expected = by_autograd(activation[row], weight, question, int(asked[row, at]))
            torch.testing.assert_close(found[row, at], expected, rtol=0, atol=1e-12)


def test_voice_is_the_variance_of_the_contrast_maps_of_all_other_classes() -> None:
    activation, weight, logits = small()
    explained = logits.argmax(1)
    questions = [Question("voice"), Question("grad-cam")]

    found, numbers = maps_of(
        questions,
        logits,
        torch.stack([explained, explained], dim=1),
        lambda directions: pooled_maps(activation, weight, directions),
    )

    assert numbers is not None
    for row in range(len(logits)):
        contrasts = [
            by_autograd(activation[row], weight, Question("contrast-cam"), q).numpy()
            for q in range(len(NAMES))
            if q != explained[row]
        ]
        expected = np.var(contrasts, axis=0)
        np.testing.assert_allclose(found[row, 0].numpy(), expected, rtol=0, atol=1e-12)
        assert numbers[row, 0] == pytest.approx(expected.mean())
        assert numbers[row, 1] == pytest.approx(expected.mean() / expected.std())
    torch.testing.assert_close(numbers, voice_numbers(found[:, 0], found[:, 1]))


def test_the_overlap_is_one_for_equal_maps_and_zero_for_separate_ones() -> None:
    left, right = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])

    assert voice_numbers(left, 5 * left)[0, 2] == 1
    assert voice_numbers(left, right)[0, 2] == 0


def test_maps_that_are_the_same_everywhere_become_zeros() -> None:
    maps = torch.stack([torch.zeros(2, 2), torch.full((2, 2), 7.0), torch.eye(2)])

    assert normalised_maps(maps).tolist() == [
        [[0, 0], [0, 0]],
        [[0, 0], [0, 0]],
        torch.eye(2).tolist(),
    ]
    assert voice_numbers(maps[:2], maps[:2]).tolist() == [[0, 0, 0], [7, 0, 0]]
    assert enlarged_maps(maps[None], (4, 6)).shape == (1, 3, 4, 6)


def test_voice_of_two_classes_has_no_variance() -> None:
    class_maps = torch.randn(2, 2, 3, 3)
    spread = voice_map(class_maps, torch.full((2, 2), 0.5), torch.tensor([0, 1]))

    assert spread.abs().max() < 1e-12


def test_contrasts_are_ranked_by_probability_and_ties_by_number() -> None:
    questions = questions_of(["contrast-cam"], ["top-3", "owl"], NAMES)
    logits = np.array([[1.0, 5.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])

    asked = asked_classes(questions, logits, np.array([1, 0]))

    assert asked.tolist() == [[3, 0, 2, 3], [1, 2, 3, 3]]


def test_each_question_is_asked_once_and_has_a_title() -> None:
    questions = questions_of(
        ["grad-cam", "contrast-cam"], ["runner-up", "top-2", "dog", "1"], NAMES
    )

    assert [each.to_dict() for each in questions] == [
        {"method": "grad-cam"},
        {"method": "contrast-cam", "rank": 1},
        {"method": "contrast-cam", "rank": 2},
        {"method": "contrast-cam", "contrast": 1},
    ]
    assert questions[0].title(NAMES, 0, 0) == "Why cat?"
    assert questions[1].title(NAMES, 0, 1) == "Why cat, rather than dog?"


@pytest.mark.parametrize("word", ["top-0", "top-4", "top-", "4", "-1", "wolf", ""])
def test_an_unknown_contrast_is_refused(word: str) -> None:
    with pytest.raises(InputError, match=f"^--contrast {word}: expected "):
        questions_of(["contrast-cam"], [word], NAMES)
