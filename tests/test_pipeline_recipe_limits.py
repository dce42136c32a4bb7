"""Short recipes that expand to very long ones, and numbers that are too large."""

import resource
import time

import pytest
from test_pipeline_recipe import KINDS

from pipeline.errors import RecipeError
from pipeline.recipe import read_recipe
from pipeline.yaml_lines import plain_value

TOO_LARGE = "more than 3,000,000 characters, steps and references"
LONG = "x" * 90_000
RANGE = "{from: 1, to: 10000}"


def recipe(parameters: str, *steps: str) -> str:
    lines = "".join(f"  m{at}: {step}\n" for at, step in enumerate(steps))
    return f"recipe: r\nparameters: {parameters}\nsteps:\n{lines}"


def refusal(text: str) -> str:
    """The one-line error for a recipe, given quickly and with little memory."""
    peak, began = _peak_bytes(), time.process_time()
    with pytest.raises(RecipeError) as caught:
        read_recipe(text, "r.yaml", KINDS)
    assert time.process_time() - began < 10
    assert _peak_bytes() - peak < 500 * 2**20
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


LARGE = {
    "one string": recipe(f"{{p: {LONG}}}", f'{{stage: make, value: 1, note: "{"${p}" * 20_000}"}}'),
    "a list in a string": recipe(
        f"{{p: [{'1, ' * 20_000}1]}}",
        f'{{stage: make, value: 1, note: "{"${p}" * 20_000}"}}',
    ),
    "a set in a string": recipe(
        f"{{p: !!set {{{', '.join(f'k{at}' for at in range(15_000))}}}}}",
        f'{{stage: make, value: 1, note: "{"${p}" * 10_000}"}}',
    ),
    "lists in a list": recipe(
        f"{{p: [{'1, ' * 20_000}1]}}",
        f"{{stage: make, value: 1, widths: [{'$p, ' * 20_000}$p]}}",
    ),
    "one string on an axis": recipe(
        f"{{p: {LONG}}}", f"{{stage: make, each: {{a: {RANGE}}}, value: 1, note: $p$a}}"
    ),
    "many axes": recipe(
        "{p: 1}",
        *[f"{{stage: make, each: {{a: {RANGE}, b: [{', '.join('abcdefghij')}]}}, value: $p}}"] * 40,
    ),
    "a reference from each to each": recipe(
        "{p: 1}",
        f"{{stage: make, each: {{a: {RANGE}}}, value: $p}}",
        f"{{stage: add, each: {{b: {RANGE}}}, terms: {{'x{{a}}': m0}}}}",
    ),
    "two references that share no axis": recipe(
        "{p: 1}",
        f"{{stage: make, each: {{a: {RANGE}}}, value: $p}}",
        f"{{stage: make, each: {{b: {RANGE}}}, value: $p}}",
        "{stage: add, base: m1, terms: {'x{a}': m0}}",
    ),
}


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE.keys())
def test_a_short_recipe_that_expands_enormously_is_refused(text: str) -> None:
    assert len(text) < 200_000
    found = refusal(text)
    assert TOO_LARGE in found
    assert found.startswith("r.yaml:")


@pytest.mark.parametrize(
    "text",
    [
        recipe(f"{{p: [{'1, ' * 3_000_000}1]}}", "{stage: make, value: 1}"),
        recipe(f"{{p: {'x' * 10_000_000}}}", "{stage: make, value: 1}"),
        "# " + "x" * 300_000 + "\n" + recipe("{p: 1}", "{stage: make, value: $p}"),
    ],
    ids=["flat list", "long word", "long comment"],
)
def test_a_long_text_is_refused_before_it_is_parsed(text: str) -> None:
    began = time.process_time()
    assert "r.yaml: expected a text of at most 200,000 characters, found" in refusal(text)
    assert time.process_time() - began < 2


def test_a_flat_list_within_the_limit_is_refused_at_once() -> None:
    text = recipe(f"{{p: [{'1,' * 95_000}1]}}", "{stage: make, value: 1}")
    assert "parameter 'p' is not used by any step" in refusal(text)


@pytest.mark.parametrize(
    "number",
    [
        "9" * 9_000,
        "-" + "9" * 9_000,
        "0x" + "f" * 9_000,
        "0" + "7" * 9_000,
        "0b" + "1" * 90_000,
        "9223372036854775808",
        "-9223372036854775808",
        "0x8000000000000000",
        "!!int 1" + ":59" * 20_000,
        "!!int 1" + ":59" * 20,
        "!!int " + "9" * 9_000,
    ],
    ids=lambda number: f"{number[:12]}... of {len(number)}",
)
def test_a_whole_number_beyond_64_bits_is_refused_where_it_is_written(number: str) -> None:
    found = refusal(recipe(f"\n  p: {number}", "{stage: make, value: $p}"))
    assert found.startswith("r.yaml:3: expected a whole number below 2^63, found ")


@pytest.mark.parametrize("number", ["1." + "0" * 9_000, "!!float 1" + ":59" * 20_000 + ".5"])
def test_a_number_with_thousands_of_digits_is_refused(number: str) -> None:
    found = refusal(recipe(f"\n  p: {number}", "{stage: make, value: 1, rate: $p}"))
    assert found.startswith("r.yaml:3: expected a number of at most 100 characters, found one of")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775807", -(2**63) + 1),
        ("0", 0),
        ("+12", 12),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0b101", 5),
        ("017", 15),
        ("5e-3", 0.005),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("1:30", "1:30"),
        ("1:59:59.5", "1:59:59.5"),
        ("1" + ":59" * 20_000, "1" + ":59" * 20_000),
        ("08", "08"),
        ("1e", "1e"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_numbers_and_strings_are_distinguished(text: str, value: object) -> None:
    found = plain_value(text)
    assert (found, type(found)) == (value, type(value))
